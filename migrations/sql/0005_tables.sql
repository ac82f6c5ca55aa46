-- A call that cannot be finished keeps its request until an operator replays or discards it, or
-- until it expires. `envelope` is sealed (AES-GCM) by the application and is gone once the call has
-- ended. Tenant and agent are unknown only where the envelope itself could not be read.
CREATE TABLE dead_letters (
  inference_id  uuid PRIMARY KEY,
  tenant_id     uuid,
  agent_id      uuid,
  dialect       text NOT NULL,
  model         text NOT NULL,
  envelope      bytea,
  error_code    text NOT NULL,
  error_message text NOT NULL,
  attempts      integer NOT NULL,
  failures      jsonb NOT NULL,
  state         text NOT NULL DEFAULT 'dead',
  died_at       timestamptz NOT NULL DEFAULT now(),
  expires_at    timestamptz NOT NULL,
  resolved_at   timestamptz,
  resolved_by   text,
  CONSTRAINT dead_letters_state_check
    CHECK (state IN ('dead', 'replayed', 'discarded', 'expired')),
  CONSTRAINT dead_letters_resolved_check CHECK ((state = 'dead') = (resolved_at IS NULL)),
  CONSTRAINT dead_letters_envelope_check
    CHECK (state IN ('dead', 'replayed') OR envelope IS NULL)
);
CREATE INDEX dead_letters_died_at_idx ON dead_letters (died_at);
CREATE INDEX dead_letters_tenant_id_idx ON dead_letters (tenant_id, died_at);
CREATE INDEX dead_letters_expires_at_idx ON dead_letters (expires_at) WHERE state = 'dead';
CREATE INDEX dead_letters_under_way_idx ON dead_letters (resolved_at)
  WHERE state = 'replayed' AND envelope IS NOT NULL;

-- What operators did; who reads it need not believe them.
CREATE TABLE operator_events (
  id     uuid PRIMARY KEY DEFAULT new_id(),
  at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor  text NOT NULL,
  act    text NOT NULL,
  target text NOT NULL,
  detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX operator_events_at_idx ON operator_events (at);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_events
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE operator_events ENABLE ALWAYS TRIGGER append_only;

-- One row per engagement. `scope` is `all` or a tenant's id; what was spent and what was allowed
-- are known where a threshold engaged it, not where an operator did.
CREATE TABLE killswitches (
  id            uuid PRIMARY KEY DEFAULT new_id(),
  scope         text NOT NULL,
  engaged_at    timestamptz NOT NULL DEFAULT now(),
  engaged_by    text NOT NULL,
  reason        text NOT NULL DEFAULT '',
  spent_usd     numeric(20,9),
  threshold_usd numeric(20,9),
  released_at   timestamptz,
  released_by   text,
  CONSTRAINT killswitches_scope_check
    CHECK (scope = 'all' OR scope ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'),
  CONSTRAINT killswitches_released_check CHECK ((released_at IS NULL) = (released_by IS NULL))
);
CREATE UNIQUE INDEX killswitches_engaged_key ON killswitches (scope) WHERE released_at IS NULL;

GRANT SELECT, INSERT ON dead_letters, operator_events, killswitches TO ainfera_app;
GRANT UPDATE ON dead_letters, killswitches TO ainfera_app;

ALTER TABLE inferences DROP CONSTRAINT inferences_state_check;
ALTER TABLE inferences ADD CONSTRAINT inferences_state_check
  CHECK (state IN ('held', 'settled', 'refused', 'dead'));
