-- The application runs as this role, which owns nothing. Roles belong to the whole server, so
-- another database may have made it already, at this very moment even.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ainfera_app') THEN
    CREATE ROLE ainfera_app NOLOGIN;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO ainfera_app;
GRANT INSERT ON ALL TABLES IN SCHEMA public TO ainfera_app;
REVOKE INSERT ON alembic_version, ledger_entries FROM ainfera_app;
GRANT UPDATE ON tenants, agents, api_keys, accounts, inferences, audit_heads, models TO ainfera_app;
