-- A key is one or more secrets, each a row with the hash of one. `key_id` is the key: it stays when
-- a new secret takes the place of an old one, which names the key's first secret in `version_of`.
-- So the look-up of a caller is still one row, by the hash.
-- A limit that is NULL is the setting's; 0 is none.
ALTER TABLE api_keys
  ADD COLUMN version_of uuid REFERENCES api_keys,
  ADD COLUMN key_id uuid GENERATED ALWAYS AS (coalesce(version_of, id)) STORED NOT NULL,
  ADD COLUMN scopes text[] NOT NULL DEFAULT '{call,read,admin}',
  ADD COLUMN requests_per_minute integer,
  ADD COLUMN tokens_per_minute integer,
  ADD COLUMN concurrent_calls integer,
  ADD CONSTRAINT api_keys_scopes_check
    CHECK (scopes <@ '{call,read,admin}' AND cardinality(scopes) > 0),
  ADD CONSTRAINT api_keys_limits_check CHECK (
    requests_per_minute BETWEEN 0 AND 50000000 AND tokens_per_minute BETWEEN 0 AND 50000000
    AND concurrent_calls BETWEEN 0 AND 100000);
CREATE INDEX api_keys_key_id_idx ON api_keys (key_id);
