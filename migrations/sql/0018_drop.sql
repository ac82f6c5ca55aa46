ALTER TABLE models DROP COLUMN q_prior_source, DROP COLUMN q_prior_date;
