"""For those who run it: is it up, is it ready, what does it count, which rails are live."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError
from sqlalchemy import text

from ingress.auth import require_internal
from ingress.deps import Deps, get_deps, session
from shared.errors import Overloaded
from shared.metrics import (
    AUDIT_CHAIN_FRESHNESS,
    AUDIT_CHAIN_HEIGHT,
    DISPATCH_WITHOUT_CAPTURE,
    HOLDS_OUTSTANDING,
    PASSTHROUGH_CAPTURED,
    QUEUE_DEPTH,
)
from shared.queue import INFERENCE_QUEUE

router = APIRouter()

RAILS = ("cdp", "stripe", "xendit")
READY_PATIENCE_S = 3.0
DAY_MS = 24 * 60 * 60 * 1000
AWAY = math.nan

# Ids are UUIDv7, so the primary key is also an index by time: only the last day is looked at.
_BOOKS = text(
    """
SELECT (SELECT coalesce(sum(seq), 0) FROM audit_heads)::float8 AS height,
       (SELECT extract(epoch FROM now() - max(created_at)) FROM audit_events)::float8 AS age,
       (SELECT count(*) FROM inferences WHERE state = 'held') AS holds,
       count(*) FILTER (WHERE i.routed AND i.state <> 'held' AND o.inference_id IS NULL)
         AS uncaptured,
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
    """What this process counted, and what the stores say now; NaN where a store is away."""
    deps = get_deps(request)
    await _read_books(deps)
    await _read_queue(deps)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _read_books(deps: Deps) -> None:
    since = UUID(int=(time.time_ns() // 1_000_000 - DAY_MS) << 80)
    try:
        async with session(deps.db) as s:
            books = (await s.execute(_BOOKS, {"since": since})).one()
        read = (books.height, books.age, books.holds, books.uncaptured, books.overcaptured)
    except Overloaded:
        read = (AWAY,) * 5
    gauges = (
        AUDIT_CHAIN_HEIGHT,
        AUDIT_CHAIN_FRESHNESS,
        HOLDS_OUTSTANDING,
        DISPATCH_WITHOUT_CAPTURE,
        PASSTHROUGH_CAPTURED,
    )
    for gauge, value in zip(gauges, read, strict=True):
        gauge.set(AWAY if value is None else value)


async def _read_queue(deps: Deps) -> None:
    try:
        depth: float = await deps.redis.zcard(INFERENCE_QUEUE)
    except (RedisError, OSError):
        depth = AWAY
    QUEUE_DEPTH.labels(queue="inference").set(depth)


@router.get("/v1/payments/status")
async def payments_status(request: Request) -> dict[str, Any]:
    """Which rails could take money, and which do."""
    live = get_deps(request).settings.payments_live
    rails = [{"rail": rail, "configured": False, "live": False} for rail in RAILS]
    return {"live": live and any(rail["live"] for rail in rails), "rails": rails}
