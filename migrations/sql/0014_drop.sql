DROP TABLE quality_snapshots, routing_rewards;
DROP INDEX routing_outcomes_created_at_idx;
