-- Spending by tenant, as it counts for the tenant and as it counts for the whole system. The two
-- differ where one of them was released after calls had begun: what began before a release was
-- reason enough for the switch that it ended, and for no other. NULL for `tenants` means all.

-- Whether a call was dead, and holds or held money again since a moment. It began before that.
CREATE FUNCTION held_again_after(inference uuid, moment timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
  SELECT EXISTS (SELECT FROM dead_letters d
                  WHERE d.inference_id = inference AND d.held_again_at > moment)
$$;

-- What was settled from `since` on and before `until`.
CREATE FUNCTION killswitch_settled(since timestamptz, until timestamptz, tenants uuid[])
RETURNS TABLE (tenant_id uuid, tenant_usd numeric, system_usd numeric)
LANGUAGE sql STABLE AS $$
  WITH releases AS MATERIALIZED (
    SELECT k.scope, max(k.released_at) AS at FROM killswitches k
     WHERE k.released_at IS NOT NULL GROUP BY k.scope
  )
  SELECT t.tenant_id,
         coalesce(sum(t.amount) FILTER (WHERE r.at IS NULL OR i.created_at > r.at
                                             OR held_again_after(i.id, r.at)), 0),
         coalesce(sum(t.amount) FILTER (WHERE a.at IS NULL OR i.created_at > a.at
                                             OR held_again_after(i.id, a.at)), 0)
    FROM transfers t
    LEFT JOIN releases r ON r.scope = t.tenant_id::text
    LEFT JOIN releases a ON a.scope = 'all'
    -- when the call began matters only after a release: else it is not looked up at all
    LEFT JOIN inferences i
      ON i.id = CASE WHEN r.at IS NOT NULL OR a.at IS NOT NULL THEN t.inference_id END
   WHERE t.credit_account = '00000000-0000-0000-0000-000000000001' AND t.kind = 'usage'
     AND t.created_at >= since AND t.created_at < until
     AND (tenants IS NULL OR t.tenant_id = ANY (tenants))
   GROUP BY t.tenant_id
$$;

-- What is held now.
CREATE FUNCTION killswitch_held(tenants uuid[])
RETURNS TABLE (tenant_id uuid, tenant_usd numeric, system_usd numeric)
LANGUAGE sql STABLE AS $$
  WITH releases AS MATERIALIZED (
    SELECT k.scope, max(k.released_at) AS at FROM killswitches k
     WHERE k.released_at IS NOT NULL GROUP BY k.scope
  )
  SELECT i.tenant_id,
         coalesce(sum(i.hold_usd) FILTER (WHERE r.at IS NULL OR i.created_at > r.at
                                             OR held_again_after(i.id, r.at)), 0),
         coalesce(sum(i.hold_usd) FILTER (WHERE a.at IS NULL OR i.created_at > a.at
                                             OR held_again_after(i.id, a.at)), 0)
    FROM inferences i
    LEFT JOIN releases r ON r.scope = i.tenant_id::text
    LEFT JOIN releases a ON a.scope = 'all'
   WHERE i.state = 'held' AND (tenants IS NULL OR i.tenant_id = ANY (tenants))
   GROUP BY i.tenant_id
$$;

-- What each scope settled in the last `window_s` seconds and holds now, read at one moment, so that
-- a call that settles is never in both or in neither. What is counted already is not read again:
-- only what was settled since, and what has left the window since (or, where the window was made
-- longer, what has come into it). Only with all tenants is there a row of `all`.
CREATE FUNCTION killswitch_spending(tenants uuid[], window_s int)
RETURNS TABLE (scope text, spent_usd numeric)
LANGUAGE sql STABLE SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  WITH w AS MATERIALIZED (
    SELECT c.counted_from, c.counted_to, s.start,
           c.counted_to > s.start AND c.counted_to <= s.now AS counts
      FROM killswitch_window c,
           (SELECT m.now, m.now - make_interval(secs => window_s) AS start
              FROM (SELECT clock_timestamp() AS now OFFSET 0) m) s
  ), spent AS (
    SELECT u.* FROM w, killswitch_settled(CASE WHEN w.counts THEN w.counted_to ELSE w.start END,
                                       'infinity', tenants) u
     UNION ALL
    SELECT u.tenant_id, -u.tenant_usd, -u.system_usd
      FROM w, killswitch_settled(w.counted_from, w.start, tenants) u
     WHERE w.counts AND w.start > w.counted_from
     UNION ALL
    SELECT u.*
      FROM w, killswitch_settled(w.start, w.counted_from, tenants) u
     WHERE w.counts AND w.start < w.counted_from
     UNION ALL
    SELECT u.* FROM killswitch_held(tenants) u
  )
  SELECT x.scope, sum(x.usd)
    FROM (SELECT s.tenant_id::text AS scope, s.tenant_usd AS usd FROM spent s
           UNION ALL
          SELECT 'all', coalesce(sum(s.system_usd), 0) FROM spent s HAVING tenants IS NULL
           UNION ALL
          SELECT k.scope, k.settled_usd FROM killswitch_spent k, w
           WHERE w.counts AND (tenants IS NULL OR k.scope = ANY (tenants::text[]))) x
   GROUP BY x.scope
$$;

-- Move the window along: count what was settled and can change no more, take off what has left it.
--
-- A settlement bears a moment that comes after its transaction got its number, and it shows when it
-- is committed. So a moment is marked with a number that was given after it: once all smaller ones
-- are over, nothing that comes bears an earlier moment. A look counts up to the mark of one before.
-- After a clock was set back, moments that were counted come again: all is counted anew. A number of
-- another server, from which the tables came, is worth nothing here. New rows come before locks, and
-- both in the order of scopes, as where money is held. Alone in a transaction, as its number must be
-- a new one.
CREATE FUNCTION slide_killswitch_window(window_s int) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  w      killswitch_window;
  number bigint;
  start  timestamptz;
  mark   timestamptz;
  known  timestamptz;
  anew   boolean;
  scopes text[];
  comes  numeric[];
  goes   numeric[];
BEGIN
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'the window is moved along in a transaction of its own'
      USING ERRCODE = 'active_sql_transaction';
  END IF;
  mark := clock_timestamp();
  number := pg_current_xact_id()::text::bigint;
  SELECT c.* INTO w FROM killswitch_window c FOR UPDATE;
  start := clock_timestamp() - make_interval(secs => window_s);
  IF w.next_to > mark OR w.next_xid > number THEN
    w.next_to := NULL;
    w.next_xid := NULL;
  END IF;
  anew := w.counted_to <= start OR w.counted_from > start OR w.counted_to > mark;
  known := CASE WHEN w.counted_to > mark THEN start ELSE w.counted_to END;
  IF w.next_xid <= pg_snapshot_xmin(pg_current_snapshot())::text::bigint THEN
    known := w.next_to;
    w.next_to := NULL;
  END IF;
  IF w.next_to IS NULL THEN
    w.next_to := mark;
    w.next_xid := number;
  END IF;
  known := greatest(known, start);

  SELECT array_agg(d.scope), array_agg(d.comes), array_agg(d.goes) INTO scopes, comes, goes
    FROM (WITH moved AS MATERIALIZED (
            SELECT s.tenant_id, s.tenant_usd AS t_in, s.system_usd AS s_in, 0 AS t_out, 0 AS s_out
              FROM killswitch_settled(CASE WHEN anew THEN start ELSE w.counted_to END, known, NULL) s
             UNION ALL
            SELECT s.tenant_id, 0, 0, s.tenant_usd, s.system_usd
              FROM killswitch_settled(w.counted_from, start, NULL) s WHERE NOT anew)
          SELECT m.tenant_id::text AS scope, sum(m.t_in) AS comes, sum(m.t_out) AS goes
            FROM moved m GROUP BY m.tenant_id
           UNION ALL
          SELECT 'all', sum(m.s_in), sum(m.s_out) FROM moved m HAVING count(*) > 0) d;

  INSERT INTO killswitch_spent (scope) SELECT s FROM unnest(scopes) s
    ORDER BY s = 'all', s ON CONFLICT DO NOTHING;
  PERFORM FROM killswitch_spent k
    WHERE anew OR k.scope = ANY (scopes) ORDER BY k.scope = 'all', k.scope FOR NO KEY UPDATE;
  IF anew THEN
    UPDATE killswitch_spent SET settled_usd = 0, at_most_usd = NULL
     WHERE settled_usd <> 0 OR at_most_usd IS NOT NULL;
  END IF;
  UPDATE killswitch_spent k SET settled_usd = k.settled_usd + d.comes - d.goes
    FROM unnest(scopes, comes, goes) AS d (scope, comes, goes) WHERE k.scope = d.scope;
  UPDATE killswitch_window
     SET counted_from = start, counted_to = known, next_to = w.next_to, next_xid = w.next_xid;
END $$;

-- What each scope spends, as `killswitch_spending` says it of all. What is known at most and is less
-- is forgotten: who held money had other settings, or a clock was set back.
CREATE FUNCTION look_at_killswitch_spending(window_s int)
RETURNS TABLE (scope text, spent_usd numeric)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
  scopes text[];
  sums   numeric[];
  behind text[];
BEGIN
  SELECT array_agg(s.scope), array_agg(s.spent_usd) INTO scopes, sums
    FROM killswitch_spending(NULL, window_s) s;
  behind := array(SELECT k.scope FROM unnest(scopes, sums) AS s (scope, spent_usd)
                    JOIN killswitch_spent k ON k.scope = s.scope
                   WHERE k.at_most_usd < s.spent_usd);
  IF cardinality(behind) > 0 THEN
    PERFORM FROM killswitch_spent k WHERE k.scope = ANY (behind)
      ORDER BY k.scope = 'all', k.scope FOR NO KEY UPDATE;
    UPDATE killswitch_spent k SET at_most_usd = NULL WHERE k.scope = ANY (behind);
  END IF;
  RETURN QUERY SELECT * FROM unnest(scopes, sums);
END $$;

-- Release a scope, if it is engaged: what it spent until now counts no more for it, and it is noted
-- which calls hold money. The moment comes after all calls that were let in before it was engaged.
CREATE FUNCTION release_killswitch(stopped text, who text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  switch uuid;
BEGIN
  -- holds may wait for this one: a process that is frozen is not waited for
  PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
  PERFORM FROM killswitch_window FOR UPDATE;
  PERFORM FROM killswitch_spent k WHERE k.scope = stopped FOR NO KEY UPDATE;
  UPDATE killswitches SET released_at = clock_timestamp(), released_by = who
    WHERE scope = stopped AND released_at IS NULL RETURNING id INTO switch;
  IF switch IS NULL THEN
    RETURN false;
  END IF;
  UPDATE killswitch_spent k SET settled_usd = 0, at_most_usd = NULL WHERE k.scope = stopped;
  PERFORM note_killswitch_calls(switch, stopped);
  RETURN true;
END $$;
