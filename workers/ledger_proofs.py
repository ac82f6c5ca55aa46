"""The table of proofs: what must be true of the tables wherever money is concerned.

The words of a proof are read by operators and auditors; its SQL is the same in the command, in
the tests and in the fault suite. `wrong` must be true, false or null, and null counts as true.
Transfers are folded here from their own two columns, not through the view `ledger_entries`, so
that a view which was replaced proves nothing.
"""

from shared.domain.books import Proof
from shared.domain.ledger import ROUTES, TransferKind
from workers.ledger_proofs_calls import CALL_PROOFS
from workers.ledger_proofs_scope import of_day, of_tenant

# An entry counts where its account is known and is the tenant's, or the system's: money that went
# to nobody, or to somebody else, is missing on one side.
_ENTRIES = f"""
  FROM transfers t
 CROSS JOIN LATERAL (VALUES (t.debit_account, -t.amount), (t.credit_account, t.amount))
       AS e (account_id, amount)
  JOIN accounts a ON a.id = e.account_id AND (a.tenant_id = t.tenant_id OR a.tenant_id IS NULL)
 WHERE {of_tenant("t")} AND {of_day("t.created_at")}
"""
_DEBITS = "coalesce(sum(-e.amount) FILTER (WHERE e.amount < 0), 0)"
_CREDITS = "coalesce(sum(e.amount) FILTER (WHERE e.amount > 0), 0)"


def _balanced(key: str, more: str = "") -> str:
    return f"""
SELECT {key} AS id, {_DEBITS} AS amount, {_DEBITS} <> {_CREDITS} AS wrong,
       format('debits %s, credits %s', {_DEBITS}, {_CREDITS}) AS detail
{_ENTRIES}{more}"""


# A kind that is not among them has no rule, and is wrong until somebody has written one.
_ROUTES = ", ".join(
    f"('{kind}', '{left}', '{entered}')"
    for kind, routes in ROUTES.items()
    for left, entered in sorted(routes)
)

TRANSFER_PROOFS = (
    Proof(
        "debits_equal_credits",
        "In total, debits equal credits.",
        "trial balance",
        _balanced("'total'"),
    ),
    Proof(
        "debits_equal_credits_per_tenant",
        "Of each tenant, debits equal credits.",
        "tenants",
        _balanced("t.tenant_id::text", " GROUP BY t.tenant_id"),
    ),
    Proof(
        "debits_equal_credits_per_day",
        "Of each day (UTC), debits equal credits.",
        "days",
        _balanced(
            "(t.created_at AT TIME ZONE 'UTC')::date::text",
            " GROUP BY (t.created_at AT TIME ZONE 'UTC')::date",
        ),
    ),
    Proof(
        "debits_equal_credits_per_inference",
        "Of each inference, debits equal credits.",
        "inferences",
        _balanced(
            "t.inference_id::text", " AND t.inference_id IS NOT NULL GROUP BY t.inference_id"
        ),
    ),
    Proof(
        "transfers_move_money",
        "Every transfer moves a positive, finite amount from one account to another.",
        "transfers",
        # NaN is greater than any number to Postgres, and equal to itself
        f"""
SELECT t.id::text AS id, t.amount, t.amount <= 0 OR t.amount >= 'Infinity'
         OR t.debit_account = t.credit_account AS wrong,
       format('%s from %s to %s', t.amount, t.debit_account, t.credit_account) AS detail
  FROM transfers t WHERE {of_tenant("t")} AND {of_day("t.created_at")}""",
    ),
    Proof(
        "transfers_stay_with_their_tenant",
        "Both accounts of a transfer exist, and each is its tenant's or the system's.",
        "transfers",
        f"""
SELECT t.id::text AS id, t.amount, d.id IS NULL OR c.id IS NULL
         OR coalesce(d.tenant_id, t.tenant_id) <> t.tenant_id
         OR coalesce(c.tenant_id, t.tenant_id) <> t.tenant_id AS wrong,
       format('from %s of %s to %s of %s', d.id, d.tenant_id, c.id, c.tenant_id) AS detail
  FROM transfers t
  LEFT JOIN accounts d ON d.id = t.debit_account
  LEFT JOIN accounts c ON c.id = t.credit_account
 WHERE {of_tenant("t")} AND {of_day("t.created_at")}""",
    ),
    Proof(
        "transfers_are_of_allowed_kinds",
        "Every transfer is between the kinds of accounts that its own kind allows.",
        "transfers",
        f"""
SELECT t.id::text AS id, t.amount, NOT EXISTS (
         SELECT FROM (VALUES {_ROUTES}) AS r (kind, debit, credit)
          WHERE (r.kind, r.debit, r.credit) = (t.kind, d.kind, c.kind)) AS wrong,
       format('%s from %s to %s', t.kind, d.kind, c.kind) AS detail
  FROM transfers t
  JOIN accounts d ON d.id = t.debit_account
  JOIN accounts c ON c.id = t.credit_account
 WHERE t.corrects IS NULL AND {of_tenant("t")} AND {of_day("t.created_at")}""",
    ),
    Proof(
        "corrections_go_back_and_no_further",
        "A correction goes its transfer's way back; all of one take back no more than it moved.",
        "corrected transfers",
        f"""
SELECT c.corrects::text AS id, sum(c.amount) AS amount,
       count(t.id) < count(*) OR sum(c.amount) > max(t.amount)
         OR bool_or((c.kind, c.tenant_id, c.debit_account, c.credit_account, c.inference_id)
                    IS DISTINCT FROM ('{TransferKind.CORRECTION}', t.tenant_id, t.credit_account,
                                      t.debit_account, t.inference_id)) AS wrong,
       format('%s moved, %s taken back', max(t.amount), sum(c.amount)) AS detail
  FROM transfers c LEFT JOIN transfers t ON t.id = c.corrects
 WHERE c.corrects IS NOT NULL AND {of_tenant("c")}
 GROUP BY c.corrects""",
    ),
)

