"""For those who run it: is it up, is it ready, what does it count, which rails are live."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy import text

from ingress.auth import require_internal
from ingress.dead_letters import read_counts
from ingress.deps import Deps, get_deps, session
from ingress.killswitches import read_spending
from shared.errors import NotFound, Overloaded, Unavailable
from shared.fleet import (
    COUNTERS_KEY,
    NoSuchWorker,
    as_json,
    drain,
    list_workers,
    read_status,
    resume,
    show_job,
)
from shared.metrics import (
    AUDIT_CHAIN_FRESHNESS,
    AUDIT_CHAIN_HEIGHT,
    AUDIT_CHECKPOINT_AGE,
    AUDIT_LOG_SIZE,
    DISPATCH_WITHOUT_CAPTURE,
    HOLDS_OUTSTANDING,
    JOBS_IN_FLIGHT,
    PASSTHROUGH_CAPTURED,
    QUEUE_DEPTH,
    QUEUE_OLDEST_AGE,
    QUEUE_READY,
    WORKERS,
    FleetTotals,
)
from shared.operators import OVER_HTTP, record_act
from shared.queue import Priority

log = logging.getLogger(__name__)
router = APIRouter()
operators = APIRouter(
    prefix="/internal", dependencies=[Depends(require_internal)], include_in_schema=False
)

RAILS = ("cdp", "stripe", "xendit")
READY_PATIENCE_S = 3.0
DAY_MS = 24 * 60 * 60 * 1000
AWAY = math.nan

# Ids are UUIDv7, so the primary key is also an index by time: only the last day is looked at.
_BOOKS = text(
    """
SELECT (SELECT coalesce(sum(seq), 0) FROM audit_heads)::float8 AS height,
       (SELECT extract(epoch FROM now() - max(created_at)) FROM audit_events)::float8 AS age,
       (SELECT coalesce(max(size), 0) FROM audit_checkpoints)::float8 AS logged,
       (SELECT extract(epoch FROM now() - created_at) FROM audit_checkpoints
         ORDER BY size DESC LIMIT 1)::float8 AS checkpoint_age,
       (SELECT count(*) FROM inferences WHERE state = 'held') AS holds,
       count(*) FILTER (WHERE i.routed AND i.state NOT IN ('held', 'dead')
                          AND o.inference_id IS NULL) AS uncaptured,
       count(*) FILTER (WHERE NOT i.routed AND o.inference_id IS NOT NULL) AS overcaptured
  FROM inferences i LEFT JOIN routing_outcomes o ON o.inference_id = i.id
 WHERE i.id >= :since
