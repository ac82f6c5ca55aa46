-- The role stays: other databases of the same server may use it.
DO $$
DECLARE
  bound record;
BEGIN
  FOR bound IN SELECT polname AS policy, polrelid::regclass AS name FROM pg_policy LOOP
    EXECUTE format('DROP POLICY %I ON %s', bound.policy, bound.name);
    EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY',
                   bound.name);
  END LOOP;
END $$;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM ainfera_caller;
DROP FUNCTION bind_to_tenant(regclass, text), acting_tenant();