# What a transfer did to each wallet that it touches, with the balance that it says it left.
_STEPS = f"""
SELECT w.id AS wallet, e.after, e.moved, t.kind, t.corrects
  FROM transfers t
 CROSS JOIN LATERAL (VALUES (t.debit_account, t.debit_balance_after, -t.amount),
                            (t.credit_account, t.credit_balance_after, t.amount))
       AS e (account_id, after, moved)
  JOIN accounts w ON w.id = e.account_id AND w.kind = 'wallet'
 WHERE {of_tenant("t")}"""

WALLET_PROOFS = (
    Proof(
        "balances_are_folds",
        "Every wallet's balance is the sum of its transfers.",
        "wallets",
        f"""
SELECT w.id::text AS id, w.balance AS amount, w.balance <> coalesce(f.balance, 0) AS wrong,
       format('has %s, its transfers sum to %s', w.balance, coalesce(f.balance, 0)) AS detail
  FROM accounts w
  LEFT JOIN (SELECT s.wallet, sum(s.moved) AS balance FROM ({_STEPS}) s GROUP BY s.wallet) f
    ON f.wallet = w.id
 WHERE w.kind = 'wallet' AND {of_tenant("w")}""",
    ),
    # The order of a wallet's transfers is that of its lock, and no column has it. But each one
    # leads from a balance to a balance, and together they must be one path from zero: every balance
    # that was left is one that was found, but for the first and the last.
    Proof(
        "running_balances_are_one_path",
        "The balances that a wallet's transfers say they left follow from each other, from zero.",
        "wallets",
        f"""
SELECT p.wallet::text AS id, NULL::numeric AS amount,
       count(*) FILTER (WHERE p.n <> 0) NOT IN (0, 2) OR bool_or(p.n = 1 AND p.value <> 0)
         OR bool_or(abs(p.n) > 1) OR bool_or(p.value IS NULL) OR min(p.value) < 0 AS wrong,
       format('does not follow: %s',
              (array_agg(p.value) FILTER (WHERE p.n <> 0 OR p.value < 0))[1:5]) AS detail
  FROM (SELECT s.wallet, v.value, sum(v.n) AS n
          FROM ({_STEPS}) s
         CROSS JOIN LATERAL (VALUES (s.after - s.moved, 1), (s.after, -1)) AS v (value, n)
         GROUP BY s.wallet, v.value) p
 GROUP BY p.wallet""",
    ),
    Proof(
        "held_is_what_calls_hold",
        "What is held of a wallet is the sum of its pending holds.",
        "wallets",
        f"""
SELECT coalesce(w.agent_id, i.agent_id)::text AS id, w.held AS amount,
       w.held IS DISTINCT FROM coalesce(i.held, 0) AS wrong,
       format('of agent: %s held, its calls hold %s', w.held, coalesce(i.held, 0)) AS detail
  FROM (SELECT * FROM accounts w WHERE w.kind = 'wallet' AND {of_tenant("w")}) w
  FULL JOIN (SELECT i.agent_id, sum(i.hold_usd) AS held FROM inferences i
              WHERE i.state = 'held' AND {of_tenant("i")} GROUP BY i.agent_id) i
    ON i.agent_id = w.agent_id""",
    ),
    Proof(
        "available_is_never_negative",
        "No wallet has less than it holds, and none holds less than nothing.",
        "wallets",
        f"""
SELECT w.id::text AS id, w.balance - w.held AS amount, w.held < 0 OR w.balance < w.held
         OR w.balance >= 'Infinity' AS wrong,
       format('settled %s, held %s, available %s', w.balance, w.held, w.balance - w.held) AS detail
  FROM accounts w WHERE w.kind = 'wallet' AND {of_tenant("w")}""",
    ),
    Proof(
        "spent_today_is_settled",
        "What a wallet has spent on its last day is that day's settled usage.",
        "wallets",
        f"""
SELECT w.id::text AS id, w.spent_today AS amount, w.spent_today <> coalesce(s.spent, 0) AS wrong,
       format('on %s: %s, settled %s', w.spent_day, w.spent_today, coalesce(s.spent, 0)) AS detail
  FROM accounts w
  LEFT JOIN LATERAL (
    SELECT sum(t.amount) AS spent FROM transfers t
     WHERE t.debit_account = w.id AND t.kind = 'usage'
       AND t.created_at >= w.spent_day::timestamp AT TIME ZONE 'UTC'
       AND t.created_at < (w.spent_day + 1)::timestamp AT TIME ZONE 'UTC') s ON true
 WHERE w.kind = 'wallet' AND {of_tenant("w")}""",
    ),
    Proof(
        "grants_are_taken_back",
        "Of a grant no more comes back than was given, and what was left once it is over.",
        "wallets with a grant",
        # Usage consumes a grant before anything else. A grant that was corrected was not given;
        # what is corrected of usage once the grant is over is the agent's to keep.
        f"""
SELECT w.id::text AS id, g.granted AS amount, g.returned - g.given_back > g.granted
         OR w.grant_expires_at IS NULL AND g.granted - g.mistaken > g.returned + g.used AS wrong,
       format('granted %s, used %s, taken back %s, over at %s', g.granted, g.used, g.returned,
              w.grant_expires_at) AS detail
  FROM (SELECT s.wallet, coalesce(sum(s.moved) FILTER (WHERE s.kind = 'grant'), 0) AS granted,
               coalesce(sum(-s.moved) FILTER (WHERE s.kind = 'grant_return'), 0) AS returned,
               coalesce(sum(-s.moved) FILTER (WHERE s.kind IN ('usage', 'margin')), 0) AS used,
               coalesce(sum(-s.moved) FILTER (WHERE o.kind = 'grant'), 0) AS mistaken,
               coalesce(sum(s.moved) FILTER (WHERE o.kind = 'grant_return'), 0) AS given_back
          FROM ({_STEPS}) s LEFT JOIN transfers o ON o.id = s.corrects
         GROUP BY s.wallet HAVING bool_or(s.kind IN ('grant', 'grant_return'))) g
  JOIN accounts w ON w.id = g.wallet""",
    ),
    Proof(
        "grants_end_in_time",
        "No grant outlives its date by more than an hour, unless calls hold all that is left.",
        "wallets with a grant",
        f"""
SELECT w.id::text AS id, w.balance AS amount, w.grant_expires_at < now() - interval '1 hour'
         AND (w.held = 0 OR w.balance > w.held) AS wrong,
       format('over since %s', w.grant_expires_at) AS detail
  FROM accounts w WHERE w.grant_expires_at IS NOT NULL AND {of_tenant("w")}""",
    ),
    Proof(
        "days_within_the_daily_cap",
        "No agent has spent more in a day (UTC) than the daily cap that it has now.",
        "days of agents",
        f"""
SELECT format('%s %s', a.id, d.day) AS id, d.spent AS amount, d.spent > a.daily_cap_usd AS wrong,
       format('spent %s, the cap is %s now', d.spent, a.daily_cap_usd) AS detail
  FROM (SELECT t.debit_account AS wallet, (t.created_at AT TIME ZONE 'UTC')::date AS day,
               sum(t.amount) AS spent
          FROM transfers t
         WHERE t.kind = 'usage' AND {of_tenant("t")} AND {of_day("t.created_at")}
         GROUP BY 1, 2) d
  JOIN accounts w ON w.id = d.wallet
  JOIN agents a ON a.id = w.agent_id
 WHERE a.daily_cap_usd IS NOT NULL""",
        informs=True,
    ),
    Proof(
        "days_within_the_tenants_cap",
        "No tenant has spent more in a day (UTC) than the daily cap that it has now.",
        "days of tenants",
        f"""
SELECT format('%s %s', n.id, d.day) AS id, d.spent AS amount, d.spent > n.daily_cap_usd AS wrong,
       format('spent %s, the cap is %s now', d.spent, n.daily_cap_usd) AS detail
  FROM (SELECT t.tenant_id, (t.created_at AT TIME ZONE 'UTC')::date AS day, sum(t.amount) AS spent
          FROM transfers t
         WHERE t.kind = 'usage' AND {of_tenant("t")} AND {of_day("t.created_at")}
         GROUP BY 1, 2) d
  JOIN tenants n ON n.id = d.tenant_id
 WHERE n.daily_cap_usd IS NOT NULL""",
        informs=True,
    ),
)

PROOFS = (*TRANSFER_PROOFS, *WALLET_PROOFS, *CALL_PROOFS)
