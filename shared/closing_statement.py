"""What one engagement of the killswitch did: why, whom it stopped, what was under way, until when.

Refused calls are known from the audit events of their agents, each of which names the killswitch as
the reason. Calls under way are those that held money when it was engaged or released, and those
that ended in between; what they cost stands with the calls themselves, so that a statement read
while they still run says so, and the next one says more.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db import Database
from shared.domain.ledger import ZERO
from shared.domain.spreadsheet import Cell

MOST_LISTED = 10_000
READ_AT_ONCE = 1_000

CSV_HEADER = (
    "killswitch_id",
    "call",
    "inference_id",
    "tenant_id",
    "agent_id",
    "at",
    "ended_at",
    "state",
    "held_usd",
    "cost_usd",
)

# A process that hears late of a release may refuse for a moment more.
_SWITCH = """
SELECT k.*, least(coalesce(k.released_at + interval '5 seconds', now()),
                  (SELECT min(n.engaged_at) FROM killswitches n
                    WHERE n.scope = k.scope AND n.engaged_at > k.engaged_at)) AS refused_until,
       coalesce(k.released_at, now()) AS until
  FROM killswitches k
"""
_FIND = (
    f"{_SWITCH} WHERE CAST(:id AS uuid) IS NULL OR k.id = :id ORDER BY k.engaged_at DESC LIMIT 1"
)
_LIST = f"{_SWITCH} ORDER BY k.engaged_at DESC LIMIT :limit"

_STOPPED = """
  FROM audit_events e
 WHERE e.event_type = 'inference.rejected_cap_violation'
   AND e.created_at >= :engaged_at AND e.created_at < :refused_until
   AND (:scope = 'all' OR e.tenant_id::text = :scope)
   AND e.payload LIKE '%"code":"cost_killswitch_engaged"%'
"""
_COUNT_STOPPED = f"SELECT count(*) {_STOPPED}"
_STOPPED_PAGE = f"""
SELECT 'stopped' AS call, (e.payload::jsonb ->> 'inference_id')::uuid AS inference_id, e.tenant_id,
       e.agent_id, e.created_at AS at, e.created_at AS ended_at, 'refused' AS state,
       CAST(0 AS numeric(20,9)) AS held_usd, CAST(0 AS numeric(20,9)) AS cost_usd, e.id AS event_id
  {_STOPPED} AND (e.created_at, e.id) > (:at, :after)
 ORDER BY e.created_at, e.id LIMIT :limit
"""
_UNDER_WAY = """
WITH noted AS (
  SELECT inference_id AS id FROM killswitch_calls WHERE killswitch_id = :id
   UNION
  SELECT ended.id
    FROM tenants t CROSS JOIN LATERAL (
      SELECT i.id FROM inferences i
       WHERE i.tenant_id = t.id AND i.settled_at >= :engaged_at AND i.settled_at < :until
         AND i.state = 'settled' AND i.created_at < :until) ended
   WHERE :scope = 'all' OR t.id::text = :scope
)
"""
_UNDER_WAY_PAGE = f"""
{_UNDER_WAY}
SELECT CASE WHEN i.created_at <= :engaged_at THEN 'in_flight' ELSE 'let_in_late' END AS call,
       i.id AS inference_id, i.tenant_id, i.agent_id, i.created_at AS at, i.settled_at AS ended_at,
       i.state, i.hold_usd AS held_usd, i.settled_usd AS cost_usd
  FROM noted JOIN inferences i ON i.id = noted.id
 WHERE i.id > :after ORDER BY i.id LIMIT :limit
"""
_SUM_UNDER_WAY = f"""
{_UNDER_WAY}
SELECT count(*) AS calls, count(*) FILTER (WHERE i.state = 'held') AS running,
       count(*) FILTER (WHERE i.created_at > :engaged_at) AS let_in_late,
       coalesce(sum(i.settled_usd), 0) AS cost_usd,
       coalesce(sum(i.hold_usd) FILTER (WHERE i.state = 'held'), 0) AS held_usd
  FROM noted JOIN inferences i ON i.id = noted.id
