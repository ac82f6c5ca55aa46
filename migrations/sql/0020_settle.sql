-- End calls: charge, release the hold, record the outcome, the receipt and the audit events, all
-- in one transaction and one round trip for a whole batch. Repeating it changes nothing. The rules
-- are `may_settle` in shared/domain/attempts.py and `settle` in shared/domain/ledger.py.
--
-- batch: [{inference_id, tenant_id, agent_id, attempt, refused, charge, routed, dialect, model,
--          events: [[type, head, middle, tail], …],
--          outcome: {columns of routing_outcomes} | null, receipt: {columns of receipts} | null}, …]
-- result: SETTLED | EXISTS (it had ended already) | FENCED (a newer attempt owns it) |
--         UNKNOWN (no hold was ever placed). `charged` is what left the wallet, `attempt` the one
--         that owns or ended the call: EXISTS with the caller's own attempt means that the answer
--         to its first settlement was lost on the way.
-- refused: the call was turned down before a hold; if an earlier attempt left one, it is voided.
-- A dead call holds nothing. It is ended once its letter was replayed, discarded or has expired,
-- and by a later attempt than the one that it died of; anybody else is FENCED.
CREATE OR REPLACE FUNCTION settle_inferences(batch jsonb)
RETURNS TABLE (inference_id uuid, result text, attempt int, charged numeric, balance numeric)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  cost_account   CONSTANT uuid := '00000000-0000-0000-0000-000000000001';
  losses_account CONSTANT uuid := '00000000-0000-0000-0000-000000000004';
  at        timestamptz;
  today     date;
  rec       record;
  purse     accounts;
  purses    accounts[] := '{}';
  cost      numeric(20,9);
  ids       uuid[] := '{}';
  refusals  inferences[] := '{}';
  ending    inferences;
  endings   inferences[] := '{}';
  transfer  transfers;
  moves     transfers[] := '{}';
  done      bigint[] := '{}';
  drafts    audit_draft[];
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM commit_durably();
  END IF;
  PERFORM 1 FROM accounts w
    WHERE w.agent_id = ANY (array(SELECT (i ->> 'agent_id')::uuid FROM jsonb_array_elements(batch) i))
    ORDER BY w.id FOR UPDATE;

  -- not before the locks: whoever waited for them over midnight would begin the old day again
  at := clock_timestamp();
  -- What leaves a wallet is written a microsecond apart, in the order in which its balance sinks,
  -- and all of a batch on one day: the day that its last item comes to.
  at := greatest(at, date_trunc('day', at + jsonb_array_length(batch) * interval '1 microsecond',
                                'UTC'));
  today := (at AT TIME ZONE 'UTC')::date;
  transfer.created_at := at;
  FOR rec IN
    SELECT x.*, w.id AS wallet_id, w AS wallet, i.agent_id AS known_agent, i.state,
           i.attempt AS known_attempt, i.hold_usd, i.settled_usd
      FROM ROWS FROM (jsonb_to_recordset(batch) AS (
             inference_id uuid, tenant_id uuid, agent_id uuid, attempt int, refused boolean,
             charge numeric(20,9), routed boolean, dialect text, model text, outcome jsonb,
             receipt jsonb)) WITH ORDINALITY
             AS x (inference_id, tenant_id, agent_id, attempt, refused, charge, routed, dialect,
                   model, outcome, receipt, ord)
      LEFT JOIN accounts w ON w.agent_id = x.agent_id
      -- by the key alone: with the agent beside it, the planner may read all of an agent's calls
      LEFT JOIN inferences i ON i.id = x.inference_id
     ORDER BY w.id, x.ord
  LOOP
    IF rec.known_agent IS DISTINCT FROM rec.agent_id THEN
      rec.state := NULL;
      rec.known_attempt := NULL;
      rec.settled_usd := NULL;
    END IF;
    IF rec.state = 'dead' THEN
      rec.hold_usd := 0;
    END IF;
    IF rec.wallet_id IS DISTINCT FROM purse.id THEN
      IF purse.id IS NOT NULL THEN
        purses := purses || purse;
      END IF;
      purse := rec.wallet;
      IF purse.spent_day IS DISTINCT FROM today THEN
        purse.spent_day := today;
        purse.spent_today := 0;
      END IF;
    END IF;
    inference_id := rec.inference_id;
    attempt := coalesce(rec.known_attempt, rec.attempt);
    charged := coalesce(rec.settled_usd, 0);
    IF rec.state IN ('settled', 'refused') OR inference_id = ANY (ids) THEN
      result := 'EXISTS';
    ELSIF rec.attempt < rec.known_attempt THEN
      result := 'FENCED';
    ELSIF rec.state = 'dead' AND (rec.attempt = rec.known_attempt OR EXISTS (
        SELECT FROM dead_letters d WHERE d.inference_id = rec.inference_id AND d.state = 'dead')) THEN
      result := 'FENCED';
    ELSIF rec.state IS NULL AND NOT rec.refused THEN
      result := 'UNKNOWN';
    ELSE
      result := 'SETTLED';
      attempt := rec.attempt;
      ids := ids || inference_id;
      done := done || rec.ord;
      IF rec.routed <> coalesce(jsonb_typeof(rec.outcome) = 'object', false) THEN
        RAISE EXCEPTION 'inference %: a routed call has one outcome, a passthrough none',
          inference_id USING ERRCODE = 'check_violation';
      END IF;

      IF rec.state IS NULL THEN
        refusals := refusals || ROW(inference_id, rec.tenant_id, rec.agent_id, rec.routed,
          rec.dialect, rec.model, rec.attempt, 'refused', 0, NULL, NULL, NULL, at, at)::inferences;
      ELSE
        cost := CASE WHEN rec.refused THEN 0 ELSE coalesce(rec.charge, 0) END;
        IF cost < 0 THEN
          RAISE EXCEPTION 'inference %: a charge is never negative', inference_id
            USING ERRCODE = 'check_violation';
        END IF;
        charged := least(cost, rec.hold_usd);
        purse.balance := purse.balance - charged;
        purse.held := purse.held - rec.hold_usd;
        purse.spent_today := purse.spent_today + charged;
        transfer.created_at := transfer.created_at + interval '1 microsecond';
        transfer.tenant_id := rec.tenant_id;
        transfer.inference_id := inference_id;
        transfer.pending_id := inference_id;
        transfer.credit_account := cost_account;
        IF charged > 0 THEN
          transfer.id := new_id();
          transfer.debit_account := purse.id;
          transfer.amount := charged;
          transfer.kind := 'usage';
          transfer.debit_balance_after := purse.balance;
          transfer.memo := rec.model;
          moves := moves || transfer;
        END IF;
        IF cost > charged THEN
          transfer.id := new_id();
          transfer.debit_account := losses_account;
          transfer.amount := cost - charged;
          transfer.kind := 'writeoff';
          transfer.debit_balance_after := NULL;
          transfer.memo := rec.model;
          moves := moves || transfer;
        END IF;
        ending.id := inference_id;
        ending.attempt := attempt;
        ending.state := CASE WHEN rec.refused THEN 'refused' ELSE 'settled' END;
        ending.hold_state := CASE WHEN cost > 0 THEN 'posted' ELSE 'voided' END;
        ending.settled_usd := charged;
        endings := endings || ending;
      END IF;

      IF jsonb_typeof(rec.receipt) = 'object' THEN
        purse.grant_inferences_left := greatest(purse.grant_inferences_left - 1, 0);
      END IF;
    END IF;
    balance := purse.balance;
    RETURN NEXT;
  END LOOP;

  IF cardinality(ids) = 0 THEN
    RETURN;
  END IF;
  IF purse.id IS NOT NULL THEN
    purses := purses || purse;
  END IF;
  IF cardinality(endings) > 0 THEN
    UPDATE accounts w
       SET balance = u.balance, held = u.held, spent_day = u.spent_day,
           spent_today = u.spent_today, grant_inferences_left = u.grant_inferences_left
      FROM unnest(purses) u WHERE w.id = u.id;
    UPDATE inferences i
       SET state = u.state, attempt = u.attempt, hold_state = u.hold_state, settled_usd = u.settled_usd,
           settled_at = at
      FROM unnest(endings) u WHERE i.id = u.id;
    INSERT INTO transfers SELECT * FROM unnest(moves);
  END IF;
  IF cardinality(refusals) > 0 THEN
    INSERT INTO inferences SELECT * FROM unnest(refusals);
  END IF;

  INSERT INTO routing_outcomes (
      inference_id, tenant_id, agent_id, task_type, cell, decision_rule, policy_version,
      ruleset_hash, min_quality, chosen_model_slug, provider, cost_projected, cost_actual,
      observed_latency_ms, ttft_ms, outcome_status, fallback_chain, decision, input_tokens,
      output_tokens, created_at)
    SELECT x.inference_id, x.tenant_id, x.agent_id, (o).task_type, (o).cell, (o).decision_rule,
           (o).policy_version, (o).ruleset_hash, (o).min_quality, (o).chosen_model_slug,
           (o).provider, (o).cost_projected, (o).cost_actual, (o).observed_latency_ms,
           (o).ttft_ms, (o).outcome_status, (o).fallback_chain, (o).decision, (o).input_tokens,
           (o).output_tokens, at
      FROM ROWS FROM (jsonb_to_recordset(batch) AS (
             inference_id uuid, tenant_id uuid, agent_id uuid, routed boolean,
             outcome routing_outcomes)) WITH ORDINALITY
             AS x (inference_id, tenant_id, agent_id, routed, o, ord)
     WHERE x.routed AND x.ord = ANY (done);
  INSERT INTO receipts (
      receipt_id, inference_id, tenant_id, agent_id, cost_usd, input_tokens, output_tokens,
      cache_read_tokens, cache_write_tokens, usage_estimated, model_used, model_slug, provider,
      simulated, created_at, billing_rule, billing_basis, outcome)
    SELECT (r).receipt_id, x.inference_id, x.tenant_id, x.agent_id, (r).cost_usd,
           (r).input_tokens, (r).output_tokens, (r).cache_read_tokens, (r).cache_write_tokens,
           (r).usage_estimated, (r).model_used, (r).model_slug, (r).provider, (r).simulated, at,
           (r).billing_rule, (r).billing_basis, (r).outcome
      FROM ROWS FROM (jsonb_to_recordset(batch) AS (
             inference_id uuid, tenant_id uuid, agent_id uuid, receipt receipts)) WITH ORDINALITY
             AS x (inference_id, tenant_id, agent_id, r, ord)
     WHERE NOT (r IS NULL) AND x.ord = ANY (done);
  SELECT array_agg(ROW(x.agent_id, x.tenant_id, e.event ->> 0, e.event ->> 1, e.event ->> 2,
                       e.event ->> 3)::audit_draft ORDER BY x.ord, e.nth)
    INTO drafts
    FROM ROWS FROM (jsonb_to_recordset(batch) AS (agent_id uuid, tenant_id uuid, events jsonb))
           WITH ORDINALITY AS x (agent_id, tenant_id, events, ord),
         jsonb_array_elements(x.events) WITH ORDINALITY AS e (event, nth)
   WHERE x.ord = ANY (done);
  PERFORM chain_events(drafts);
END $$;
