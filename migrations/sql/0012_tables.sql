-- What a CONDITIONAL brand asks of a request: {opt_in, data_class[], region[], tenant[]}. A word that
-- the rule does not know would be a condition that nobody looks at.
ALTER TABLE models
  ADD COLUMN conditions jsonb,
  ADD COLUMN expected_latency_ms integer,
  ADD CONSTRAINT models_conditions_check CHECK (
    conditions IS NULL OR verdict = 'CONDITIONAL' AND jsonb_typeof(conditions) = 'object'
    AND conditions <> '{}'
    AND conditions - ARRAY['opt_in', 'data_class', 'region', 'tenant'] = '{}');

-- How long a model took of late, over the calls of all tenants: it belongs to nobody. Rows that were
-- not measured again are as if they were not there.
CREATE TABLE model_latencies (
  slug        text PRIMARY KEY,
  p95_ms      integer NOT NULL,
  samples     integer NOT NULL,
  measured_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT model_latencies_p95_ms_check CHECK (p95_ms >= 0)
);
GRANT SELECT, INSERT, UPDATE ON model_latencies TO ainfera_app;
GRANT SELECT ON model_latencies TO ainfera_caller;

-- The newest answers of a model, without reading those of the others. Only answers of the model that
-- was chosen: after a fallback, the row names the first and timed the last.
CREATE INDEX routing_outcomes_latency_idx ON routing_outcomes (chosen_model_slug, created_at)
  WHERE outcome_status = 'succeeded' AND fallback_chain = '[]';