"""
)


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers; it says nothing of what it depends on."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """200 if calls can be taken; else 503, with the dependency at fault.

    That no provider is configured is not looked at. It is the same on every instance, so taking
    this one out of rotation would help nobody, and wallets, receipts and audits are still read;
    the calls are refused with words that say why. The start warns of it instead.
    """
    deps = get_deps(request)
    checks: dict[str, Callable[[], Awaitable[Any]]] = {
        "postgres": deps.db.ping,
        "valkey": deps.redis.ping,
    }
    for name, check in checks.items():
        try:
            async with asyncio.timeout(READY_PATIENCE_S):
                await check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not ready
            return JSONResponse(
                {"status": "unavailable", "failing": name, "error": type(error).__name__}, 503
            )
    return JSONResponse({"status": "ok"})


@router.get("/metrics", dependencies=[Depends(require_internal)], include_in_schema=False)
async def metrics(request: Request) -> Response:
    """What this process and all workers counted, and what the stores say now.

    NaN where a store is away.
    """
    deps = get_deps(request)
    await _read_books(deps)
    await read_counts(deps)
    await read_spending(deps)
    totals = await _read_fleet(deps)
    shown = generate_latest() + generate_latest(FleetTotals(totals))
    return Response(shown, media_type=CONTENT_TYPE_LATEST)


async def _read_books(deps: Deps) -> None:
    since = UUID(int=(time.time_ns() // 1_000_000 - DAY_MS) << 80)
    try:
        async with session(deps.db) as s:
            books = (await s.execute(_BOOKS, {"since": since})).one()
        read = tuple(books)
    except Overloaded:
        read = (AWAY,) * 7
    gauges = (
        AUDIT_CHAIN_HEIGHT,
        AUDIT_CHAIN_FRESHNESS,
        AUDIT_LOG_SIZE,
        AUDIT_CHECKPOINT_AGE,
        HOLDS_OUTSTANDING,
        DISPATCH_WITHOUT_CAPTURE,
        PASSTHROUGH_CAPTURED,
    )
    for gauge, value in zip(gauges, read, strict=True):
        gauge.set(AWAY if value is None else value)


async def _read_fleet(deps: Deps) -> dict[bytes, bytes]:
    """Set the gauges of the queue and the workers; returns what the workers counted."""
    WORKERS.clear()
    try:
        status = await read_status(deps.redis)
        totals: dict[bytes, bytes] = await cast(Any, deps.redis).hgetall(COUNTERS_KEY)
    except (RedisError, OSError):
        for gauge in (QUEUE_READY, JOBS_IN_FLIGHT):
            gauge.set(AWAY)
        for priority in Priority:
            QUEUE_DEPTH.labels(priority=priority.name.lower()).set(AWAY)
            QUEUE_OLDEST_AGE.labels(priority=priority.name.lower()).set(AWAY)
        return {}
    QUEUE_READY.set(status.ready)
    JOBS_IN_FLIGHT.set(status.leased)
    for name, depth in status.depth.items():
        QUEUE_DEPTH.labels(priority=name).set(depth)
        QUEUE_OLDEST_AGE.labels(priority=name).set(status.oldest_age_s[name])
    for worker in status.workers:
        WORKERS.labels(kind=worker.kind, state=worker.state).inc()
    return totals


# -- the fleet, for those who drive it --------------------------------------------------------


class Target(BaseModel):
    """Which worker is meant: its id, or how that begins, or `all`."""

    worker: str


@asynccontextmanager
async def _fleet() -> AsyncIterator[None]:
    """Raises `Unavailable` where the store is away, and `NotFound` for a worker that is not."""
    try:
        yield
    except NoSuchWorker as error:
        raise NotFound(str(error)) from error
    except (RedisError, OSError) as error:
        raise Unavailable("The queue cannot be reached.") from error


@operators.get("/queue")
async def queue(request: Request) -> dict[str, Any]:
    """Depth, age and work in flight of the queue of calls, and the workers."""
    async with _fleet():
        return as_json(await read_status(get_deps(request).redis))


@operators.get("/workers")
async def workers(request: Request) -> list[dict[str, Any]]:
    """All workers that are alive."""
    async with _fleet():
        return [as_json(worker) for worker in await list_workers(get_deps(request).redis)]


@operators.get("/jobs/{job_id}")
async def job(request: Request, job_id: UUID) -> dict[str, Any]:
    """Where a job is; never what it carries."""
    async with _fleet():
        return as_json(await show_job(get_deps(request).redis, job_id))


@operators.post("/drain")
async def drain_worker(request: Request, target: Target) -> dict[str, Any]:
    """Tell a worker, or all, to claim nothing more; it finishes what it has and stays."""
    async with _fleet():
        meant = await drain(get_deps(request).redis, target.worker, actor=OVER_HTTP)
    ids = [worker.id for worker in meant]
    await _note_act(get_deps(request), "fleet.drain", target.worker, ids)
    return {"draining": ids}


@operators.post("/resume")
async def resume_worker(request: Request, target: Target) -> dict[str, Any]:
    """Take a drain back."""
    async with _fleet():
        meant = await resume(get_deps(request).redis, target.worker, actor=OVER_HTTP)
    ids = [worker.id for worker in meant]
    await _note_act(get_deps(request), "fleet.resume", target.worker, ids)
    return {"resumed": ids}


async def _note_act(deps: Deps, act: str, target: str, workers: list[str]) -> None:
    """Write down what was done; the fleet can be driven while Postgres is away."""
    try:
        async with session(deps.db) as s:
            await record_act(s, act, target, actor=OVER_HTTP, workers=workers)
            await s.commit()
    except Overloaded:
        log.warning("act_not_recorded", extra={"act": act, "target": target})


router.include_router(operators)


@router.get("/v1/payments/status")
async def payments_status(request: Request) -> dict[str, Any]:
    """Which rails could take money, and which do."""
    live = get_deps(request).settings.payments_live
    rails = [{"rail": rail, "configured": False, "live": False} for rail in RAILS]
    return {"live": live and any(rail["live"] for rail in rails), "rails": rails}
