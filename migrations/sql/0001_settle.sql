-- End calls: charge, release the hold, record the outcome, the receipt and the audit events, all
-- in one transaction and one round trip for a whole batch. Repeating it changes nothing. The rule
-- is `settle` in shared/domain/ledger.py.
--
-- batch: [{inference_id, tenant_id, agent_id, attempt, refused, charge, routed, dialect, model,
--          events: [[type, head, middle, tail], …],
--          outcome: {columns of routing_outcomes} | null, receipt: {columns of receipts} | null}, …]
-- result: SETTLED | EXISTS (it had ended already) | FENCED (a newer attempt owns it) |
--         UNKNOWN (no hold was ever placed). `charged` is what left the wallet.
-- refused: the call was turned down before a hold; if an earlier attempt left one, it is voided.
CREATE FUNCTION settle_inferences(batch jsonb)
RETURNS TABLE (inference_id uuid, result text, charged numeric, balance numeric)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  usage_account  CONSTANT uuid := '00000000-0000-0000-0000-000000000001';
  losses_account CONSTANT uuid := '00000000-0000-0000-0000-000000000004';
  at        timestamptz := clock_timestamp();
  today     date := (at AT TIME ZONE 'UTC')::date;
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
  outcome   routing_outcomes;
  outcomes  routing_outcomes[] := '{}';
  receipt   receipts;
  slips     receipts[] := '{}';
  drafts    audit_draft[] := '{}';
BEGIN
  PERFORM 1 FROM accounts w
    WHERE w.agent_id = ANY (array(SELECT (i ->> 'agent_id')::uuid FROM jsonb_array_elements(batch) i))
    ORDER BY w.id FOR UPDATE;

  transfer.created_at := at;
  FOR rec IN
    SELECT x.*, w.id AS wallet_id, w AS wallet, i.state, i.attempt AS known_attempt, i.hold_usd
      FROM ROWS FROM (jsonb_to_recordset(batch) AS (
             inference_id uuid, tenant_id uuid, agent_id uuid, attempt int, refused boolean,
             charge numeric(20,9), routed boolean, dialect text, model text, events jsonb,
             outcome jsonb, receipt jsonb)) WITH ORDINALITY
             AS x (inference_id, tenant_id, agent_id, attempt, refused, charge, routed, dialect,
                   model, events, outcome, receipt, ord)
      LEFT JOIN accounts w ON w.agent_id = x.agent_id
      LEFT JOIN inferences i ON i.id = x.inference_id AND i.agent_id = x.agent_id
     ORDER BY w.id, x.ord
  LOOP
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
    charged := 0;
    IF rec.state IN ('settled', 'refused') OR inference_id = ANY (ids) THEN
      result := 'EXISTS';
    ELSIF rec.attempt < rec.known_attempt THEN
      result := 'FENCED';
    ELSIF rec.state IS NULL AND NOT rec.refused THEN
      result := 'UNKNOWN';
    ELSE
      result := 'SETTLED';
      ids := ids || inference_id;
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
        charged := least(cost, rec.hold_usd + purse.balance - purse.held);
        purse.balance := purse.balance - charged;
        purse.held := purse.held - rec.hold_usd;
        purse.spent_today := purse.spent_today + charged;
        transfer.tenant_id := rec.tenant_id;
        transfer.inference_id := inference_id;
        transfer.pending_id := inference_id;
        transfer.credit_account := usage_account;
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
        ending.state := CASE WHEN rec.refused THEN 'refused' ELSE 'settled' END;
        ending.hold_state := CASE WHEN cost > 0 THEN 'posted' ELSE 'voided' END;
        ending.settled_usd := charged;
        endings := endings || ending;
      END IF;

      IF rec.routed THEN
        outcome := jsonb_populate_record(NULL::routing_outcomes, rec.outcome);
        outcome.inference_id := inference_id;
        outcome.tenant_id := rec.tenant_id;
        outcome.agent_id := rec.agent_id;
        outcome.created_at := at;
        outcomes := outcomes || outcome;
      END IF;
      IF jsonb_typeof(rec.receipt) = 'object' THEN
        receipt := jsonb_populate_record(NULL::receipts, rec.receipt);
        receipt.inference_id := inference_id;
        receipt.tenant_id := rec.tenant_id;
        receipt.agent_id := rec.agent_id;
        receipt.created_at := at;
        slips := slips || receipt;
        purse.grant_inferences_left := greatest(purse.grant_inferences_left - 1, 0);
      END IF;
      FOR n IN 0 .. coalesce(jsonb_array_length(rec.events), 0) - 1 LOOP
        drafts := drafts || ROW(rec.agent_id, rec.tenant_id, rec.events -> n ->> 0,
          rec.events -> n ->> 1, rec.events -> n ->> 2, rec.events -> n ->> 3)::audit_draft;
      END LOOP;
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
       SET state = u.state, hold_state = u.hold_state, settled_usd = u.settled_usd,
           settled_at = at
      FROM unnest(endings) u WHERE i.id = u.id;
    INSERT INTO transfers SELECT * FROM unnest(moves);
    INSERT INTO receipts SELECT * FROM unnest(slips);
  END IF;
  IF cardinality(refusals) > 0 THEN
    INSERT INTO inferences SELECT * FROM unnest(refusals);
  END IF;
  INSERT INTO routing_outcomes SELECT * FROM unnest(outcomes);
  PERFORM chain_events(drafts);
END $$;
