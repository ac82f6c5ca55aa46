ALTER TABLE transfers ALTER COLUMN created_at SET DEFAULT now();
DROP TRIGGER durable ON operator_events;
DROP FUNCTION act_durably();

CREATE OR REPLACE FUNCTION keep_call(
  p_inference_id uuid, p_receipt_id uuid, p_tenant_id uuid, p_agent_id uuid, p_dialect text,
  p_path text, p_stream boolean, p_background boolean, p_key_hash bytea, p_body_hash bytea,
  p_envelope bytea, p_key_s double precision, p_retain_s double precision
) RETURNS SETOF kept_calls LANGUAGE plpgsql AS $$
DECLARE
  known kept_calls;
BEGIN
  FOR try IN 1 .. 5 LOOP
    RETURN QUERY INSERT INTO kept_calls (
        inference_id, receipt_id, tenant_id, agent_id, dialect, path, stream, background,
        idempotency_key_hash, body_hash, envelope, expires_at)
      VALUES (p_inference_id, p_receipt_id, p_tenant_id, p_agent_id, p_dialect, p_path, p_stream,
              p_background, p_key_hash, p_body_hash, p_envelope,
              now() + make_interval(secs => greatest(
                CASE WHEN p_key_hash IS NULL THEN 0 ELSE p_key_s END, p_retain_s)))
      ON CONFLICT (tenant_id, path, idempotency_key_hash) DO NOTHING
      RETURNING *;
    IF FOUND THEN
      RETURN;
    END IF;
    SELECT * INTO known FROM kept_calls k
     WHERE k.tenant_id = p_tenant_id AND k.path = p_path AND k.idempotency_key_hash = p_key_hash;
    IF known.state = 'done' AND known.accepted_at + make_interval(secs => p_key_s) <= now() THEN
      UPDATE kept_calls k SET idempotency_key_hash = NULL
       WHERE k.inference_id = known.inference_id AND k.idempotency_key_hash = p_key_hash;
    ELSIF known.inference_id IS NOT NULL THEN
      RETURN NEXT known;
      RETURN;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'an idempotency key changes hands without end'
    USING ERRCODE = 'serialization_failure';
END $$;
