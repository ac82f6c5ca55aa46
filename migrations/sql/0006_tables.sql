-- Every account of the books by name: what providers cost, margin, and a clearing account for
-- each rail. The accounts of the system have fixed ids, so an account's kind is known from its id
-- alone, and a constraint can say which kind of transfer may join which two accounts, without a
-- lookup. Not in SQL: each statement that meets the constraint would expand it anew, for longer
-- than all the rest of a settlement takes.
CREATE FUNCTION account_kind(id uuid) RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
RETURN CASE id
  WHEN '00000000-0000-0000-0000-000000000001'::uuid THEN 'provider_cost'
  WHEN '00000000-0000-0000-0000-000000000002'::uuid THEN 'grants'
  WHEN '00000000-0000-0000-0000-000000000003'::uuid THEN 'topups'
  WHEN '00000000-0000-0000-0000-000000000004'::uuid THEN 'losses'
  WHEN '00000000-0000-0000-0000-000000000005'::uuid THEN 'margin'
  WHEN '00000000-0000-0000-0000-000000000006'::uuid THEN 'clearing'
  WHEN '00000000-0000-0000-0000-000000000007'::uuid THEN 'clearing'
  WHEN '00000000-0000-0000-0000-000000000008'::uuid THEN 'clearing'
  ELSE 'wallet' END;
END $$;

-- The rule is `ROUTES` in shared/domain/ledger.py. A correction goes the way back of whatever it
-- corrects, which `check_correction` sees to.
CREATE FUNCTION transfer_fits(kind text, debit uuid, credit uuid) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
RETURN CASE kind
  WHEN 'usage' THEN account_kind(debit) = 'wallet' AND account_kind(credit) = 'provider_cost'
  WHEN 'writeoff' THEN account_kind(debit) = 'losses' AND account_kind(credit) = 'provider_cost'
  WHEN 'grant' THEN account_kind(debit) = 'grants' AND account_kind(credit) = 'wallet'
  WHEN 'grant_return' THEN account_kind(debit) = 'wallet' AND account_kind(credit) = 'grants'
  WHEN 'topup' THEN account_kind(debit) IN ('topups', 'clearing')
    AND account_kind(credit) = 'wallet'
  WHEN 'margin' THEN account_kind(debit) = 'wallet' AND account_kind(credit) = 'margin'
  WHEN 'refund' THEN account_kind(debit) IN ('provider_cost', 'margin')
      AND account_kind(credit) = 'wallet'
    OR account_kind(debit) = 'wallet' AND account_kind(credit) = 'clearing'
  WHEN 'correction' THEN true
  ELSE false END;
END $$;

ALTER TABLE accounts DROP CONSTRAINT accounts_kind_check;
UPDATE accounts SET kind = 'provider_cost' WHERE kind = 'usage';
INSERT INTO accounts (id, kind) VALUES
  ('00000000-0000-0000-0000-000000000005', 'margin'),
  ('00000000-0000-0000-0000-000000000006', 'clearing'),
  ('00000000-0000-0000-0000-000000000007', 'clearing'),
  ('00000000-0000-0000-0000-000000000008', 'clearing');
-- What every call writes passes by a comparison or two; all else asks the functions.
ALTER TABLE accounts ADD CONSTRAINT accounts_kind_check CHECK (
  kind = 'wallet' AND id > '00000000-0000-0000-0000-0000000000ff' OR kind = account_kind(id));

ALTER TABLE transfers ADD COLUMN corrects uuid;
ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check,
  DROP CONSTRAINT transfers_inference_id_kind_key;
ALTER TABLE transfers
  ADD CONSTRAINT transfers_kind_check CHECK (
    kind = 'usage' AND credit_account = '00000000-0000-0000-0000-000000000001'
      AND debit_account > '00000000-0000-0000-0000-0000000000ff'
    OR transfer_fits(kind, debit_account, credit_account)),
  ADD CONSTRAINT transfers_corrects_check CHECK ((kind = 'correction') = (corrects IS NOT NULL));
