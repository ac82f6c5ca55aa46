-- What the killswitch's thresholds are held against, so that a hold need not read a whole window.
-- `settled_usd` is what a scope settled from `counted_from` on and before `counted_to`; the rest of
-- the window is read from the transfers. `at_most_usd` is no less than what the scope settled in the
-- window and holds now: holds raise it, nothing lowers it but a new count. A settlement never adds
-- more than it releases, so it need not be told. NULL is not known: a hold for which the scope has
-- no threshold makes it so. It is known for a window of `at_most_window_s`, and for shorter ones.
CREATE TABLE killswitch_window (
  single       boolean PRIMARY KEY DEFAULT true,
  counted_from timestamptz NOT NULL DEFAULT now(),
  counted_to   timestamptz NOT NULL DEFAULT now(),
  next_to      timestamptz,
  next_xid     bigint,
  CONSTRAINT killswitch_window_single_check CHECK (single),
  CONSTRAINT killswitch_window_counted_check CHECK (counted_from <= counted_to),
  CONSTRAINT killswitch_window_next_check CHECK ((next_to IS NULL) = (next_xid IS NULL))
);
INSERT INTO killswitch_window DEFAULT VALUES;

CREATE TABLE killswitch_spent (
  scope       text PRIMARY KEY,
  -- sums over all wallets: they may be larger than any amount
  settled_usd numeric NOT NULL DEFAULT 0,
  at_most_usd numeric,
  at_most_window_s int,
  CONSTRAINT killswitch_spent_scope_check
    CHECK (scope = 'all' OR scope ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')
);

ALTER TABLE killswitches ALTER spent_usd TYPE numeric;

-- When a dead call that was replayed held money again: it counts as one that began then.
ALTER TABLE dead_letters ADD held_again_at timestamptz;

GRANT SELECT, UPDATE ON killswitch_window TO ainfera_app;
GRANT SELECT, INSERT, UPDATE ON killswitch_spent TO ainfera_app;

-- A scope with a threshold while money is held: what it may spend, what counts against it at most,
-- what was added since that was known, and whether it was counted anew.
CREATE TYPE killswitch_scope AS (
  scope text, threshold_usd numeric, at_most_usd numeric, added_usd numeric, exact boolean
);
