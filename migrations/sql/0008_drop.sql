DROP TABLE killswitch_calls, killswitch_thresholds;
DROP INDEX audit_events_failures_idx, routing_outcomes_exceptions_idx, inferences_tenant_id_idx,
  inferences_agent_id_idx;
CREATE INDEX inferences_agent_id_idx ON inferences (agent_id, created_at);
CREATE INDEX inferences_tenant_id_idx ON inferences (tenant_id, created_at);
