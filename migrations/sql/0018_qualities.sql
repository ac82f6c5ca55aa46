-- Who says that a model has its quality, and when that was last looked at. Rows have neither until a
-- catalogue's file that says it is seeded or applied.
ALTER TABLE models ADD COLUMN q_prior_source text, ADD COLUMN q_prior_date date;

-- A tenant sets the floors of its agents.
GRANT UPDATE (min_quality) ON agents TO ainfera_caller;
