-- Where in an agent's chain a moment lies: the number of the first event at or after it, or one past
-- the head. Numbers grow with time there (an event gets both under the lock of its chain's head), so
-- a search by halves needs some twenty reads of the key, however long the chain, and no index by
-- agent and time that each new event would pay for.
CREATE FUNCTION chain_position(chain uuid, moment timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  low  bigint := 1;
  high bigint := 1 + coalesce(
    (SELECT e.seq FROM audit_events e WHERE e.agent_id = chain ORDER BY e.seq DESC LIMIT 1), 0);
  half bigint;
  seen timestamptz;
BEGIN
  WHILE low < high LOOP
    half := (low + high) / 2;
    -- the next one there is: a chain with a hole in it is searched all the same
    SELECT e.created_at INTO seen FROM audit_events e
     WHERE e.agent_id = chain AND e.seq >= half ORDER BY e.seq LIMIT 1;
    IF seen >= moment THEN
      high := half;
    ELSE
      low := half + 1;
    END IF;
  END LOOP;
  RETURN low;
END $$;

-- Letters whose calls have long been over are deleted; who did what to them stays in operator_events.
CREATE INDEX dead_letters_over_idx ON dead_letters (resolved_at)
  WHERE state <> 'dead' AND envelope IS NULL;
GRANT DELETE ON dead_letters TO ainfera_app;
