-- Move money between a wallet and a system account: grants, top-ups, refunds. Idempotent by the
-- transfer's id. `balance` is the wallet's, after the transfer. A kind of transfer that may not
-- join the two accounts is an error: no caller of ours asks for one.
-- result: CREATED | EXISTS | EXISTS_WITH_DIFFERENT_AMOUNT | INSUFFICIENT_FUNDS | ACCOUNT_UNKNOWN
CREATE OR REPLACE FUNCTION transfer_funds(p_id uuid, p_debit uuid, p_credit uuid, p_amount numeric,
                               p_kind text, p_memo text DEFAULT NULL)
RETURNS TABLE (result text, balance numeric) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  moved   numeric(20,9) := p_amount;
  debit   accounts;
  credit  accounts;
  known   transfers;
BEGIN
  PERFORM commit_durably();
  -- Only wallets are locked: a system account has no balance to protect.
  PERFORM 1 FROM accounts a
    WHERE a.id IN (p_debit, p_credit) AND a.kind = 'wallet' ORDER BY a.id FOR UPDATE;
  SELECT a.* INTO debit FROM accounts a WHERE a.id = p_debit;
  SELECT a.* INTO credit FROM accounts a WHERE a.id = p_credit;
  SELECT t.* INTO known FROM transfers t WHERE t.id = p_id;
  balance := CASE WHEN debit.kind = 'wallet' THEN debit.balance ELSE credit.balance END;
  IF debit.id IS NULL OR credit.id IS NULL THEN
    result := 'ACCOUNT_UNKNOWN';
  ELSIF known.id IS NOT NULL THEN
    result := CASE WHEN (known.debit_account, known.credit_account, known.amount, known.kind)
                      = (p_debit, p_credit, moved, p_kind)
                   THEN 'EXISTS' ELSE 'EXISTS_WITH_DIFFERENT_AMOUNT' END;
  ELSIF debit.kind = 'wallet' AND debit.balance - debit.held < moved THEN
    result := 'INSUFFICIENT_FUNDS';
  ELSE
    result := 'CREATED';
    INSERT INTO transfers (id, tenant_id, debit_account, credit_account, amount, kind, memo,
                           debit_balance_after, credit_balance_after)
    VALUES (p_id, coalesce(debit.tenant_id, credit.tenant_id), p_debit, p_credit, moved, p_kind,
            p_memo,
            CASE WHEN debit.kind = 'wallet' THEN debit.balance - moved END,
            CASE WHEN credit.kind = 'wallet' THEN credit.balance + moved END);
    UPDATE accounts a
       SET balance = a.balance + CASE WHEN a.id = p_credit THEN moved ELSE -moved END
     WHERE a.id IN (p_debit, p_credit) AND a.kind = 'wallet';
    balance := balance + CASE WHEN debit.kind = 'wallet' THEN -moved ELSE moved END;
  END IF;
  RETURN NEXT;
END $$;

-- Take back what is left of grants that are over, by date or by number of calls. Usage consumes
-- a grant before anything else. What running calls hold is taken back once they have ended: the
-- grant stays marked until nothing is left of it. Returns what each wallet gave back.
CREATE OR REPLACE FUNCTION expire_grants(most int DEFAULT 500)
RETURNS TABLE (agent_id uuid, tenant_id uuid, returned numeric, balance numeric)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  grants_account CONSTANT uuid := '00000000-0000-0000-0000-000000000002';
  w        accounts;
  owed     numeric(20,9);
  move     uuid;
