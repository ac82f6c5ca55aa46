-- What the ingress does for a caller, it does as this role: it owns nothing, has no way round
-- row-level security, and may do nothing but what is granted below and by later migrations.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ainfera_caller') THEN
    CREATE ROLE ainfera_caller NOLOGIN;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN
    NULL;
  WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'the role ainfera_caller is missing and % may not make it. As a superuser: %',
      current_user,
      'CREATE ROLE ainfera_caller LOGIN PASSWORD ''…''; GRANT ainfera_caller TO ainfera_app;'
      USING ERRCODE = 'insufficient_privilege';
END $$;

-- So that an address that logs in as `ainfera_app` still serves callers, by becoming this role. It
-- inherits nothing: the policies of callers are not its own. Before version 16 that cannot be said.
DO $$
BEGIN
  IF current_setting('server_version_num')::int >= 160000
     AND NOT pg_has_role('ainfera_app', 'ainfera_caller', 'MEMBER') THEN
    GRANT ainfera_caller TO ainfera_app WITH INHERIT FALSE, SET TRUE;
  END IF;
EXCEPTION
  WHEN insufficient_privilege THEN
    NULL;  -- whoever made the role decides
END $$;

-- A temporary table would hide a real one from whoever uses the connection next. Where the schema's
-- owner does not own the database, this is only a warning.
DO $$
BEGIN
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO ainfera_caller', current_database());
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END $$;
