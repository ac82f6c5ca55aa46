"""The books as the tables have them: all proofs asked of one snapshot, and trial balances.

Nothing is written and nothing is locked, so this runs beside a fleet at work. The folding is done
by Postgres, which spills to disk what does not fit into its memory; here arrive sums, and the first
few rows that break a proof. As long as a snapshot is open, rows that were updated since cannot be
cleaned away: on a large and busy database ask one tenant, one day, or a replica.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from shared.db import Connection
from shared.domain.books import Offence, Proof, Proved, Scope, TrialLine
from shared.domain.ledger import SYSTEM_ACCOUNT_NAMES
from workers.ledger_proofs import PROOFS
from workers.ledger_proofs_scope import of_day, of_tenant

EVERYTHING = Scope()
OFFENCES_SHOWN = 5
LINES_AT_ONCE = 500

# $1 and $2 are said once more because not every proof has a use for both
_FIGURES = """
SELECT count(*) AS looked_at, sum(amount) AS amount, count(*) FILTER (WHERE wrong IS NOT FALSE)
  FROM ({proof}) AS subject, (SELECT $1::uuid, $2::date) AS asked"""
_OFFENCES = """
SELECT id, detail FROM ({proof}) AS subject, (SELECT $1::uuid, $2::date) AS asked
 WHERE wrong IS NOT FALSE ORDER BY id LIMIT $3"""

_TRIAL_BALANCE = f"""
WITH moved AS (
  SELECT e.account_id, sum(e.debit) AS debits, sum(e.credit) AS credits
    FROM transfers t
   CROSS JOIN LATERAL (VALUES (t.debit_account, t.amount, 0), (t.credit_account, 0, t.amount))
         AS e (account_id, debit, credit)
   WHERE {of_tenant("t")} AND {of_day("t.created_at")}
     AND ($3::uuid IS NULL OR t.inference_id = $3)
   GROUP BY e.account_id)
SELECT kind, account, name, sum(debits) AS debits, sum(credits) AS credits FROM (
  SELECT coalesce(a.kind, 'unknown account') AS kind, a.kind = 'wallet' AS is_wallet,
         CASE WHEN a.kind = 'wallet' AND $4 THEN a.tenant_id
              ELSE coalesce(a.id, m.account_id) END::text AS account,
         CASE WHEN a.kind = 'wallet' AND $4 THEN 'all of ' || n.name ELSE g.name END AS name,
         coalesce(m.debits, 0) AS debits, coalesce(m.credits, 0) AS credits
    FROM accounts a
    FULL JOIN moved m ON m.account_id = a.id
    LEFT JOIN agents g ON g.id = a.agent_id
    LEFT JOIN tenants n ON n.id = a.tenant_id
   WHERE m.account_id IS NOT NULL OR a.kind <> 'wallet' AND {of_tenant("a")}
      OR a.kind <> 'wallet' AND a.tenant_id IS NULL) line
 GROUP BY kind, is_wallet, account, name
 ORDER BY is_wallet NULLS FIRST, kind, name, account"""


@asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """One view of all tables, however long the questions take; nothing can be written."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # a plan for the values that are asked for: for one tenant other indexes are right
        await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        await connection.execute("SET LOCAL statement_timeout = 0")
        yield


async def prove(
    connection: Connection,
    scope: Scope = EVERYTHING,
    begun: Callable[[Proof], None] = lambda proof: None,
) -> list[Proved]:
    """What became of every proof, in one snapshot. `begun` is told of each before it is asked."""
    found = []
    async with snapshot(connection):
        for proof in PROOFS:
            begun(proof)
            found.append(await ask(connection, proof, scope))
    return found


async def ask(connection: Connection, proof: Proof, scope: Scope = EVERYTHING) -> Proved:
    """One proof, in whatever transaction the connection is."""
    if scope.day is not None and not proof.daily:
        return Proved(proof, None)
    asked = (scope.tenant, scope.day)
    row = await connection.fetchrow(_FIGURES.format(proof=proof.sql), *asked)
    assert row is not None
    looked_at, amount, wrong = row
    first: Sequence[Offence] = ()
    if wrong:
        rows = await connection.fetch(_OFFENCES.format(proof=proof.sql), *asked, OFFENCES_SHOWN)
        first = [Offence(str(each["id"]), str(each["detail"])) for each in rows]
    return Proved(proof, looked_at, amount, wrong, tuple(first))


async def trial_balance(
    connection: Connection, scope: Scope = EVERYTHING, inference: UUID | None = None
) -> AsyncIterator[TrialLine]:
    """Each account that money moved through, and the system's; what it had is not counted, so a
    day's balance is what that day changed.

    Asked about no tenant and no inference, the wallets of a tenant are one line.
    """
    together = scope.tenant is None and inference is None
    async with snapshot(connection):
        rows = connection.cursor(
            _TRIAL_BALANCE, scope.tenant, scope.day, inference, together, prefetch=LINES_AT_ONCE
        )
        async for row in rows:
            name = row["name"] or SYSTEM_ACCOUNT_NAMES.get(UUID(row["account"]), "unknown")
            yield TrialLine(row["kind"], row["account"], name, row["debits"], row["credits"])
