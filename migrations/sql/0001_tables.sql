-- Money is numeric(20,9) US dollars throughout. Ids are minted by the application, except those
-- of rows that only the functions below write.

-- Time-ordered ids keep index inserts on one page; Postgres has them built in from 18 on.
DO $$
BEGIN
  IF current_setting('server_version_num')::int >= 180000 THEN
    CREATE FUNCTION new_id() RETURNS uuid LANGUAGE sql VOLATILE RETURN uuidv7();
  ELSE
    CREATE FUNCTION new_id() RETURNS uuid LANGUAGE sql VOLATILE RETURN gen_random_uuid();
  END IF;
END $$;

CREATE TABLE tenants (
  id            uuid PRIMARY KEY,
  name          text NOT NULL,
  owner_handle  text,
  owner_source  text,
  owner_contact text,
  policy        jsonb NOT NULL DEFAULT '{}',
  created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE agents (
  id                 uuid PRIMARY KEY,
  tenant_id          uuid NOT NULL REFERENCES tenants,
  name               text NOT NULL,
  canonical_uri      text NOT NULL,
  did_web            text NOT NULL,
  status             text NOT NULL DEFAULT 'active',
  public_key_pem     text NOT NULL,
  private_key_sealed bytea NOT NULL,
  min_quality        numeric,
  per_call_cap_usd   numeric(20,9),
  daily_cap_usd      numeric(20,9),
  metadata           jsonb NOT NULL DEFAULT '{}',
  wallet_address     text,
  created_at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agents_tenant_id_idx ON agents (tenant_id, created_at);

CREATE TABLE api_keys (
  id               uuid PRIMARY KEY,
  tenant_id        uuid NOT NULL REFERENCES tenants,
  agent_id         uuid REFERENCES agents,
  default_agent_id uuid REFERENCES agents,
  key_hash         bytea NOT NULL CONSTRAINT api_keys_key_hash_key UNIQUE,
  label            text,
  created_at       timestamptz NOT NULL DEFAULT now(),
  revoked_at       timestamptz,
  expires_at       timestamptz,
  last_used_at     timestamptz
);
CREATE INDEX api_keys_tenant_id_idx ON api_keys (tenant_id, created_at);

-- A wallet's balance is kept here and is the fold of its transfers. A system account's balance
-- is not kept: one row that every settlement in the system updates would serialise them all.
CREATE TABLE accounts (
  id                    uuid PRIMARY KEY,
  tenant_id             uuid REFERENCES tenants,
  agent_id              uuid CONSTRAINT accounts_agent_id_key UNIQUE REFERENCES agents,
  kind                  text NOT NULL DEFAULT 'wallet',
  balance               numeric(20,9) NOT NULL DEFAULT 0,
  held                  numeric(20,9) NOT NULL DEFAULT 0,
  spent_day             date,
  spent_today           numeric(20,9) NOT NULL DEFAULT 0,
  grant_inferences_left integer NOT NULL DEFAULT 0,
  grant_expires_at      timestamptz,
  CONSTRAINT accounts_kind_check CHECK (kind IN ('wallet', 'usage', 'grants', 'topups', 'losses')),
  CONSTRAINT accounts_held_check CHECK (held >= 0),
  CONSTRAINT accounts_available_check CHECK (kind <> 'wallet' OR balance - held >= 0)
) WITH (fillfactor = 50);
CREATE INDEX accounts_tenant_id_idx ON accounts (tenant_id);
CREATE INDEX accounts_grant_expires_at_idx ON accounts (grant_expires_at)
  WHERE grant_expires_at IS NOT NULL;

INSERT INTO accounts (id, kind) VALUES
  ('00000000-0000-0000-0000-000000000001', 'usage'),
  ('00000000-0000-0000-0000-000000000002', 'grants'),
  ('00000000-0000-0000-0000-000000000003', 'topups'),
  ('00000000-0000-0000-0000-000000000004', 'losses');

-- Append-only. No foreign keys: checking one locks the system account's row for every transfer.
-- The functions, the only writers, take both accounts from rows that they have locked.
CREATE TABLE transfers (
  id                   uuid PRIMARY KEY DEFAULT new_id(),
  tenant_id            uuid NOT NULL,
  debit_account        uuid NOT NULL,
  credit_account       uuid NOT NULL,
  amount               numeric(20,9) NOT NULL,
  kind                 text NOT NULL,
  inference_id         uuid,
  pending_id           uuid,
  debit_balance_after  numeric(20,9),
  credit_balance_after numeric(20,9),
  memo                 text,
  created_at           timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT transfers_amount_check CHECK (amount > 0),
  CONSTRAINT transfers_accounts_check CHECK (debit_account <> credit_account),
  CONSTRAINT transfers_kind_check
    CHECK (kind IN ('usage', 'grant', 'grant_return', 'topup', 'writeoff')),
  CONSTRAINT transfers_inference_id_kind_key UNIQUE (inference_id, kind)
);
CREATE INDEX transfers_debit_account_idx ON transfers (debit_account, created_at);
CREATE INDEX transfers_credit_account_idx ON transfers (credit_account, created_at);

CREATE VIEW ledger_entries WITH (security_invoker = true) AS
  SELECT id AS transfer_id, tenant_id, debit_account AS account_id, -amount AS amount,
         debit_balance_after AS balance_after, kind, memo, inference_id, created_at
    FROM transfers
  UNION ALL
  SELECT id, tenant_id, credit_account, amount, credit_balance_after, kind, memo, inference_id,
         created_at
    FROM transfers;

-- One row per call that got as far as a decision about money: the hold and its end.
-- `attempt` is the fence: only the newest attempt may extend or settle.
CREATE TABLE inferences (
  id              uuid PRIMARY KEY,
  tenant_id       uuid NOT NULL,
  agent_id        uuid NOT NULL,
  routed          boolean NOT NULL,
  dialect         text NOT NULL,
  model           text NOT NULL,
  attempt         integer NOT NULL DEFAULT 1,
  state           text NOT NULL,
  hold_usd        numeric(20,9) NOT NULL DEFAULT 0,
  hold_state      text,
  hold_expires_at timestamptz,
  settled_usd     numeric(20,9),
  created_at      timestamptz NOT NULL DEFAULT now(),
  settled_at      timestamptz,
  CONSTRAINT inferences_state_check CHECK (state IN ('held', 'settled', 'refused')),
  CONSTRAINT inferences_hold_state_check CHECK (hold_state IN ('pending', 'posted', 'voided')),
  CONSTRAINT inferences_pending_check CHECK ((state = 'held') = (hold_state IS NOT DISTINCT FROM 'pending')),
  CONSTRAINT inferences_hold_check CHECK (hold_usd >= 0),
  CONSTRAINT inferences_settled_check CHECK (settled_usd >= 0)
) WITH (fillfactor = 80);
CREATE INDEX inferences_agent_id_idx ON inferences (agent_id, created_at);
CREATE INDEX inferences_tenant_id_idx ON inferences (tenant_id, created_at);
CREATE INDEX inferences_hold_expires_at_idx ON inferences (hold_expires_at) WHERE state = 'held';

CREATE TABLE routing_outcomes (
  inference_id        uuid PRIMARY KEY,
  tenant_id           uuid NOT NULL,
  agent_id            uuid NOT NULL,
  task_type           text NOT NULL,
  cell                text,
  decision_rule       text NOT NULL,
  policy_version      text NOT NULL,
  ruleset_hash        text NOT NULL,
  min_quality         numeric NOT NULL,
  chosen_model_slug   text,
  provider            text,
  cost_projected      numeric(20,9),
  cost_actual         numeric(20,9),
  observed_latency_ms integer,
  ttft_ms             integer,
  outcome_status      text NOT NULL,
  fallback_chain      jsonb NOT NULL,
  decision            jsonb NOT NULL,
  input_tokens        integer,
  output_tokens       integer,
  created_at          timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT routing_outcomes_outcome_status_check CHECK (outcome_status IN (
    'succeeded', 'rejected_floor', 'rejected_not_enrolled', 'rejected_cap', 'rejected_funds',
    'failed_provider', 'failed_midstream', 'cancelled', 'expired'))
);
CREATE INDEX routing_outcomes_agent_id_idx ON routing_outcomes (agent_id, created_at);
CREATE INDEX routing_outcomes_tenant_id_idx ON routing_outcomes (tenant_id, created_at);

CREATE TABLE receipts (
  receipt_id         uuid PRIMARY KEY,
  inference_id       uuid NOT NULL CONSTRAINT receipts_inference_id_key UNIQUE,
  tenant_id          uuid NOT NULL,
  agent_id           uuid NOT NULL,
  cost_usd           numeric(20,9) NOT NULL,
  input_tokens       integer NOT NULL,
  output_tokens      integer NOT NULL,
  cache_read_tokens  integer NOT NULL,
  cache_write_tokens integer NOT NULL,
  usage_estimated    boolean NOT NULL,
  model_used         text NOT NULL,
  model_slug         text NOT NULL,
  provider           text NOT NULL,
  simulated          boolean NOT NULL,
  created_at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX receipts_agent_id_idx ON receipts (agent_id, created_at);
CREATE INDEX receipts_tenant_id_idx ON receipts (tenant_id, created_at);

-- The end of each agent's chain; its row lock is what makes the chain one line.
CREATE TABLE audit_heads (
  agent_id uuid PRIMARY KEY,
  seq      bigint NOT NULL,
  hash     text
) WITH (fillfactor = 50);

-- `payload` is the canonical JSON text, byte for byte what was hashed.
CREATE TABLE audit_events (
  id            uuid NOT NULL DEFAULT new_id(),
  agent_id      uuid NOT NULL,
  tenant_id     uuid NOT NULL,
  seq           bigint NOT NULL,
  event_type    text NOT NULL,
  payload       text NOT NULL,
  previous_hash text,
  event_hash    text NOT NULL,
  created_at    timestamptz NOT NULL,
  PRIMARY KEY (agent_id, seq)
);
CREATE INDEX audit_events_created_at_idx ON audit_events (created_at);

-- Prices are US dollars per million tokens.
CREATE TABLE models (
  slug              text PRIMARY KEY,
  brand             text NOT NULL,
  provider          text NOT NULL,
  provider_model_id text NOT NULL,
  display_name      text NOT NULL,
  vendor_created_at timestamptz,
  context_window    integer NOT NULL,
  max_output_tokens integer NOT NULL,
  price_in          numeric(20,9),
  price_out         numeric(20,9),
  price_cache_read  numeric(20,9),
  price_cache_write numeric(20,9),
  q_prior           numeric,
  verdict           text,
  capabilities      text[] NOT NULL DEFAULT '{}',
  aa_index_source   text,
  active            boolean NOT NULL DEFAULT true,
  updated_at        timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT models_verdict_check CHECK (verdict IN ('PASS', 'CONDITIONAL', 'VETO'))
);

CREATE TABLE catalog_snapshots (
  hash       text PRIMARY KEY,
  models     jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
