-- A quote that is held: which model a request would get and at which prices, until it expires.
-- It holds no money. `terms` are the inputs of its decision less the catalogue, which is kept once
-- under its hash; of a pinned model's, the request's features alone.
CREATE TABLE quotes (
  id           uuid PRIMARY KEY,
  tenant_id    uuid NOT NULL,
  agent_id     uuid NOT NULL,
  request_hash bytea NOT NULL,
  routed       boolean NOT NULL,
  model_slug   text NOT NULL,
  ruleset_hash text NOT NULL,
  catalog_hash text NOT NULL,
  terms        jsonb NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz NOT NULL
);
CREATE INDEX quotes_tenant_id_idx ON quotes (tenant_id, expires_at);
CREATE INDEX quotes_expires_at_idx ON quotes (expires_at);

-- The one call that has a quote: the primary key is what makes it one.
CREATE TABLE quote_uses (
  quote_id     uuid PRIMARY KEY REFERENCES quotes ON DELETE CASCADE,
  tenant_id    uuid NOT NULL,
  inference_id uuid NOT NULL CONSTRAINT quote_uses_inference_id_key UNIQUE,
  key_hash     bytea,
  used_at      timestamptz NOT NULL DEFAULT now()
);

SELECT bind_to_tenant('quotes'), bind_to_tenant('quote_uses');
GRANT SELECT, INSERT, UPDATE, DELETE ON quotes, quote_uses TO ainfera_app;
GRANT INSERT ON quotes TO ainfera_caller;
GRANT INSERT, UPDATE, DELETE ON quote_uses TO ainfera_caller;

-- Give a quote to the call that names it.
-- result: TAKEN | REPEATED (the call of the same idempotency key has it, and this is that call
--         again) | UNKNOWN | USED | EXPIRED | OTHER_REQUEST | OTHER_RULES (the rule has changed)
-- A call that was refused, by its funds for example, used nothing: the next one may have its quote.
CREATE FUNCTION take_quote(p_id uuid, p_tenant_id uuid, p_agent_id uuid, p_request_hash bytea,
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
