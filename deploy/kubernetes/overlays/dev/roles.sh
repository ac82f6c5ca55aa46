# The owner of the schema and the role of the application: neither is a superuser.
psql -v ON_ERROR_STOP=1 -U postgres <<SQL
  CREATE ROLE ainfera_owner LOGIN PASSWORD '$OWNER_PASSWORD';
  CREATE ROLE ainfera_app LOGIN PASSWORD '$APP_PASSWORD';
  CREATE DATABASE ainfera OWNER ainfera_owner;
  REVOKE ALL ON DATABASE ainfera FROM PUBLIC;
  GRANT CONNECT ON DATABASE ainfera TO ainfera_app;
SQL
