-- What can be told of an answer without a judge; one row for each routed call that a provider
-- answered or failed at. No word of the answer is in it. The books worker writes it, after the
-- call: `model` is the model that was asked last, `failed_models` were asked before it, in vain.
CREATE TABLE routing_rewards (
  inference_id  uuid PRIMARY KEY,
  tenant_id     uuid NOT NULL,
  task_type     text NOT NULL,
  band          text NOT NULL,
  model         text NOT NULL,
  failed_models text[] NOT NULL DEFAULT '{}',
  finish        text NOT NULL,
  code          text NOT NULL,
  json          text NOT NULL,
  tools         text NOT NULL,
  note          text,
  checked       boolean NOT NULL,
  reward        smallint,
  ended_at      timestamptz NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT routing_rewards_finish_check CHECK (
    finish IN ('by_itself', 'cut_off', 'filtered', 'error', 'cancelled', 'unknown')),
  CONSTRAINT routing_rewards_checks_check CHECK (
    ARRAY[code, json, tools] <@ ARRAY['none', 'passed', 'failed', 'not_checked']),
  CONSTRAINT routing_rewards_note_check CHECK (
    note IN ('gone', 'too_large', 'too_hard', 'unreadable')),
  CONSTRAINT routing_rewards_reward_check CHECK (reward IN (0, 1))
);
CREATE INDEX routing_rewards_ended_at_idx ON routing_rewards (ended_at);
SELECT bind_to_tenant('routing_rewards');

-- The books worker looks for new outcomes by time. The table only grows, so this index is a line
-- for many pages, and a settlement next to never writes to it.
CREATE INDEX routing_outcomes_created_at_idx ON routing_outcomes
  USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);

-- Qualities as they were estimated from rewards, over all tenants; `terms` is what with. The newest
-- version counts, for policies that ask for it.
CREATE TABLE quality_snapshots (
  version    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  terms      jsonb NOT NULL,
  cells      jsonb NOT NULL,
  hash       text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['routing_rewards', 'quality_snapshots'] LOOP
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I
                    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', name);
  END LOOP;
END $$;

GRANT SELECT, INSERT ON routing_rewards, quality_snapshots TO ainfera_app;
