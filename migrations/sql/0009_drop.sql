-- What an older schema cannot say must not be lost: there, a key that may only read could do all.
DO $$
BEGIN
  IF EXISTS (SELECT FROM api_keys WHERE revoked_at IS NULL AND NOT scopes @> '{call,read,admin}') THEN
    RAISE EXCEPTION 'there are keys with fewer than all scopes: revoke them first'
      USING ERRCODE = 'check_violation';
  END IF;
END $$;

ALTER TABLE api_keys
  DROP COLUMN key_id, DROP COLUMN version_of, DROP COLUMN scopes, DROP COLUMN requests_per_minute,
  DROP COLUMN tokens_per_minute, DROP COLUMN concurrent_calls;
