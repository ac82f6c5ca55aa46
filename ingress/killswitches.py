"""Engagements of the killswitch, for operators: the list, and what each of them did."""

import math
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from redis.exceptions import RedisError

from ingress.auth import not_found, parse_id, require_internal
from ingress.deps import Deps, get_deps, session
from ingress.spreadsheet import Format, stream_csv, wants_csv
from shared.closing_statement import (
    CSV_HEADER,
    find_switch,
    list_switches,
    read_statement,
    statement_pages,
)
from shared.metrics import KILLSWITCH_CLOSEST_TENANT, KILLSWITCH_SPENT, KILLSWITCH_THRESHOLD
from shared.spending import hear_spending

router = APIRouter(
    prefix="/internal/killswitches",
    dependencies=[Depends(require_internal)],
    include_in_schema=False,
)

MOST_SWITCHES = 500


@router.get("")
async def list_engagements(
    request: Request, limit: Annotated[int, Query(ge=1, le=MOST_SWITCHES)] = 100
) -> dict[str, Any]:
    """What was ever engaged, the newest first."""
    async with session(get_deps(request).db) as s:
        return {"killswitches": await list_switches(s, limit)}


@router.get("/{switch}/statement")
async def closing_statement(switch: str, request: Request, format: Format = None) -> Any:
    """What one engagement stopped and what was under way; `latest` is the newest one."""
    deps = get_deps(request)
    wanted: UUID | None = None if switch == "latest" else parse_id(switch)
    async with session(deps.db) as s:
        found = await find_switch(s, wanted)
        if found is None:
            not_found()
        if not wants_csv(request, format):
            return await read_statement(s, found)
    return stream_csv(f"killswitch-{found.id}", CSV_HEADER, statement_pages(deps.db, found))


async def read_spending(deps: Deps) -> None:
    """Set the gauges of spending to what the books worker said last; NaN where nobody says."""
    try:
        said = await hear_spending(deps.redis)
    except (RedisError, OSError):
        said = None
    if said is None:
        for gauge in (KILLSWITCH_SPENT, KILLSWITCH_THRESHOLD, KILLSWITCH_CLOSEST_TENANT):
            gauge.set(math.nan)
        return
    threshold = said.threshold_usd
    KILLSWITCH_SPENT.set(float(said.spent_usd))
    KILLSWITCH_THRESHOLD.set(math.inf if threshold is None else float(threshold))
    KILLSWITCH_CLOSEST_TENANT.set(float(said.closest_tenant))
