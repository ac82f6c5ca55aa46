"""Cost by what the client says a call was for: its session, or the parent of its agent.

Calls that ended in the window and said so; what said nothing is in no row here, but in the usage
by day. Where the words come from: `ingress/inference.py` reads the headers. As JSON the dearest
come first, at most 1,000; as CSV it is all of them, by name.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import Row, text

from ingress.auth import Caller
from ingress.deps import Deps, get_deps, session
from ingress.openapi import view
from ingress.spreadsheet import Format, stream_csv, wants_csv
from ingress.usage import Days, Mine, midnight, window
from ingress.wire import moment, usd
from shared.domain.spreadsheet import Cell

router = APIRouter()

MOST_ROWS = 1_000

_SUMS = """
SELECT c.{column} AS name, count(*) AS calls, coalesce(sum(i.settled_usd), 0) AS cost,
       min(i.created_at) AS first_at, max(i.settled_at) AS last_at
  FROM call_attributions c JOIN inferences i ON i.id = c.inference_id
 WHERE c.tenant_id = :tenant AND i.tenant_id = :tenant AND i.settled_at >= :since
   AND c.{column} IS NOT NULL AND (CAST(:agent AS uuid) IS NULL OR i.agent_id = :agent)
   AND (CAST(:after AS text) IS NULL OR c.{column} > :after)
 GROUP BY 1 ORDER BY {order} LIMIT :limit
"""
_DEAREST_FIRST, _BY_NAME = "cost DESC, name", "name"
_FIGURES = ("calls", "cost_usd", "first_at", "last_at")
Limit = Annotated[int, Query(ge=1)]


@router.get("/v1/usage/by-session", openapi_extra=view("UsageBySession", csv=True))
async def usage_by_session(
    request: Request, caller: Mine, days: Days = 30, limit: Limit = 100, format: Format = None
) -> Any:
    """The dearest sessions, at most 1,000. Calls that named no session are in none of them."""
    return await _told(request, caller, days, limit, format, "session_id", "sessions")


@router.get("/v1/usage/by-parent-agent", openapi_extra=view("UsageByParentAgent", csv=True))
async def usage_by_parent_agent(
    request: Request, caller: Mine, days: Days = 30, limit: Limit = 100, format: Format = None
) -> Any:
    """The dearest parent agents, by the names that the client gives them; at most 1,000.

    Calls that named none are in no row.
    """
    return await _told(request, caller, days, limit, format, "parent_agent_id", "parent_agents")


async def _told(
    request: Request,
    caller: Mine,
    days: int,
    limit: int,
    format: str | None,
    column: str,
    noun: str,
) -> Any:
    deps = get_deps(request)
    bound = window(caller, midnight(datetime.now(UTC).date() - timedelta(days=days - 1)))
    if wants_csv(request, format):
        name = request.url.path.removeprefix("/v1/").replace("/", "-")
        return stream_csv(name, (column, *_FIGURES), _export(deps, caller, column, bound))
    most = min(limit, MOST_ROWS)
    async with session(deps.db, caller.tenant) as s:
        query = text(_SUMS.format(column=column, order=_DEAREST_FIRST))
        found = (await s.execute(query, {**bound, "after": None, "limit": most + 1})).all()
    rows = [
        {
            column: row.name,
            "calls": row.calls,
            "cost_usd": usd(row.cost),
            "first_at": moment(row.first_at),
            "last_at": moment(row.last_at),
        }
        for row in found[:most]
    ]
    return {noun: rows, "has_more": len(found) > most}


async def _export(
    deps: Deps, caller: Caller, column: str, bound: Mapping[str, Any]
) -> AsyncIterator[Sequence[Sequence[Cell]]]:
    """All of them, by name: their costs may change while the table is sent, and their names not."""
    query = text(_SUMS.format(column=column, order=_BY_NAME))
    after, full = None, True
    while full:
        async with session(deps.db, caller.tenant) as s:
            rows = (await s.execute(query, {**bound, "after": after, "limit": MOST_ROWS})).all()
        full = len(rows) == MOST_ROWS
        if rows:
            after = rows[-1].name
            yield [_cells(row) for row in rows]


def _cells(row: Row[Any]) -> tuple[Cell, ...]:
    times = moment(row.first_at), moment(row.last_at)
    return (row.name, row.calls, Decimal(usd(row.cost)), *times)
