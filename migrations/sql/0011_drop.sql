-- Versions of one's own have no place in the older schema: who names them would have another policy
-- and not know it.
DO $$
BEGIN
  IF EXISTS (SELECT FROM policy_publications p WHERE p.seq = (SELECT max(seq) FROM policy_publications)
                AND p.version <> 'flat-1')
     OR EXISTS (SELECT FROM tenants t
                 WHERE t.policy ->> 'policy_version' IN (SELECT version FROM policy_versions)
                   AND t.policy ->> 'policy_version' NOT IN ('flat-1', 'task-floors-1')) THEN
    RAISE EXCEPTION 'policy versions are in use: publish flat-1 first, and let no tenant name others'
      USING ERRCODE = 'check_violation';
  END IF;
END $$;

REVOKE UPDATE (policy) ON tenants FROM ainfera_caller;
GRANT UPDATE (id) ON tenants TO ainfera_caller;
CREATE POLICY only_locked ON tenants AS RESTRICTIVE FOR UPDATE TO ainfera_caller
  USING (true) WITH CHECK (false);
DROP TABLE policy_publications, policy_versions, routing_gates;
DROP FUNCTION refuse_policy_change();
