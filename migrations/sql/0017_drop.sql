DROP FUNCTION keep_quoted_call, hold_quote, claim_quote;

CREATE OR REPLACE FUNCTION take_quote(p_id uuid, p_tenant_id uuid, p_agent_id uuid, p_request_hash bytea,
                           p_ruleset_hash text, p_inference_id uuid, p_key_hash bytea)
RETURNS TABLE (result text, routed boolean, model_slug text, terms jsonb, models jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  quote quotes;
  known quote_uses;
BEGIN
  SELECT q.* INTO quote FROM quotes q
   WHERE q.id = p_id AND q.tenant_id = p_tenant_id AND q.agent_id = p_agent_id;
  SELECT u.* INTO known FROM quote_uses u
   WHERE u.quote_id = quote.id AND u.tenant_id = p_tenant_id;
  IF quote.id IS NULL THEN
    result := 'UNKNOWN';
  ELSIF known.key_hash = p_key_hash AND quote.request_hash = p_request_hash THEN
    result := 'REPEATED';
  ELSIF known.quote_id IS NOT NULL AND NOT EXISTS (
      SELECT FROM inferences i WHERE i.id = known.inference_id AND i.state = 'refused') THEN
    result := 'USED';
  ELSIF quote.expires_at <= clock_timestamp() THEN
    result := 'EXPIRED';
  ELSIF quote.request_hash <> p_request_hash THEN
    result := 'OTHER_REQUEST';
  ELSIF quote.ruleset_hash <> p_ruleset_hash THEN
    result := 'OTHER_RULES';
  ELSE
    INSERT INTO quote_uses AS u (quote_id, tenant_id, inference_id, key_hash)
      VALUES (quote.id, p_tenant_id, p_inference_id, p_key_hash)
      ON CONFLICT (quote_id) DO UPDATE
         SET inference_id = excluded.inference_id, key_hash = excluded.key_hash, used_at = now()
       WHERE u.inference_id = known.inference_id;
    result := CASE WHEN FOUND THEN 'TAKEN' ELSE 'USED' END;
  END IF;
  IF result IN ('TAKEN', 'REPEATED') THEN
    routed := quote.routed;
    model_slug := quote.model_slug;
    terms := quote.terms;
    SELECT s.models INTO models FROM catalog_snapshots s WHERE s.hash = quote.catalog_hash;
  END IF;
  RETURN NEXT;
END $$;
