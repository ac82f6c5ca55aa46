REVOKE UPDATE (min_quality) ON agents FROM ainfera_caller;
ALTER TABLE models DROP COLUMN q_prior_source, DROP COLUMN q_prior_date;