"""
_FIRST = UUID(int=0)


async def find_switch(session: AsyncSession, switch: UUID | None) -> Row[Any] | None:
    """One engagement, the newest if none is named; None where there is none."""
    return (await session.execute(text(_FIND), {"id": switch})).one_or_none()


async def list_switches(session: AsyncSession, limit: int) -> list[dict[str, Any]]:
    """Engagements, the newest first."""
    rows = await session.execute(text(_LIST), {"limit": limit})
    return [described(row) for row in rows]


def described(switch: Row[Any]) -> dict[str, Any]:
    """When, by whom or what, why, and until when; money and moments as text."""
    return {
        "id": str(switch.id),
        "scope": switch.scope,
        "engaged_at": _moment(switch.engaged_at),
        "engaged_by": switch.engaged_by,
        "reason": switch.reason,
        "spent_usd": _usd(switch.spent_usd),
        "threshold_usd": _usd(switch.threshold_usd),
        "released_at": _moment(switch.released_at),
        "released_by": switch.released_by,
    }


async def read_statement(session: AsyncSession, switch: Row[Any]) -> dict[str, Any]:
    """The whole statement as JSON; of each kind of call at most 10,000 are listed.

    `{…, stopped: {calls, inference_ids}, under_way: {calls, running, let_in_late, cost_usd,
    held_usd, inferences: […]}, listed_in_full}`. `let_in_late` are calls that began after it was
    engaged, at a process that had not heard of it.
    """
    bound = _bound(switch)
    stopped = await session.scalar(text(_COUNT_STOPPED), bound)
    total = (await session.execute(text(_SUM_UNDER_WAY), bound)).one()
    first = {**bound, "limit": MOST_LISTED, "after": _FIRST}
    refused = (await session.execute(text(_STOPPED_PAGE), {**first, "at": switch.engaged_at})).all()
    under_way = (await session.execute(text(_UNDER_WAY_PAGE), first)).all()
    return {
        **described(switch),
        "stopped": {"calls": stopped, "inference_ids": [str(row.inference_id) for row in refused]},
        "under_way": {
            "calls": total.calls,
            "running": total.running,
            "let_in_late": total.let_in_late,
            "cost_usd": _usd(total.cost_usd),
            "held_usd": _usd(total.held_usd),
            "inferences": [_call(row) for row in under_way],
        },
        "listed_in_full": max(stopped or 0, total.calls) <= MOST_LISTED,
    }


async def statement_pages(
    db: Database, switch: Row[Any]
) -> AsyncIterator[Sequence[Sequence[Cell]]]:
    """All calls of a statement as rows under `CSV_HEADER`, page by page, however many."""
    bound = {**_bound(switch), "limit": READ_AT_ONCE}
    place: dict[str, Any] = {"at": switch.engaged_at, "after": _FIRST}
    while rows := await _page(db, _STOPPED_PAGE, {**bound, **place}):
        place = {"at": rows[-1].at, "after": rows[-1].event_id}
        yield [_cells(switch, row) for row in rows]
    place = {"after": _FIRST}
    while rows := await _page(db, _UNDER_WAY_PAGE, {**bound, **place}):
        place = {"after": rows[-1].inference_id}
        yield [_cells(switch, row) for row in rows]


async def _page(db: Database, query: str, bound: Mapping[str, Any]) -> Sequence[Row[Any]]:
    async with db.session() as session:
        return (await session.execute(text(query), bound)).all()


def _bound(switch: Row[Any]) -> dict[str, Any]:
    return {
        "id": switch.id,
        "scope": switch.scope,
        "engaged_at": switch.engaged_at,
        "until": switch.until,
        "refused_until": switch.refused_until,
    }


def _call(row: Row[Any]) -> dict[str, Any]:
    return {
        "inference_id": str(row.inference_id),
        "tenant_id": str(row.tenant_id),
        "agent_id": str(row.agent_id),
        "call": row.call,
        "state": row.state,
        "began_at": _moment(row.at),
        "ended_at": _moment(row.ended_at),
        "held_usd": _usd(row.held_usd),
        "cost_usd": _usd(row.cost_usd),
    }


def _cells(switch: Row[Any], row: Row[Any]) -> tuple[Cell, ...]:
    return (
        str(switch.id),
        row.call,
        str(row.inference_id),
        str(row.tenant_id),
        str(row.agent_id),
        _moment(row.at),
        _moment(row.ended_at),
        row.state,
        row.held_usd,
        row.cost_usd if row.cost_usd is not None else ZERO,
    )


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _usd(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"
