-- Calls are counted on the day they end, because that is when money moves. Nothing looks for calls
-- by when they began, so these two take the place of indexes by that; an open call is in neither.
DROP INDEX inferences_tenant_id_idx, inferences_agent_id_idx;
CREATE INDEX inferences_tenant_id_idx ON inferences (tenant_id, settled_at)
  WHERE settled_at IS NOT NULL;
CREATE INDEX inferences_agent_id_idx ON inferences (agent_id, settled_at)
  WHERE settled_at IS NOT NULL;

-- The calls that did not go as planned are few; only they are written here. A decision is wide, so
-- a count that had to look into every one would read a hundred times as much.
CREATE INDEX routing_outcomes_exceptions_idx ON routing_outcomes (tenant_id, created_at)
  WHERE outcome_status <> 'succeeded' OR fallback_chain <> '[]'::jsonb;
CREATE INDEX audit_events_failures_idx ON audit_events (tenant_id, created_at)
  WHERE event_type IN ('provider.failed', 'inference.rejected_cap_violation');

-- How much a scope (`all`, or a tenant's id) may spend in the window before the killswitch engages
-- by itself. It wins over the settings; without an amount there is no threshold for this scope.
CREATE TABLE killswitch_thresholds (
  scope         text PRIMARY KEY,
  threshold_usd numeric(20,9),
  set_at        timestamptz NOT NULL DEFAULT now(),
  set_by        text NOT NULL,
  CONSTRAINT killswitch_thresholds_scope_check
    CHECK (scope = 'all' OR scope ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'),
  CONSTRAINT killswitch_thresholds_threshold_check CHECK (threshold_usd > 0)
);

-- Calls that held money when a switch was engaged, or when it was released: those that were under
-- way. What became of them stands with the calls themselves.
CREATE TABLE killswitch_calls (
  killswitch_id uuid NOT NULL REFERENCES killswitches,
  inference_id  uuid NOT NULL,
  tenant_id     uuid NOT NULL,
  held_usd      numeric(20,9) NOT NULL,
  PRIMARY KEY (killswitch_id, inference_id)
);

GRANT SELECT, INSERT ON killswitch_thresholds, killswitch_calls TO ainfera_app;
GRANT UPDATE, DELETE ON killswitch_thresholds TO ainfera_app;
