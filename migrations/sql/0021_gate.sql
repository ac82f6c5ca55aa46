-- Whoever holds money has this lock with others; whoever engages the killswitch waits until nobody
-- has it. So a call is among those under way at the engagement, or it is refused.
CREATE FUNCTION killswitch_lock() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT 5346891077620147523
$$;

-- Until the transaction ends nobody holds money, nor more of it. Whoever falls silent meanwhile (a
-- process that is frozen) is rolled back: no call would begin any more.
CREATE FUNCTION let_no_call_begin() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
  PERFORM pg_advisory_xact_lock(killswitch_lock());
END $$;

-- Engage the killswitch for a scope, unless it is engaged: note the calls that hold money, and the
-- act. A threshold engages it under the lock of its scope, and an operator under `killswitch_lock`.
CREATE FUNCTION engage_killswitch(
  stopped text, why text, who text, spent numeric DEFAULT NULL, threshold numeric DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  switch uuid;
BEGIN
  INSERT INTO killswitches (scope, engaged_at, engaged_by, reason, spent_usd, threshold_usd)
    VALUES (stopped, clock_timestamp(), who, why, spent, threshold)
    ON CONFLICT (scope) WHERE released_at IS NULL DO NOTHING RETURNING id INTO switch;
  IF switch IS NULL THEN
    RETURN false;
  END IF;
  PERFORM note_killswitch_calls(switch, stopped);
  INSERT INTO operator_events (actor, act, target, detail)
    VALUES (who, 'killswitch.engage', stopped, jsonb_build_object('reason', why));
  RETURN true;
END $$;

-- For the closing statement: which calls of a scope hold money now.
CREATE FUNCTION note_killswitch_calls(switch uuid, stopped text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO killswitch_calls (killswitch_id, inference_id, tenant_id, held_usd)
    SELECT switch, i.id, i.tenant_id, i.hold_usd FROM inferences i
     WHERE i.state = 'held' AND (stopped = 'all' OR i.tenant_id::text = stopped)
    ON CONFLICT DO NOTHING
$$;

-- The scopes with a threshold that calls of these tenants count for, each locked until the end of
-- the transaction, `all` at last: that makes all calls take turns, and a tenant's makes its own.
-- guard: {window_s, tenant_usd, system_usd}, what the settings say; an operator's choice wins.
-- What is known at most of a scope without a threshold is forgotten: holds are not added to it.
CREATE FUNCTION killswitch_scopes(tenants uuid[], guard jsonb) RETURNS killswitch_scope[]
LANGUAGE plpgsql AS $$
DECLARE
  names  text[];
  limits numeric[];
  free   text[];
  found  killswitch_scope[];
BEGIN
  SELECT array_agg(s.scope) FILTER (WHERE s.usd IS NOT NULL),
         array_agg(s.usd) FILTER (WHERE s.usd IS NOT NULL),
         array_agg(s.scope) FILTER (WHERE s.usd IS NULL)
    INTO names, limits, free
    FROM (SELECT u.scope, CASE WHEN c.scope IS NULL THEN u.usual ELSE c.threshold_usd END AS usd
            FROM (SELECT 'all' AS scope, (guard ->> 'system_usd')::numeric AS usual
                   UNION
                  SELECT t::text, (guard ->> 'tenant_usd')::numeric FROM unnest(tenants) t) u
            LEFT JOIN killswitch_thresholds c ON c.scope = u.scope) s;
  INSERT INTO killswitch_spent (scope)
    SELECT n FROM unnest(names) n
     WHERE NOT EXISTS (SELECT FROM killswitch_spent k WHERE k.scope = n) ORDER BY n = 'all', n
    ON CONFLICT DO NOTHING;
  SELECT array_agg(ROW(l.scope, limits[array_position(names, l.scope)], l.at_most_usd, 0,
                       false)::killswitch_scope) FILTER (WHERE l.scope = ANY (names)),
         array_agg(l.scope) FILTER (WHERE l.scope = ANY (free))
    INTO found, free
    FROM (SELECT k.scope,
                 CASE WHEN k.at_most_window_s >= coalesce((guard ->> 'window_s')::int, 3600)
                      THEN k.at_most_usd END
                   AS at_most_usd
            FROM killswitch_spent k
           WHERE k.scope = ANY (names || free)
             AND (k.scope = ANY (names) OR k.at_most_usd IS NOT NULL)
           ORDER BY k.scope = 'all', k.scope FOR NO KEY UPDATE) l;
  IF free IS NOT NULL THEN
    UPDATE killswitch_spent k SET at_most_usd = NULL WHERE k.scope = ANY (free);
  END IF;
  RETURN found;
END $$;

-- May so much more be held? `passed` is the scope whose threshold it would pass, if there is one,
-- the tenant's before that of all; else it is added to both. What is known at most is enough to say
-- yes; to say no, all that counts is counted anew, once in a transaction. To reach a threshold
-- exactly is not to pass it. The rule is `passed_by` in shared/domain/spending.py.
CREATE FUNCTION killswitch_admit(
  INOUT scopes killswitch_scope[], tenant uuid, asked numeric, window_s int,
  OUT passed killswitch_scope
) LANGUAGE plpgsql AS $$
DECLARE
  n int;
  s killswitch_scope;
BEGIN
  FOR n IN 1 .. cardinality(scopes) LOOP
    s := scopes[n];
    CONTINUE WHEN s.scope NOT IN ('all', tenant::text);
    IF NOT s.exact AND (s.at_most_usd + s.added_usd + asked <= s.threshold_usd) IS NOT TRUE THEN
      scopes := killswitch_count(scopes, window_s);
      s := scopes[n];
    END IF;
    IF s.at_most_usd + s.added_usd + asked > s.threshold_usd THEN
      passed := s;
      RETURN;
    END IF;
  END LOOP;
  FOR n IN 1 .. cardinality(scopes) LOOP
    IF scopes[n].scope IN ('all', tenant::text) THEN
      scopes[n].added_usd := scopes[n].added_usd + asked;
    END IF;
  END LOOP;
END $$;

-- The same scopes with what they have spent at this moment, and not merely at most.
CREATE FUNCTION killswitch_count(scopes killswitch_scope[], window_s int) RETURNS killswitch_scope[]
LANGUAGE sql VOLATILE AS $$
  SELECT array_agg(ROW(s.scope, s.threshold_usd, coalesce(x.spent_usd, 0), s.added_usd,
                       true)::killswitch_scope ORDER BY s.ord)
    FROM unnest(scopes) WITH ORDINALITY
           AS s (scope, threshold_usd, at_most_usd, added_usd, exact, ord)
    LEFT JOIN killswitch_spending(
           (SELECT CASE WHEN bool_or(u.scope = 'all') THEN NULL
                        ELSE array_agg(u.scope::uuid) FILTER (WHERE u.scope <> 'all') END
              FROM unnest(scopes) u), window_s) x ON x.scope = s.scope
$$;

-- Keep what is known by now of the scopes that were locked.
CREATE FUNCTION keep_killswitch_spent(scopes killswitch_scope[], window_s int) RETURNS void
LANGUAGE sql AS $$
  UPDATE killswitch_spent k
     SET at_most_usd = s.at_most_usd + s.added_usd, at_most_window_s = window_s
    FROM unnest(scopes) s
   WHERE k.scope = s.scope AND (k.at_most_usd, k.at_most_window_s)
           IS DISTINCT FROM (s.at_most_usd + s.added_usd, window_s)
$$;

-- A threshold stops its scope: more was asked for than may be spent.
CREATE FUNCTION stop_at_threshold(s killswitch_scope, asked numeric, window_s int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM engage_killswitch(
    s.scope,
    format('%s USD settled and held in %s s; a call that asked for %s USD more would have passed '
           'the threshold of %s USD', trim_scale(s.at_most_usd + s.added_usd), window_s,
           trim_scale(asked), trim_scale(s.threshold_usd)),
    'threshold', s.at_most_usd + s.added_usd, s.threshold_usd);
END $$;

-- A threshold is chosen, or taken back, while nobody holds money: all who hold it after that know of
-- it, and what was held before that can be seen.
CREATE FUNCTION choose_threshold_alone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM let_no_call_begin();
  RETURN NULL;
END $$;
CREATE TRIGGER killswitch_thresholds_alone
  BEFORE INSERT OR UPDATE OR DELETE ON killswitch_thresholds
  FOR EACH STATEMENT EXECUTE FUNCTION choose_threshold_alone();
