-- One log over all agents' chains, a Merkle tree whose heads are signed: see
-- shared/domain/merkle.py and shared/domain/checkpoint.py. Written by the books worker alone,
-- behind the chains, so that nothing of it is in the way of a call.

-- The key that signs, made once; the private half is sealed with the master key. `name` is the
-- log's origin as well.
CREATE TABLE audit_log_keys (
  id                 integer PRIMARY KEY DEFAULT 1,
  name               text NOT NULL,
  public_key         bytea NOT NULL,
  private_key_sealed bytea NOT NULL,
  created_at         timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT audit_log_keys_one_check CHECK (id = 1)
);

-- Which event stands at which place of the log. Of no tenant: a hash over hashes.
CREATE TABLE audit_leaves (
  index     bigint PRIMARY KEY,
  agent_id  uuid NOT NULL,
  seq       bigint NOT NULL,
  leaf_hash bytea NOT NULL
);
CREATE UNIQUE INDEX audit_leaves_event_key ON audit_leaves (agent_id, seq);

-- The complete subtrees above the leaves.
CREATE TABLE audit_nodes (
  level smallint,
  index bigint,
  hash  bytea NOT NULL,
  PRIMARY KEY (level, index)
);

-- The signed heads, by how many leaves they cover.
CREATE TABLE audit_checkpoints (
  size       bigint PRIMARY KEY,
  root       bytea NOT NULL,
  note       text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- How far into each chain the log has come. It can be told from the leaves; it is kept because
-- to compare it with the heads is one join.
CREATE TABLE audit_logged (
  agent_id uuid PRIMARY KEY,
  seq      bigint NOT NULL
) WITH (fillfactor = 50);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['audit_log_keys', 'audit_leaves', 'audit_nodes',
                              'audit_checkpoints'] LOOP
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I
                    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', name);
  END LOOP;
END $$;

GRANT SELECT, INSERT ON audit_log_keys, audit_leaves, audit_nodes, audit_checkpoints, audit_logged
  TO ainfera_app;
GRANT UPDATE ON audit_logged TO ainfera_app;
