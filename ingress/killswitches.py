"""Engagements of the killswitch, for operators: the list, and what each of them did."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request

from ingress.auth import not_found, parse_id, require_internal
from ingress.deps import everyone, get_deps
from ingress.spreadsheet import Format, stream_csv, wants_csv
from ingress.wire import cap
from shared.closing_statement import (
    CSV_HEADER,
    find_switch,
    list_switches,
    read_statement,
    statement_pages,
)
from shared.killswitch import read_thresholds

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
    async with everyone(get_deps(request).db) as s:
        return {"killswitches": await list_switches(s, limit)}


@router.get("/thresholds")
async def list_thresholds(request: Request) -> dict[str, Any]:
    """What may be spent in the window before a switch engages by itself; null is no threshold."""
    deps = get_deps(request)
    async with everyone(deps.db) as s:
        told = await read_thresholds(s, deps.settings)
    amounts = {name: cap(told[name]) for name in ("system_usd", "tenant_usd")}
    chosen = [{**each, "threshold_usd": cap(each["threshold_usd"])} for each in told["chosen"]]
    return {**told, **amounts, "chosen": chosen}


@router.get("/{switch}/statement")
async def closing_statement(switch: str, request: Request, format: Format = None) -> Any:
    """What one engagement stopped and what was under way; `latest` is the newest one."""
    deps = get_deps(request)
    wanted: UUID | None = None if switch == "latest" else parse_id(switch)
    async with everyone(deps.db) as s:
        found = await find_switch(s, wanted)
        if found is None:
            not_found()
        if not wants_csv(request, format):
            return await read_statement(s, found)
    return stream_csv(f"killswitch-{found.id}", CSV_HEADER, statement_pages(deps.db, found))
