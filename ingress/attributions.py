"""Cost by what the client says a call was for: its session, or the parent of its agent.

Calls that ended in the window and said so; what said nothing is in no row here, but in the usage
by day. Where the words come from: `ingress/inference.py` reads the headers.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import text

from ingress.deps import get_deps, session
from ingress.openapi import view
from ingress.spreadsheet import Format, as_csv, wants_csv
from ingress.usage import Days, Mine, midnight, window
from ingress.wire import moment, usd

router = APIRouter()

MOST_ROWS = 1_000

_SUMS = """
SELECT c.{column} AS name, count(*) AS calls, coalesce(sum(i.settled_usd), 0) AS cost,
       min(i.created_at) AS first_at, max(i.settled_at) AS last_at
  FROM call_attributions c JOIN inferences i ON i.id = c.inference_id
 WHERE c.tenant_id = :tenant AND i.tenant_id = :tenant AND i.settled_at >= :since
   AND c.{column} IS NOT NULL AND (CAST(:agent AS uuid) IS NULL OR i.agent_id = :agent)
 GROUP BY 1 ORDER BY cost DESC, name LIMIT :limit
"""
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
    since = midnight(datetime.now(UTC).date() - timedelta(days=days - 1))
    most = min(limit, MOST_ROWS)
    bound = {**window(caller, since), "limit": most + 1}
    async with session(get_deps(request).db, caller.tenant) as s:
        found = (await s.execute(text(_SUMS.format(column=column)), bound)).all()
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
    if not wants_csv(request, format):
        return {noun: rows, "has_more": len(found) > most}
    cells = [
        (row[column], row["calls"], Decimal(row["cost_usd"]), row["first_at"], row["last_at"])
        for row in rows
    ]
    name = request.url.path.removeprefix("/v1/").replace("/", "-")
    return as_csv(
        name,
        (column, "calls", "cost_usd", "first_at", "last_at"),
        cells,
    )