BEGIN
  PERFORM commit_durably();
  FOR w IN
    SELECT a.* FROM accounts a
     WHERE a.grant_expires_at IS NOT NULL
       AND (a.grant_expires_at <= clock_timestamp() OR a.grant_inferences_left = 0)
       AND (a.held = 0 OR a.balance > a.held)
     ORDER BY a.id LIMIT most FOR UPDATE SKIP LOCKED
  LOOP
    -- By where the money went, not by the kind of transfer: a correction counts for what it undoes.
    SELECT greatest(0, coalesce(sum(CASE WHEN t.credit_account = w.id THEN t.amount
                                         ELSE -t.amount END), 0))
      INTO owed FROM transfers t
     WHERE t.credit_account = w.id
           AND account_kind(t.debit_account) IN ('grants', 'provider_cost', 'margin')
        OR t.debit_account = w.id
           AND account_kind(t.credit_account) IN ('grants', 'provider_cost', 'margin');
    returned := least(owed, w.balance - w.held);
    balance := w.balance - returned;
    agent_id := w.agent_id;
    tenant_id := w.tenant_id;
    IF returned > 0 THEN
      INSERT INTO transfers (tenant_id, debit_account, credit_account, amount, kind, memo,
                             debit_balance_after)
      VALUES (w.tenant_id, w.id, grants_account, returned, 'grant_return',
              'preview grant over', balance);
      RETURN NEXT;
    END IF;
    UPDATE accounts a
       SET balance = a.balance - returned,
           grant_inferences_left = 0,
           grant_expires_at = CASE WHEN returned < owed THEN a.grant_expires_at END
     WHERE a.id = w.id;
  END LOOP;
END $$;

-- Take a transfer back, wholly or in part, by another one that goes its way back. Nothing is ever
-- edited. Idempotent by `p_id`. `p_amount` NULL: all that is left of it. The rule is `correct` in
-- shared/domain/ledger.py.
-- result: CREATED | EXISTS | EXISTS_WITH_DIFFERENT_AMOUNT | TRANSFER_UNKNOWN | EXCEEDS_TRANSFER |
--         INSUFFICIENT_FUNDS (the wallet that would give the money back has it no more)
-- `amount` is what was asked for, `remaining` what can still be taken back, `balance` the wallet's,
-- `agent_id` and `tenant_id` whose books it is in, agent null where no call and no wallet is meant.
CREATE FUNCTION correct_transfer(p_id uuid, p_corrects uuid, p_amount numeric,
                                 p_memo text DEFAULT NULL)
RETURNS TABLE (result text, amount numeric, remaining numeric, balance numeric, agent_id uuid,
               tenant_id uuid)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  original transfers;
  known    transfers;
  wallet   accounts;
BEGIN
  PERFORM commit_durably();
  -- those of one transfer one after the other: there may be no wallet to wait for
  PERFORM pg_advisory_xact_lock(hashtextextended(p_corrects::text, 0));
  SELECT t.* INTO original FROM transfers t WHERE t.id = p_corrects;
  SELECT a.* INTO wallet FROM accounts a
   WHERE a.id IN (original.debit_account, original.credit_account) AND a.kind = 'wallet' FOR UPDATE;
  SELECT t.* INTO known FROM transfers t WHERE t.id = p_id;
  SELECT original.amount - coalesce(sum(t.amount), 0) INTO remaining
    FROM transfers t WHERE t.corrects = p_corrects;
  amount := coalesce(p_amount, known.amount, remaining)::numeric(20,9);
  balance := wallet.balance;
  tenant_id := original.tenant_id;
  agent_id := coalesce(wallet.agent_id,
    (SELECT i.agent_id FROM inferences i WHERE i.id = original.inference_id));
  IF original.id IS NULL THEN
    result := 'TRANSFER_UNKNOWN';
  ELSIF known.id IS NOT NULL THEN
    result := CASE WHEN (known.corrects, known.amount) = (p_corrects, amount)
                   THEN 'EXISTS' ELSE 'EXISTS_WITH_DIFFERENT_AMOUNT' END;
  ELSIF amount > remaining OR remaining = 0 THEN
    result := 'EXCEEDS_TRANSFER';
  ELSIF wallet.id = original.credit_account AND wallet.balance - wallet.held < amount THEN
    result := 'INSUFFICIENT_FUNDS';
  ELSE
    result := 'CREATED';
    balance := wallet.balance
      + CASE WHEN wallet.id = original.debit_account THEN amount ELSE -amount END;
    INSERT INTO transfers (id, tenant_id, debit_account, credit_account, amount, kind,
                           inference_id, memo, corrects, debit_balance_after, credit_balance_after)
    VALUES (p_id, original.tenant_id, original.credit_account, original.debit_account, amount,
            'correction', original.inference_id, p_memo, p_corrects,
            CASE WHEN wallet.id = original.credit_account THEN balance END,
            CASE WHEN wallet.id = original.debit_account THEN balance END);
    UPDATE accounts a SET balance = correct_transfer.balance WHERE a.id = wallet.id;
    remaining := remaining - amount;
  END IF;
  RETURN NEXT;
END $$;
