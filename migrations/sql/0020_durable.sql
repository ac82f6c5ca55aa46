-- What a client or an operator was told of is true after a crash, whatever the server is set to.
-- A revoked key, an engaged switch, an ordered replay: each is written with its act.
CREATE FUNCTION act_durably() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM commit_durably();
  RETURN NULL;
END $$;
CREATE TRIGGER durable BEFORE INSERT ON operator_events
  FOR EACH STATEMENT EXECUTE FUNCTION act_durably();
ALTER TABLE operator_events ENABLE ALWAYS TRIGGER durable;

-- When money moved is known once its wallets are locked, not when the transaction began.
ALTER TABLE transfers ALTER COLUMN created_at SET DEFAULT clock_timestamp();
