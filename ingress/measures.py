"""`/metrics`: what this process and all workers counted, and what the stores say now.

Of a store that is away nothing is shown but `ainfera_store_up` 0. A sample that is missing is an
error to an autoscaler, which then keeps what there is; a number that is none, NaN, may pass for
little. Prometheus takes the series for ended until it is back.
"""

import math
import time
from typing import Any, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ingress.auth import require_internal
from ingress.deps import Deps, everyone, get_deps
from shared.dead_letters import count_letters
from shared.domain.attempts import LetterState
from shared.errors import Overloaded
from shared.fleet import COUNTERS_KEY, FleetStatus, read_status
from shared.metrics import (
    AUDIT_CHAIN_FRESHNESS,
    AUDIT_CHAIN_HEIGHT,
    AUDIT_CHECKPOINT_AGE,
    AUDIT_LOG_SIZE,
    CAPTURE_GUARD_AGE,
    DEAD_LETTERS,
    DEAD_LETTERS_TOTAL,
    DISPATCH_WITHOUT_CAPTURE,
    HOLDS_OUTSTANDING,
    JOBS_IN_FLIGHT,
    KILLSWITCH_CLOSEST_TENANT,
    KILLSWITCH_SPENT,
    KILLSWITCH_THRESHOLD,
    PASSTHROUGH_CAPTURED,
    POSTGRES_SAYS,
    QUEUE_DEPTH,
    QUEUE_OLDEST_AGE,
    QUEUE_READY,
    STORE_UP,
    VALKEY_SAYS,
    WORKERS,
    FleetTotals,
)
from shared.spending import Spending, hear_spending

router = APIRouter()

# The books are not counted for each of those who ask: scrapes are that far apart anyway.
BOOKS_KEPT_S = 10.0
# the age of an event before the first
NOTHING_YET = math.nan

_BOOKS = text(
    """
SELECT (SELECT coalesce(sum(seq), 0) FROM audit_heads)::float8 AS height,
       (SELECT extract(epoch FROM now() - max(created_at)) FROM audit_events)::float8 AS age,
       (SELECT coalesce(max(size), 0) FROM audit_checkpoints)::float8 AS logged,
       (SELECT extract(epoch FROM now() - created_at) FROM audit_checkpoints
         ORDER BY size DESC LIMIT 1)::float8 AS checkpoint_age,
       (SELECT count(*) FROM inferences WHERE state = 'held') AS holds,
       g.uncaptured, g.overcaptured,
       extract(epoch FROM now() - g.checked_until)::float8 AS guard_age
  FROM capture_guard g
"""
)


@router.get("/metrics", dependencies=[Depends(require_internal)], include_in_schema=False)
async def metrics(request: Request) -> Response:
    """All that is counted, as text; Postgres is asked once in `BOOKS_KEPT_S` at most."""
    deps = get_deps(request)
    from_postgres = await _ask_postgres(deps)
    from_valkey = await _ask_valkey(deps)
    shown = [generate_latest(), *map(generate_latest, (*from_postgres, *from_valkey))]
    return Response(b"".join(shown), media_type=CONTENT_TYPE_LATEST)


async def _ask_postgres(deps: Deps) -> list[CollectorRegistry]:
    """Set the gauges of the books; what there is to show of them."""
    async with deps.counted.lock:
        if time.monotonic() - deps.counted.at > BOOKS_KEPT_S:
            try:
                async with everyone(deps.db) as s:
                    await _count_books(s)
            except Overloaded:
                STORE_UP.labels(store="postgres").set(0)
                return []
            deps.counted.at = time.monotonic()
    STORE_UP.labels(store="postgres").set(1)
    return [POSTGRES_SAYS]


async def _count_books(s: AsyncSession) -> None:
    books = (await s.execute(_BOOKS)).one()
    AUDIT_CHAIN_HEIGHT.set(books.height)
    AUDIT_CHAIN_FRESHNESS.set(NOTHING_YET if books.age is None else books.age)
    AUDIT_LOG_SIZE.set(books.logged)
    AUDIT_CHECKPOINT_AGE.set(NOTHING_YET if books.checkpoint_age is None else books.checkpoint_age)
    HOLDS_OUTSTANDING.set(books.holds)
    DISPATCH_WITHOUT_CAPTURE.set(books.uncaptured)
    PASSTHROUGH_CAPTURED.set(books.overcaptured)
    CAPTURE_GUARD_AGE.set(books.guard_age)
    letters = await count_letters(s)
    DEAD_LETTERS.set(letters[LetterState.DEAD])
    for outcome, count in letters.items():
        DEAD_LETTERS_TOTAL.labels(outcome=str(outcome)).set(count)


async def _ask_valkey(deps: Deps) -> list[CollectorRegistry]:
    """Set the gauges of the queue and the workers; these, and what the workers counted."""
    try:
        status = await read_status(deps.redis)
        totals: dict[bytes, bytes] = await cast(Any, deps.redis).hgetall(COUNTERS_KEY)
        spending = await hear_spending(deps.redis)
    except (RedisError, OSError):
        STORE_UP.labels(store="valkey").set(0)
        return []
    STORE_UP.labels(store="valkey").set(1)
    _note_queue(status)
    _note_spending(spending)
    by_workers = CollectorRegistry()
    by_workers.register(FleetTotals(totals))
    return [VALKEY_SAYS, by_workers]


def _note_queue(status: FleetStatus) -> None:
    QUEUE_READY.set(status.ready)
    JOBS_IN_FLIGHT.set(status.leased)
    for name, depth in status.depth.items():
        QUEUE_DEPTH.labels(priority=name).set(depth)
        QUEUE_OLDEST_AGE.labels(priority=name).set(status.oldest_age_s[name])
    WORKERS.clear()
    for worker in status.workers:
        WORKERS.labels(kind=worker.kind, state=worker.state).inc()


def _note_spending(said: Spending | None) -> None:
    """What the books worker said last; NaN where it has not said anything."""
    if said is None:
        for gauge in (KILLSWITCH_SPENT, KILLSWITCH_THRESHOLD, KILLSWITCH_CLOSEST_TENANT):
            gauge.set(math.nan)
        return
    threshold = said.threshold_usd
    KILLSWITCH_SPENT.set(float(said.spent_usd))
    KILLSWITCH_THRESHOLD.set(math.inf if threshold is None else float(threshold))
    KILLSWITCH_CLOSEST_TENANT.set(float(said.closest_tenant))