-- A call is charged once and written off once; it may be corrected more than once.
CREATE UNIQUE INDEX transfers_inference_id_kind_key ON transfers
  (inference_id, (NULLIF(kind, 'correction')));
CREATE INDEX transfers_corrects_idx ON transfers (corrects) WHERE corrects IS NOT NULL;

-- Whoever writes a correction: it names a transfer, goes exactly its way back, and all corrections
-- of a transfer together are never more than it moved.
CREATE FUNCTION check_correction() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  original transfers;
  before   numeric;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(NEW.corrects::text, 0));
  SELECT t.* INTO original FROM transfers t WHERE t.id = NEW.corrects;
  SELECT coalesce(sum(t.amount), 0) INTO before FROM transfers t WHERE t.corrects = NEW.corrects;
  IF original.id IS NULL
     OR (NEW.tenant_id, NEW.debit_account, NEW.credit_account)
        <> (original.tenant_id, original.credit_account, original.debit_account)
     OR NEW.inference_id IS DISTINCT FROM original.inference_id
     OR before + NEW.amount > original.amount THEN
    RAISE EXCEPTION 'a correction goes the way back of a transfer, and never takes back more'
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER correction_fits BEFORE INSERT ON transfers FOR EACH ROW
  WHEN (NEW.corrects IS NOT NULL) EXECUTE FUNCTION check_correction();
ALTER TABLE transfers ENABLE ALWAYS TRIGGER correction_fits;

-- By which rule a call was billed, on what grounds, and how it ended; unknown of older receipts.
ALTER TABLE receipts ADD COLUMN billing_rule text, ADD COLUMN billing_basis text,
  ADD COLUMN outcome text;
ALTER TABLE receipts ADD CONSTRAINT receipts_billing_basis_check
  CHECK (billing_basis IN ('provider_usage', 'estimate', 'none'));

ALTER TABLE tenants ADD COLUMN daily_cap_usd numeric(20,9)
  CONSTRAINT tenants_daily_cap_usd_check CHECK (daily_cap_usd >= 0);

-- Which session of the client's, and which of the client's own agents, a call was made for.
CREATE TABLE call_attributions (
  inference_id    uuid PRIMARY KEY,
  tenant_id       uuid NOT NULL,
  agent_id        uuid NOT NULL,
  session_id      text,
  client_agent_id text,
  parent_agent_id text,
  created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX call_attributions_tenant_id_idx ON call_attributions (tenant_id, created_at);
CREATE INDEX call_attributions_session_id_idx ON call_attributions (tenant_id, session_id)
  WHERE session_id IS NOT NULL;

-- Settled, held and available apart, and what is held as the pending transfers that it is: each is
-- posted or voided once, and then it is no longer here.
CREATE VIEW wallets WITH (security_invoker = true) AS
  SELECT a.id AS account_id, a.tenant_id, a.agent_id, a.balance AS settled, a.held,
         a.balance - a.held AS available
    FROM accounts a WHERE a.kind = 'wallet';
CREATE VIEW holds WITH (security_invoker = true) AS
  SELECT i.id AS pending_id, i.tenant_id, i.agent_id, a.id AS debit_account,
         '00000000-0000-0000-0000-000000000001'::uuid AS credit_account, i.hold_usd AS amount,
         i.attempt, i.model, i.created_at, i.hold_expires_at AS expires_at
    FROM inferences i JOIN accounts a ON a.agent_id = i.agent_id
   WHERE i.state = 'held';

GRANT SELECT, INSERT ON call_attributions TO ainfera_app;
GRANT SELECT ON wallets, holds TO ainfera_app;

-- A server may be set to answer before a commit is on the disk. What is told of money must be true
-- after a crash, so whoever writes money says this first; it holds until the transaction ends.
CREATE FUNCTION commit_durably() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
END $$;
