-- How far the captures of ended calls have been compared with their calls, and what was found.
-- One row: nobody can forget to look at the other one.
CREATE TABLE capture_guard (
  only_one      boolean PRIMARY KEY DEFAULT true,
  checked_until timestamptz NOT NULL DEFAULT now() - interval '1 day',
  checked       bigint NOT NULL DEFAULT 0,
  uncaptured    bigint NOT NULL DEFAULT 0,
  overcaptured  bigint NOT NULL DEFAULT 0,
  CONSTRAINT capture_guard_only_one_check CHECK (only_one)
);
INSERT INTO capture_guard DEFAULT VALUES;
GRANT SELECT, UPDATE ON capture_guard TO ainfera_app;

-- The calls that ended in some minute, whoever's they are. Calls end about in the order in which
-- their rows lie, so a summary of page ranges finds them, and costs a call next to nothing.
CREATE INDEX inferences_settled_at_idx ON inferences USING brin (settled_at)
  WITH (pages_per_range = 32, autosummarize = on);

-- `fleet catalog apply` brings new models into a running fleet, as the role that runs it.
GRANT INSERT ON models TO ainfera_app;
