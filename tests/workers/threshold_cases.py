"""What tests of thresholds share: a count over everything there is, and the functions they call."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from shared.db import Connection, Database
from shared.domain.ledger import PROVIDER_COST_ACCOUNT
from shared.killswitch import engage, release
from tests.workers.ledger_cases import Agent, ending, results

COUNTED = """
SELECT (SELECT coalesce(sum(t.amount), 0) FROM transfers t
          JOIN inferences i ON i.id = t.inference_id
          LEFT JOIN dead_letters d ON d.inference_id = i.id
         WHERE t.credit_account = $1 AND t.kind = 'usage'
           AND greatest(i.created_at, d.held_again_at) > r.at
           AND t.created_at >= clock_timestamp() - make_interval(secs => $3)
           AND ($2 = 'all' OR t.tenant_id::text = $2))
     + (SELECT coalesce(sum(i.hold_usd), 0) FROM inferences i
          LEFT JOIN dead_letters d ON d.inference_id = i.id
         WHERE i.state = 'held' AND greatest(i.created_at, d.held_again_at) > r.at
           AND ($2 = 'all' OR i.tenant_id::text = $2))
  FROM (SELECT coalesce(max(k.released_at), '-infinity') AS at FROM killswitches k
         WHERE k.scope = $2) r
"""


async def turn(db: Database, scope: str, *, engaged: bool) -> bool:
    async with db.everyone() as session:
        done = await (engage if engaged else release)(session, scope, "why", "somebody")
        await session.commit()
        return done


async def counted(db: Connection, scope: str, window_s: int = 3600) -> Decimal:
    """What counts for a scope, summed over everything there is."""
    found = await db.fetchval(COUNTED, PROVIDER_COST_ACCOUNT, scope, window_s)
    assert isinstance(found, Decimal)
    return found


def guard(tenant: str | None = None, system: str | None = None, window_s: int = 3600) -> str:
    told = {"window_s": window_s, "tenant_usd": tenant, "system_usd": system}
    return orjson.dumps(told).decode()


async def opened(db: Connection, guarded: str, *items: dict[str, Any]) -> list[asyncpg.Record]:
    """The answers of `open_inferences`, in the order of the items."""
    batch = orjson.dumps(items).decode()
    rows = await db.fetch("SELECT * FROM open_inferences($1::jsonb, $2::jsonb)", batch, guarded)
    found = {str(row["inference_id"]): row for row in rows}
    return [found[item["inference_id"]] for item in items]


async def told(db: Connection, guarded: str, *items: dict[str, Any]) -> list[str]:
    return [row["result"] for row in await opened(db, guarded, *items)]


async def enlarged(db: Connection, guarded: str, item: dict[str, Any], extra: str) -> str:
    statement = "SELECT result FROM enlarge_hold($1, 1, $2, 60, $3::jsonb)"
    answer = await db.fetchval(statement, UUID(item["inference_id"]), Decimal(extra), guarded)
    assert isinstance(answer, str)
    return answer


async def switches(db: Connection, scope: str) -> list[asyncpg.Record]:
    return await db.fetch("SELECT * FROM killswitches WHERE scope = $1 ORDER BY id", scope)


async def under_way(db: Connection, switch: UUID) -> set[str]:
    query = "SELECT inference_id FROM killswitch_calls WHERE killswitch_id = $1"
    return {str(row["inference_id"]) for row in await db.fetch(query, switch)}


async def settle(
    db: Connection, agent: Agent, item: dict[str, Any], charge: str, **changes: Any
) -> None:
    done = ending(agent, item["inference_id"], charge, **changes)
    assert await results(db, "settle_inferences", done) == ["SETTLED"]


async def slide(db: Connection, window_s: int) -> None:
    await db.execute("SELECT slide_killswitch_window($1)", window_s)


async def spending(db: Connection, scope: str, window_s: int = 3600) -> Decimal:
    """What Postgres knows that a scope has spent."""
    query = "SELECT spent_usd FROM killswitch_spending(NULL, $1) WHERE scope = $2"
    return Decimal(await db.fetchval(query, window_s, scope) or 0)


async def choose(db: Connection, scope: str, usd: str | None) -> None:
    """An operator's own threshold for a scope; None is no threshold."""
    choice = (
        "INSERT INTO killswitch_thresholds (scope, threshold_usd, set_by) VALUES ($1, $2, 'x')"
        " ON CONFLICT (scope) DO UPDATE SET threshold_usd = excluded.threshold_usd"
    )
    await db.execute(choice, scope, usd and Decimal(usd))
