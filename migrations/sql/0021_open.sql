-- Place holds, one round trip for a whole batch, exact within the batch: each item sees what the
-- items before it have taken. The rules are `may_open` in shared/domain/attempts.py and `admit` in
-- shared/domain/ledger.py.
--
-- batch: [{inference_id, tenant_id, agent_id, attempt, amount, ttl_s, routed, dialect, model,
--          event: [type, head, middle, tail] | null, tentative: true, only where there is a second
--          choice, attribution: {session_id, client_agent_id, parent_agent_id}, only where there is
--          one}, …]
-- guard: {window_s, tenant_usd, system_usd}, the killswitch's thresholds as the settings have them
-- result: OPENED | EXISTS | SETTLED | FENCED | AGENT_UNKNOWN | PER_CALL_CAP | DAILY_CAP |
--         TENANT_CAP | INSUFFICIENT_FUNDS | KILLSWITCH; a refusal writes nothing but, at a threshold
--         and unless it is tentative, that the killswitch is engaged. `cap` is the cap or threshold
--         at fault; `tenant_spent` (today, UTC) and `tenant_held` count against it if it is the
--         tenant's.
-- The wallets are locked in the order of their ids, then the rows of those tenants that have a cap,
-- then the scopes that have a threshold. A tenant without one has no row that all of its agents wait
-- for. What a tenant has spent and holds is summed over its wallets: those of other batches can only
-- sink meanwhile, since whoever raises them needs the tenant's row, and a settlement never adds more
-- than it releases. The same holds for scopes.
-- A second attempt at an open call keeps the first one's hold and becomes its owner. A dead call
-- is opened anew, under a fresh hold, once its letter was replayed and by a later attempt only;
-- anybody else who comes for it is FENCED.
DROP FUNCTION open_inferences(jsonb);
CREATE FUNCTION open_inferences(batch jsonb, guard jsonb DEFAULT '{}')
RETURNS TABLE (inference_id uuid, result text, attempt int, balance numeric, held numeric,
               spent_today numeric, cap numeric, tenant_spent numeric, tenant_held numeric)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  at      timestamptz;
  today   date;
  tenants uuid[];
  capped  uuid[];
  limits  numeric[];
  spents  numeric[];
  sums    numeric[];
  which   int;
  wallet  uuid;
  rec     record;
  call    inferences;
  opened  inferences[] := '{}';
  revived inferences[] := '{}';
  ids     uuid[] := '{}';
  again   uuid[] := '{}';
  tries   int[] := '{}';
  expiry  timestamptz[] := '{}';
  wallets uuid[] := '{}';
  helds   numeric[] := '{}';
  drafts  audit_draft[] := '{}';
  window_s int := coalesce((guard ->> 'window_s')::int, 3600);
  limited boolean;
  guarded killswitch_scope[];
  engaged text[];
  admitted record;
  passing killswitch_scope[] := '{}';
  asking  numeric[] := '{}';
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM commit_durably();
  END IF;
  -- a killswitch that is engaged from here on has this call among those under way
  PERFORM pg_advisory_xact_lock_shared(killswitch_lock());
  SELECT array_agg(l.tenant_id) INTO tenants
    FROM (SELECT w.tenant_id FROM accounts w
           WHERE w.agent_id = ANY (array(
             SELECT (i ->> 'agent_id')::uuid FROM jsonb_array_elements(batch) i))
           ORDER BY w.id FOR UPDATE) l;
  SELECT array_agg(l.id), array_agg(l.daily_cap_usd) INTO capped, limits
    FROM (SELECT t.id, t.daily_cap_usd FROM tenants t
           WHERE t.id = ANY (tenants) AND t.daily_cap_usd IS NOT NULL
           ORDER BY t.id FOR NO KEY UPDATE) l;
  SELECT array(SELECT k.scope FROM killswitches k WHERE k.released_at IS NULL),
         guard ->> 'system_usd' IS NOT NULL OR guard ->> 'tenant_usd' IS NOT NULL
           OR EXISTS (SELECT FROM killswitch_thresholds)
           OR EXISTS (SELECT FROM killswitch_spent k
                       WHERE k.scope = ANY (array_append(tenants::text[], 'all')) AND k.at_most_usd IS NOT NULL)
    INTO engaged, limited;
  IF limited THEN
    guarded := killswitch_scopes(tenants, guard);
    -- again: whoever had the locks before may have engaged it
    engaged := array(SELECT k.scope FROM killswitches k WHERE k.released_at IS NULL);
  END IF;
  -- the day on which the locks were got: whoever waited over midnight spends tomorrow's money
  at := clock_timestamp();
  today := (at AT TIME ZONE 'UTC')::date;
  IF capped IS NOT NULL THEN
    SELECT array_agg(u.spent ORDER BY c.ord), array_agg(u.held ORDER BY c.ord) INTO spents, sums
      FROM unnest(capped) WITH ORDINALITY AS c (id, ord), LATERAL (
        SELECT coalesce(sum(w.spent_today) FILTER (WHERE w.spent_day = today), 0) AS spent,
               coalesce(sum(w.held), 0) AS held
          FROM accounts w WHERE w.tenant_id = c.id) u;
  END IF;

  FOR rec IN
    SELECT x.*, w.id AS wallet, w.balance, w.held AS was_held,
           CASE WHEN w.spent_day = today THEN w.spent_today ELSE 0 END AS spent,
           a.per_call_cap_usd AS per_call, a.daily_cap_usd AS daily,
           i.state, i.attempt AS known_attempt
      FROM ROWS FROM (jsonb_to_recordset(batch) AS (
             inference_id uuid, tenant_id uuid, agent_id uuid, attempt int, amount numeric(20,9),
             ttl_s int, routed boolean, dialect text, model text, event jsonb,
             tentative boolean)) WITH ORDINALITY
             AS x (inference_id, tenant_id, agent_id, attempt, amount, ttl_s, routed, dialect,
                   model, event, tentative, ord)
      LEFT JOIN agents a
        ON a.id = x.agent_id AND a.tenant_id = x.tenant_id AND a.status = 'active'
      LEFT JOIN accounts w ON w.agent_id = a.id
      LEFT JOIN inferences i ON i.id = x.inference_id
     ORDER BY w.id, x.ord
  LOOP
    IF rec.wallet IS DISTINCT FROM wallet THEN
      IF wallet IS NOT NULL THEN
        wallets := wallets || wallet;
        helds := helds || held;
      END IF;
      wallet := rec.wallet;
      held := rec.was_held;
    END IF;
    inference_id := rec.inference_id;
    attempt := rec.attempt;
    balance := rec.balance;
    spent_today := rec.spent;
    cap := NULL;
    which := array_position(capped, rec.tenant_id);
    tenant_spent := spents[which];
    tenant_held := sums[which];
    IF rec.state IN ('settled', 'refused') THEN
      result := 'SETTLED';
      attempt := rec.known_attempt;
    ELSIF rec.state = 'held' OR inference_id = ANY (ids) THEN
      result := 'EXISTS';
      attempt := greatest(rec.attempt, rec.known_attempt);
      again := again || inference_id;
      tries := tries || attempt;
      expiry := expiry || (at + make_interval(secs => rec.ttl_s));
    ELSIF rec.state = 'dead' AND (rec.attempt <= rec.known_attempt OR EXISTS (
        SELECT FROM dead_letters d WHERE d.inference_id = rec.inference_id AND d.state = 'dead')) THEN
      result := 'FENCED';
      attempt := rec.known_attempt;
    ELSIF engaged && ARRAY['all', rec.tenant_id::text] THEN
      result := 'KILLSWITCH';
    ELSIF rec.wallet IS NULL THEN
      result := 'AGENT_UNKNOWN';
    ELSIF rec.amount > rec.per_call THEN
      result := 'PER_CALL_CAP';
      cap := rec.per_call;
    ELSIF spent_today + held + rec.amount > rec.daily THEN
      result := 'DAILY_CAP';
      cap := rec.daily;
    ELSIF tenant_spent + tenant_held + rec.amount > limits[which] THEN
      result := 'TENANT_CAP';
      cap := limits[which];
    ELSIF balance - held < rec.amount THEN
      result := 'INSUFFICIENT_FUNDS';
    ELSE
      result := 'OPENED';
    END IF;
    IF result = 'OPENED' AND guarded IS NOT NULL THEN
      admitted := killswitch_admit(guarded, rec.tenant_id, rec.amount, window_s);
      guarded := admitted.scopes;
      IF (admitted.passed).scope IS NOT NULL THEN
        result := 'KILLSWITCH';
        cap := (admitted.passed).threshold_usd;
        IF rec.tentative IS NOT TRUE THEN
          engaged := engaged || (admitted.passed).scope;
          passing := passing || admitted.passed;
          asking := asking || rec.amount;
        END IF;
      END IF;
    END IF;
    IF result = 'OPENED' THEN
      held := held + rec.amount;
      IF which IS NOT NULL THEN
        sums[which] := tenant_held + rec.amount;
      END IF;
      ids := ids || inference_id;
      call := ROW(inference_id, rec.tenant_id, rec.agent_id, rec.routed, rec.dialect,
        rec.model, attempt, 'held', rec.amount, 'pending',
        at + make_interval(secs => rec.ttl_s), NULL, at, NULL)::inferences;
      IF rec.state = 'dead' THEN
        revived := revived || call;
      ELSE
        opened := opened || call;
      END IF;
      IF jsonb_typeof(rec.event) = 'array' THEN
        drafts := drafts || ROW(rec.agent_id, rec.tenant_id, rec.event ->> 0, rec.event ->> 1,
          rec.event ->> 2, rec.event ->> 3)::audit_draft;
      END IF;
    END IF;
    RETURN NEXT;
  END LOOP;

  IF cardinality(ids) > 0 THEN
    wallets := wallets || wallet;
    helds := helds || held;
    INSERT INTO inferences SELECT * FROM unnest(opened);
    UPDATE accounts w SET held = u.held
      FROM unnest(wallets, helds) AS u (id, held)
     WHERE w.id = u.id AND w.held <> u.held;
    PERFORM chain_events(drafts);
    IF batch @? '$[*].attribution' THEN
      INSERT INTO call_attributions
        SELECT x.inference_id, x.tenant_id, x.agent_id, x.attribution ->> 'session_id',
               x.attribution ->> 'client_agent_id', x.attribution ->> 'parent_agent_id', at
          FROM jsonb_to_recordset(batch)
                 AS x (inference_id uuid, tenant_id uuid, agent_id uuid, attribution jsonb)
         WHERE jsonb_typeof(x.attribution) = 'object' AND x.inference_id = ANY (ids)
        ON CONFLICT DO NOTHING;
    END IF;
  END IF;
  IF cardinality(revived) > 0 THEN
    UPDATE inferences i
       SET state = u.state, attempt = u.attempt, hold_usd = u.hold_usd,
           hold_state = u.hold_state, hold_expires_at = u.hold_expires_at
      FROM unnest(revived) u WHERE i.id = u.id;
    UPDATE dead_letters d SET held_again_at = at
      FROM unnest(revived) u WHERE d.inference_id = u.id;
  END IF;
  IF cardinality(again) > 0 THEN
    UPDATE inferences i
       SET attempt = greatest(i.attempt, u.attempt),
           hold_expires_at = greatest(i.hold_expires_at, u.expires_at)
      FROM (SELECT id, max(attempt), max(expires_at) FROM unnest(again, tries, expiry)
              AS v (id, attempt, expires_at) GROUP BY id) AS u (id, attempt, expires_at)
     WHERE i.id = u.id;
  END IF;
  IF guarded IS NOT NULL THEN
    PERFORM keep_killswitch_spent(guarded, window_s);
    -- only now, when what this batch holds can be seen
    FOR n IN 1 .. cardinality(passing) LOOP
      PERFORM stop_at_threshold(passing[n], asking[n], window_s);
    END LOOP;
  END IF;
END $$;
