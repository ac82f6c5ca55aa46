-- Enlarge the hold of a running call, and lease it anew: it expires `ttl_s` from now, or when it
-- would have, whichever is later. By nothing it only leases it anew, whatever the caps say by now.
-- The rule is `admit` in shared/domain/ledger.py.
-- result: EXTENDED | FENCED | PER_CALL_CAP | DAILY_CAP | TENANT_CAP | INSUFFICIENT_FUNDS | KILLSWITCH;
-- a refusal changes nothing, and the figures tell why, as those of `open_inferences` do. A killswitch
-- that is engaged stops new calls, not this one; but no call grows over a threshold: that engages it.
-- A scope that was released since the call began does not count it.
DROP FUNCTION enlarge_hold(uuid, int, numeric, int);
CREATE FUNCTION enlarge_hold(inference uuid, try int, extra numeric, ttl_s int DEFAULT NULL,
                             guard jsonb DEFAULT '{}')
RETURNS TABLE (result text, balance numeric, held numeric, spent_today numeric, cap numeric,
               tenant_spent numeric, tenant_held numeric)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  at    timestamptz;
  today date;
  more  numeric(20,9) := extra;
  call  inferences;
  w     accounts;
  a     agents;
  whole numeric;
  window_s int := coalesce((guard ->> 'window_s')::int, 3600);
  guarded  killswitch_scope[];
  admitted record;
BEGIN
  IF more < 0 THEN
    RAISE EXCEPTION 'a hold is extended by a positive amount' USING ERRCODE = 'check_violation';
  END IF;
  PERFORM commit_durably();
  IF more > 0 THEN
    PERFORM pg_advisory_xact_lock_shared(killswitch_lock());
  END IF;
  SELECT acc.* INTO w FROM accounts acc
    WHERE acc.agent_id = (SELECT i.agent_id FROM inferences i WHERE i.id = inference) FOR UPDATE;
  SELECT i.* INTO call FROM inferences i WHERE i.id = inference;
  IF call.state IS DISTINCT FROM 'held' OR try < call.attempt THEN
    result := 'FENCED';
    RETURN NEXT;
    RETURN;
  END IF;
  IF more > 0 THEN
    SELECT t.daily_cap_usd INTO whole FROM tenants t
      WHERE t.id = call.tenant_id AND t.daily_cap_usd IS NOT NULL FOR NO KEY UPDATE;
    guarded := killswitch_scopes(ARRAY[call.tenant_id], guard);
    guarded := array(
      SELECT ROW(s.scope, s.threshold_usd, s.at_most_usd, s.added_usd, s.exact)::killswitch_scope
        FROM unnest(guarded) WITH ORDINALITY
               AS s (scope, threshold_usd, at_most_usd, added_usd, exact, ord),
             LATERAL (SELECT max(k.released_at) AS at FROM killswitches k WHERE k.scope = s.scope) r
       WHERE r.at IS NULL OR call.created_at > r.at OR held_again_after(call.id, r.at)
       ORDER BY s.ord);
  END IF;
  at := clock_timestamp();
  today := (at AT TIME ZONE 'UTC')::date;
  SELECT g.* INTO a FROM agents g WHERE g.id = call.agent_id;
  balance := w.balance;
  held := w.held;
  spent_today := CASE WHEN w.spent_day = today THEN w.spent_today ELSE 0 END;
  IF whole IS NOT NULL THEN
    SELECT coalesce(sum(t.spent_today) FILTER (WHERE t.spent_day = today), 0), sum(t.held)
      INTO tenant_spent, tenant_held FROM accounts t WHERE t.tenant_id = call.tenant_id;
  END IF;
  IF more > 0 AND call.hold_usd + more > a.per_call_cap_usd THEN
    result := 'PER_CALL_CAP';
    cap := a.per_call_cap_usd;
  ELSIF more > 0 AND spent_today + held + more > a.daily_cap_usd THEN
    result := 'DAILY_CAP';
    cap := a.daily_cap_usd;
  ELSIF tenant_spent + tenant_held + more > whole THEN
    result := 'TENANT_CAP';
    cap := whole;
  ELSIF balance - held < more THEN
    result := 'INSUFFICIENT_FUNDS';
  ELSE
    result := 'EXTENDED';
    IF cardinality(guarded) > 0 THEN
      admitted := killswitch_admit(guarded, call.tenant_id, more, window_s);
      IF (admitted.passed).scope IS NOT NULL THEN
        result := 'KILLSWITCH';
        cap := (admitted.passed).threshold_usd;
        PERFORM stop_at_threshold(admitted.passed, more, window_s);
      END IF;
      PERFORM keep_killswitch_spent(admitted.scopes, window_s);
    END IF;
  END IF;
  IF result = 'EXTENDED' THEN
    held := held + more;
    UPDATE accounts acc SET held = acc.held + more WHERE acc.id = w.id AND more > 0;
    UPDATE inferences i
       SET hold_usd = i.hold_usd + more,
           hold_expires_at = greatest(i.hold_expires_at, at + make_interval(secs => ttl_s))
     WHERE i.id = inference;
  END IF;
  RETURN NEXT;
END $$;
