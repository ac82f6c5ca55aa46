-- Set calls aside that cannot be finished: each becomes `dead`, its hold is voided and its request
-- is kept in a dead letter, all in one transaction. A dead call is not over: it has no outcome yet.
-- Repeating it changes nothing. The rule is `may_bury` in shared/domain/attempts.py.
--
-- batch: [{inference_id, tenant_id, agent_id, attempt, routed, dialect, model, envelope (base64),
--          error_code, error_message, failures: [{attempt, code, message}, …], ttl_s,
--          kept_result (base64): what clients of a kept call are told meanwhile}, …]; tenant
--         and agent are null where the envelope could not be read.
-- result: BURIED | EXISTS (it was dead already) | SETTLED (it had ended) | FENCED (a newer attempt
--         owns it). `attempt` is the last one that was made, by whomever.
CREATE FUNCTION bury_inferences(batch jsonb)
RETURNS TABLE (inference_id uuid, result text, attempt int)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  at     timestamptz := clock_timestamp();
  rec    record;
  letter record;
  hold   numeric(20,9);
BEGIN
  PERFORM 1 FROM accounts w
    WHERE w.agent_id = ANY (array(
      SELECT coalesce(i.agent_id, x.agent_id)
        FROM jsonb_to_recordset(batch) AS x (inference_id uuid, agent_id uuid)
        LEFT JOIN inferences i ON i.id = x.inference_id))
    ORDER BY w.id FOR UPDATE;

  FOR rec IN
    SELECT x.* FROM ROWS FROM (jsonb_to_recordset(batch) AS (
             inference_id uuid, tenant_id uuid, agent_id uuid, attempt int, routed boolean,
             dialect text, model text, envelope text, error_code text, error_message text,
             failures jsonb, ttl_s int, kept_result text)) WITH ORDINALITY
             AS x (inference_id, tenant_id, agent_id, attempt, routed, dialect, model, envelope,
                   error_code, error_message, failures, ttl_s, kept_result, ord)
     ORDER BY x.ord
  LOOP
    SELECT i.state, i.attempt, i.tenant_id, i.agent_id, i.hold_usd, d.state AS letter
      INTO letter
      FROM (SELECT rec.inference_id AS id) k
      LEFT JOIN inferences i ON i.id = k.id
      LEFT JOIN dead_letters d ON d.inference_id = k.id;
    inference_id := rec.inference_id;
    attempt := greatest(rec.attempt, letter.attempt);
    IF letter.state IN ('settled', 'refused') OR letter.letter IN ('discarded', 'expired') THEN
      result := 'SETTLED';
    ELSIF letter.agent_id <> rec.agent_id THEN
      result := 'FENCED';
    ELSIF letter.letter = 'dead' AND letter.state IS DISTINCT FROM 'held' THEN
      result := 'EXISTS';
      -- the number of an attempt that was made is never given to another one
      UPDATE inferences i SET attempt = greatest(i.attempt, rec.attempt)
       WHERE i.id = rec.inference_id;
      UPDATE dead_letters d SET attempts = greatest(d.attempts, rec.attempt)
       WHERE d.inference_id = rec.inference_id;
    ELSIF rec.attempt < letter.attempt OR (letter.state = 'dead' AND rec.attempt = letter.attempt) THEN
      result := 'FENCED';
    ELSE
      result := 'BURIED';
      IF letter.state = 'held' THEN
        hold := letter.hold_usd;
        UPDATE accounts w SET held = w.held - hold WHERE w.agent_id = letter.agent_id AND hold > 0;
        UPDATE inferences i SET state = 'dead', attempt = rec.attempt, hold_state = 'voided'
         WHERE i.id = rec.inference_id;
      ELSIF letter.state = 'dead' THEN
        UPDATE inferences i SET attempt = rec.attempt WHERE i.id = rec.inference_id;
      ELSIF rec.agent_id IS NOT NULL THEN
        INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, attempt, state,
                                created_at)
        VALUES (rec.inference_id, rec.tenant_id, rec.agent_id, rec.routed, rec.dialect, rec.model,
                rec.attempt, 'dead', at);
      END IF;
      INSERT INTO dead_letters AS d (inference_id, tenant_id, agent_id, dialect, model, envelope,
                                     error_code, error_message, attempts, failures, died_at,
                                     expires_at)
      VALUES (rec.inference_id, coalesce(letter.tenant_id, rec.tenant_id),
              coalesce(letter.agent_id, rec.agent_id), rec.dialect, rec.model,
              decode(rec.envelope, 'base64'), rec.error_code, rec.error_message, rec.attempt,
              rec.failures, at, at + make_interval(secs => rec.ttl_s))
      ON CONFLICT (inference_id) DO UPDATE
        SET state = 'dead', envelope = excluded.envelope, error_code = excluded.error_code,
            error_message = excluded.error_message, attempts = excluded.attempts,
            failures = d.failures || excluded.failures, died_at = at,
            expires_at = excluded.expires_at, resolved_at = NULL, resolved_by = NULL;
      UPDATE kept_calls k
         SET state = 'dead', attempts = greatest(k.attempts, rec.attempt),
             result = decode(rec.kept_result, 'base64')
       WHERE k.inference_id = rec.inference_id AND k.state = 'accepted';
    END IF;
    RETURN NEXT;
  END LOOP;
END $$;
