-- The role stays: other databases of the same server may use it.
DROP FUNCTION open_inferences(jsonb), extend_hold(uuid, int, numeric), settle_inferences(jsonb),
  append_audit(jsonb), transfer_funds(uuid, uuid, uuid, numeric, text, text), expire_grants(int),
  chain_events(audit_draft[]);
DROP TYPE audit_draft;
DROP VIEW ledger_entries;
DROP TABLE catalog_snapshots, models, audit_events, audit_heads, receipts, routing_outcomes,
  inferences, transfers, accounts, api_keys, agents, tenants;
DROP FUNCTION refuse_change(), new_id();
REVOKE ALL ON alembic_version FROM ainfera_app;
