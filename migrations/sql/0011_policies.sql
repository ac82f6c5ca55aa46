-- The routing policy as data: versions that do not change, and the history of which of them was the
-- default of everybody.

CREATE TABLE policy_versions (
  version       text PRIMARY KEY,
  document      jsonb NOT NULL,
  document_hash text NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now(),
  created_by    text NOT NULL,
  CONSTRAINT policy_versions_version_check CHECK (version ~ '^[a-z0-9][a-z0-9._-]{0,63}$'),
  CONSTRAINT policy_versions_document_check CHECK (document ->> 'version' = version)
);

-- `version` is active from `at` until the next one; `before` was until then. `seq` has no holes, so
-- that of two operators who publish at the same moment one is refused.
CREATE TABLE policy_publications (
  seq     integer PRIMARY KEY,
  version text NOT NULL REFERENCES policy_versions,
  before  text REFERENCES policy_versions,
  act     text NOT NULL,
  at      timestamptz NOT NULL DEFAULT now(),
  actor   text NOT NULL,
  reason  text NOT NULL DEFAULT '',
  CONSTRAINT policy_publications_act_check CHECK (act IN ('publish', 'rollback')),
  CONSTRAINT policy_publications_first_check CHECK ((before IS NULL) = (seq = 1)),
  CONSTRAINT policy_publications_before_check CHECK (before <> version)
);
CREATE INDEX policy_publications_version_idx ON policy_publications (version);

-- A version is never changed. One that was never in anybody's hands may be taken away again: not
-- published, not named by a tenant, nor by a decision (there is no index by that; it is done rarely).
CREATE FUNCTION refuse_policy_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE'
     AND NOT EXISTS (SELECT FROM policy_publications p
                      WHERE OLD.version IN (p.version, p.before))
     AND NOT EXISTS (SELECT FROM tenants t WHERE t.policy ->> 'policy_version' = OLD.version)
     AND NOT EXISTS (SELECT FROM routing_outcomes o WHERE o.policy_version = OLD.version) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION '% of the policy version % is refused: versions do not change once they are used',
    TG_OP, OLD.version USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON policy_versions
  FOR EACH ROW EXECUTE FUNCTION refuse_policy_change();
CREATE TRIGGER never_emptied BEFORE TRUNCATE ON policy_versions
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON policy_publications
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE policy_versions ENABLE ALWAYS TRIGGER immutable, ENABLE ALWAYS TRIGGER never_emptied;
ALTER TABLE policy_publications ENABLE ALWAYS TRIGGER append_only;

-- Gates that an operator flips while the system runs; without a row the environment decides.
CREATE TABLE routing_gates (
  name   text PRIMARY KEY,
  live   boolean NOT NULL,
  set_at timestamptz NOT NULL DEFAULT now(),
  set_by text NOT NULL,
  reason text NOT NULL DEFAULT '',
  CONSTRAINT routing_gates_name_check CHECK (name = 'preference')
);

-- The two that were there before; `shared/domain/policy_version.py` has them too, and a test compares.
INSERT INTO policy_versions (version, document, document_hash, created_by) VALUES
  ('flat-1',
   '{"default_floor":"0.5","default_output_tokens":1024,"description":"One floor, 0.50, for every task.","exploration_share":"0","floors":{},"q_source":"prior","version":"flat-1"}',
   'fb9a9a35cdf65815fca0a7bfc94df13d7b1abe7c3e1c56cd658f820794b245be', 'migration 0011'),
  ('task-floors-1',
   '{"default_floor":"0.5","default_output_tokens":1024,"description":"Floors by task type.","exploration_share":"0","floors":{"chat":"0.58","code":"0.78","embed":"0.52","extraction":"0.58","general":"0.68","reasoning":"0.88","tool_use":"0.78"},"q_source":"prior","version":"task-floors-1"}',
   'e1c23dc980f45b2861b9845a593570b9c8757d4f81f8744aa67e92802541fd09', 'migration 0011');
INSERT INTO policy_publications (seq, version, act, actor) VALUES
  (1, 'flat-1', 'publish', 'migration 0011');

GRANT SELECT, INSERT ON policy_versions, policy_publications, routing_gates TO ainfera_app;
GRANT UPDATE ON routing_gates TO ainfera_app;
-- A tenant may see every version and which one is active, but not who published it and why.
GRANT SELECT ON policy_versions TO ainfera_caller;
GRANT SELECT (seq, version) ON policy_publications TO ainfera_caller;

-- A caller changes the policy of its own tenant (`own_tenant` holds it to that row) and nothing else
-- of it: the right to one column takes the place of the right to lock, which comes with it.
DROP POLICY only_locked ON tenants;
REVOKE UPDATE (id) ON tenants FROM ainfera_caller;
GRANT UPDATE (policy) ON tenants TO ainfera_caller;
