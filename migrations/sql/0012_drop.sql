-- The verdict CONDITIONAL means opting in there: a brand that asks for more must not lose it.
DO $$
BEGIN
  IF EXISTS (SELECT FROM models WHERE active AND conditions - 'opt_in' <> '{}') THEN
    RAISE EXCEPTION 'there are active models with conditions that the older schema has no word for'
      USING ERRCODE = 'check_violation',
            HINT = 'Take them out: UPDATE models SET active = false WHERE …';
  END IF;
END $$;

DROP INDEX routing_outcomes_latency_idx;
DROP TABLE model_latencies;
ALTER TABLE models
  DROP CONSTRAINT models_conditions_check, DROP COLUMN conditions, DROP COLUMN expected_latency_ms;
