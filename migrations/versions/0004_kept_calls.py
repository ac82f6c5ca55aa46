"""Calls that are durable before anybody hears of them: in the background, or with an idempotency
key.

`keep_call` writes one down, or says which call has its key already. `end_inferences` settles as
`settle_inferences` does and keeps the results of such calls in the same transaction, so that a
call that is settled has its result, and one that is not has none.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# `envelope` and `result` are sealed by the application; the envelope goes when the result comes.
_TABLE = """
CREATE TABLE kept_calls (
  inference_id         uuid PRIMARY KEY,
  receipt_id           uuid NOT NULL,
  tenant_id            uuid NOT NULL,
  agent_id             uuid NOT NULL,
  dialect              text NOT NULL,
  path                 text NOT NULL,
  stream               boolean NOT NULL,
  background           boolean NOT NULL,
  idempotency_key_hash bytea,
  body_hash            bytea NOT NULL,
  envelope             bytea,
  state                text NOT NULL DEFAULT 'accepted',
  outcome              text,
  result               bytea,
  attempts             integer NOT NULL DEFAULT 0,
  accepted_at          timestamptz NOT NULL DEFAULT now(),
  driven_at            timestamptz NOT NULL DEFAULT now(),
  started_at           timestamptz,
  cancelled_at         timestamptz,
  finished_at          timestamptz,
  expires_at           timestamptz NOT NULL,
  CONSTRAINT kept_calls_state_check CHECK (state IN ('accepted', 'done', 'dead')),
  CONSTRAINT kept_calls_idempotency_key UNIQUE (tenant_id, path, idempotency_key_hash)
) WITH (fillfactor = 80)
"""
_INDEXES = (
    # what the sweeper walks through: calls that have not ended, in the order of their ids
    "CREATE INDEX kept_calls_accepted_idx ON kept_calls (inference_id) WHERE state = 'accepted'",
    "CREATE INDEX kept_calls_expires_at_idx ON kept_calls (expires_at) WHERE state = 'done'",
)

# One round trip, whoever comes first: two calls with one key wait for each other on the index.
# A key that is over, by age and because its call has ended, is taken from its old call.
_KEEP = """
CREATE FUNCTION keep_call(
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
END $$
"""

# batch: the items of `settle_inferences`; one that is kept has
# kept: {outcome, result: sealed, in base64, retain_s, frees_key}
# Only what this very attempt has settled is kept, now or when the answer to that was lost. Not
# `now()`: a transaction may have begun when its statement was prepared.
_KEEP_RESULTS = """
CREATE FUNCTION keep_results(batch jsonb) RETURNS void
LANGUAGE sql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  UPDATE kept_calls k
     SET state = 'done', envelope = NULL, outcome = x.kept ->> 'outcome',
         result = decode(x.kept ->> 'result', 'base64'), finished_at = clock_timestamp(),
         idempotency_key_hash =
           CASE WHEN (x.kept ->> 'frees_key')::boolean THEN NULL ELSE k.idempotency_key_hash END,
         expires_at = greatest(k.expires_at,
           clock_timestamp() + make_interval(secs => (x.kept ->> 'retain_s')::double precision))
    FROM jsonb_to_recordset(batch) AS x (inference_id uuid, attempt int, kept jsonb)
    JOIN inferences i ON i.id = x.inference_id
   WHERE jsonb_typeof(x.kept) = 'object' AND k.inference_id = x.inference_id
     AND k.state <> 'done' AND i.state IN ('settled', 'refused') AND i.attempt = x.attempt
$$
"""
_END = """
CREATE FUNCTION end_inferences(batch jsonb)
RETURNS TABLE (inference_id uuid, result text, attempt int, charged numeric, balance numeric)
LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY SELECT * FROM settle_inferences(batch);
  IF batch @? '$[*].kept' THEN
    PERFORM keep_results(batch);
  END IF;
END $$
"""


def upgrade() -> None:
    for statement in (_TABLE, *_INDEXES, _KEEP, _KEEP_RESULTS, _END):
        op.execute(statement)
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON kept_calls TO ainfera_app")


def downgrade() -> None:
    op.execute("DROP FUNCTION end_inferences, keep_results, keep_call")
    op.execute("DROP TABLE kept_calls")
