# The owner of the schema, the role of the application and that of its callers: no superusers.
psql -v ON_ERROR_STOP=1 -U postgres <<SQL
  CREATE ROLE ainfera_owner LOGIN PASSWORD '$OWNER_PASSWORD';
  CREATE ROLE ainfera_app LOGIN PASSWORD '$APP_PASSWORD';
  CREATE ROLE ainfera_caller LOGIN PASSWORD '$CALLER_PASSWORD';
  GRANT ainfera_caller TO ainfera_app WITH INHERIT FALSE, SET TRUE;
  CREATE DATABASE ainfera OWNER ainfera_owner;
  REVOKE ALL ON DATABASE ainfera FROM PUBLIC;
  GRANT CONNECT ON DATABASE ainfera TO ainfera_app, ainfera_caller;
SQL
