-- Keep a quote, unless its tenant holds `p_most` already: those that no call has used and that have
-- not expired. Of two that come at once the second one counts the first. NULL: there are too many.
CREATE FUNCTION hold_quote(p_id uuid, p_tenant_id uuid, p_agent_id uuid, p_request_hash bytea,
                           p_routed boolean, p_model_slug text, p_ruleset_hash text,
                           p_catalog_hash text, p_terms jsonb, p_hold_for_s int, p_most int)
RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
  until timestamptz;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('quotes ' || p_tenant_id, 0));
  INSERT INTO quotes (id, tenant_id, agent_id, request_hash, routed, model_slug, ruleset_hash,
                      catalog_hash, terms, expires_at)
  SELECT p_id, p_tenant_id, p_agent_id, p_request_hash, p_routed, p_model_slug, p_ruleset_hash,
         p_catalog_hash, p_terms, now() + make_interval(secs => p_hold_for_s)
   WHERE (SELECT count(*) FROM quotes q
           WHERE q.tenant_id = p_tenant_id AND q.expires_at > now()
             AND NOT EXISTS (
               SELECT FROM quote_uses u LEFT JOIN inferences i ON i.id = u.inference_id
                WHERE u.quote_id = q.id AND i.state IS DISTINCT FROM 'refused')) < p_most
  RETURNING expires_at INTO until;
  RETURN until;
END $$;

-- Give a quote to the call that names it, to one at a time.
-- TAKEN | REPEATED (the kept call of the same idempotency key has it, and this is that call again)
-- | UNKNOWN | USED | EXPIRED | OTHER_REQUEST | OTHER_RULES (the rule has changed)
-- A call that was refused, by its funds for example, used nothing: the next one may have its quote.
-- Of two calls with one key that come at once, the one whose quote the other has taken over before
-- either was kept takes it back when it is kept, and then the other joins it. REPEATED is no right
-- to run: the key may be over before the call is kept, and then it is asked again.
-- `p_request_hash` and `p_ruleset_hash` are NULL where a call that was given the quote is kept.
CREATE FUNCTION claim_quote(p_id uuid, p_tenant_id uuid, p_agent_id uuid, p_request_hash bytea,
                            p_ruleset_hash text, p_inference_id uuid, p_key_hash bytea)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  quote quotes;
  known quote_uses;
  state text;
  kept  kept_calls;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('quote ' || p_id, 0));
  SELECT q.* INTO quote FROM quotes q
   WHERE q.id = p_id AND q.tenant_id = p_tenant_id AND q.agent_id = p_agent_id;
  IF quote.id IS NULL THEN
    RETURN 'UNKNOWN';
  END IF;
  SELECT u.* INTO known FROM quote_uses u WHERE u.quote_id = p_id AND u.tenant_id = p_tenant_id;
  SELECT i.state INTO state FROM inferences i WHERE i.id = known.inference_id;
  SELECT k.* INTO kept FROM kept_calls k WHERE k.inference_id = known.inference_id;
  IF known.inference_id = p_inference_id THEN
    RETURN 'TAKEN';
  ELSIF known.key_hash = p_key_hash AND quote.request_hash = p_request_hash
        AND kept.idempotency_key_hash IS NOT NULL THEN
    RETURN 'REPEATED';
  ELSIF known.quote_id IS NOT NULL AND state IS DISTINCT FROM 'refused'
        AND NOT coalesce(known.key_hash = p_key_hash AND state IS NULL
                         AND kept.inference_id IS NULL, false) THEN
    RETURN 'USED';
  ELSIF quote.expires_at <= clock_timestamp() THEN
    RETURN 'EXPIRED';
  ELSIF quote.request_hash <> p_request_hash THEN
    RETURN 'OTHER_REQUEST';
  ELSIF quote.ruleset_hash <> p_ruleset_hash THEN
    RETURN 'OTHER_RULES';
  END IF;
  INSERT INTO quote_uses (quote_id, tenant_id, inference_id, key_hash)
    VALUES (p_id, p_tenant_id, p_inference_id, p_key_hash)
    ON CONFLICT (quote_id) DO UPDATE
       SET inference_id = excluded.inference_id, key_hash = excluded.key_hash, used_at = now();
  RETURN 'TAKEN';
END $$;

CREATE OR REPLACE FUNCTION take_quote(p_id uuid, p_tenant_id uuid, p_agent_id uuid,
                                      p_request_hash bytea, p_ruleset_hash text,
                                      p_inference_id uuid, p_key_hash bytea)
RETURNS TABLE (result text, routed boolean, model_slug text, terms jsonb, models jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  result := claim_quote(p_id, p_tenant_id, p_agent_id, p_request_hash, p_ruleset_hash,
                        p_inference_id, p_key_hash);
  IF result IN ('TAKEN', 'REPEATED') THEN
    SELECT q.routed, q.model_slug, q.terms, s.models INTO routed, model_slug, terms, models
      FROM quotes q LEFT JOIN catalog_snapshots s ON s.hash = q.catalog_hash
     WHERE q.id = p_id AND q.tenant_id = p_tenant_id;
  END IF;
  RETURN NEXT;
END $$;

-- `keep_call` for one with an idempotency key and a quote. Either it joins the call that has the
-- key, or the quote is its own from here on; no row: another call has the quote, nothing is kept.
CREATE FUNCTION keep_quoted_call(
  p_quote_id uuid, p_quote_key_hash bytea,
  p_inference_id uuid, p_receipt_id uuid, p_tenant_id uuid, p_agent_id uuid, p_dialect text,
  p_path text, p_stream boolean, p_background boolean, p_key_hash bytea, p_body_hash bytea,
  p_envelope bytea, p_key_s double precision, p_retain_s double precision
) RETURNS SETOF kept_calls LANGUAGE plpgsql AS $$
DECLARE
  kept kept_calls;
BEGIN
  SELECT * INTO kept FROM keep_call(
    p_inference_id, p_receipt_id, p_tenant_id, p_agent_id, p_dialect, p_path, p_stream,
    p_background, p_key_hash, p_body_hash, p_envelope, p_key_s, p_retain_s);
  IF kept.inference_id = p_inference_id
     AND claim_quote(p_quote_id, p_tenant_id, p_agent_id, NULL, NULL, p_inference_id,
                     p_quote_key_hash) <> 'TAKEN' THEN
    DELETE FROM kept_calls k WHERE k.inference_id = p_inference_id;
    RETURN;
  END IF;
  RETURN NEXT kept;
END $$;
