-- Whom the transaction acts for, as `shared/acting.py` says at its beginning; null for nobody.
-- After a transaction that said so the setting is an empty text, not null.
CREATE FUNCTION acting_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
  RETURN nullif(pg_catalog.current_setting('ainfera.tenant', true), '')::uuid;

-- Bind a table to its tenants, where a row is `whose`: callers see and write their own rows only,
-- whatever a query forgets; the application, which works for all of them, and the owner, who
-- migrates, see them all. Callers may read; what else they may do is granted table by table.
-- Every table with a column `tenant_id` has to be bound; a test looks.
CREATE FUNCTION bind_to_tenant(
  bound regclass, whose text DEFAULT 'tenant_id = (SELECT acting_tenant())'
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', bound);
  EXECUTE format('CREATE POLICY own_tenant ON %s TO ainfera_caller USING (%s) WITH CHECK (%s)',
                 bound, whose, whose);
  EXECUTE format('CREATE POLICY everyone ON %s TO ainfera_app, CURRENT_USER USING (true)
                  WITH CHECK (true)', bound);
  EXECUTE format('GRANT SELECT ON %s TO ainfera_caller', bound);
END $$;
REVOKE EXECUTE ON FUNCTION bind_to_tenant(regclass, text) FROM PUBLIC;

SELECT bind_to_tenant('tenants', 'id = (SELECT acting_tenant())');
SELECT bind_to_tenant(bound, format('EXISTS (
  SELECT FROM agents a
   WHERE a.id = %s.agent_id AND a.tenant_id = (SELECT acting_tenant()))', bound))
  FROM unnest(ARRAY['audit_heads', 'audit_logged']::regclass[]) AS bound;
SELECT bind_to_tenant(c.oid)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
   AND a.attname = 'tenant_id' AND NOT a.attisdropped
 ORDER BY c.relname;

-- Views look with the eyes of whoever asks (`security_invoker`).
DO $$
DECLARE
  view regclass;
BEGIN
  FOR view IN SELECT oid FROM pg_class
               WHERE relnamespace = 'public'::regnamespace AND relkind = 'v' LOOP
    EXECUTE format('GRANT SELECT ON %s TO ainfera_caller', view);
  END LOOP;
END $$;

-- What belongs to nobody and callers read.
GRANT SELECT ON models, catalog_snapshots TO ainfera_caller;
-- What callers change: money is not among it. `register`, spend policies, calls that are kept, keys
-- (whose making is also written down among the operators' acts).
GRANT INSERT ON agents, accounts, audit_events, audit_heads, kept_calls TO ainfera_caller;
GRANT UPDATE ON audit_heads, kept_calls TO ainfera_caller;
GRANT UPDATE (per_call_cap_usd, daily_cap_usd) ON agents TO ainfera_caller;
GRANT DELETE ON kept_calls TO ainfera_caller;
GRANT INSERT, UPDATE ON api_keys TO ainfera_caller;
GRANT INSERT, SELECT (id) ON operator_events TO ainfera_caller;
-- Who sets caps locks the wallet, who makes a key the tenant, and locking takes a right to change;
-- there is nothing to change.
GRANT UPDATE (id) ON accounts, tenants TO ainfera_caller;
CREATE POLICY only_locked ON tenants AS RESTRICTIVE FOR UPDATE TO ainfera_caller
  USING (true) WITH CHECK (false);
CREATE POLICY only_locked ON accounts AS RESTRICTIVE FOR UPDATE TO ainfera_caller
  USING (true) WITH CHECK (false);
CREATE POLICY born_empty ON accounts AS RESTRICTIVE FOR INSERT TO ainfera_caller
  WITH CHECK (kind = 'wallet' AND balance = 0 AND held = 0);
