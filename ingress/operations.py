"""For those who run it: is it up, is it ready, who works, which rails are live."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from ingress.auth import require_internal
from ingress.deps import Deps, everyone, get_deps
from ingress.wire import Body
from shared.errors import NotFound, Overloaded, Unavailable
from shared.fleet import (
    NoSuchWorker,
    WorkerView,
    as_json,
    drain,
    list_workers,
    named_by,
    read_status,
    resume,
    show_job,
    to_drain,
)
from shared.operators import OVER_HTTP, record_act

log = logging.getLogger(__name__)
router = APIRouter()
operators = APIRouter(
    prefix="/internal", dependencies=[Depends(require_internal)], include_in_schema=False
)

RAILS = ("cdp", "stripe", "xendit")
READY_PATIENCE_S = 3.0


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
    if deps.drain.begun:
        return JSONResponse({"status": "unavailable", "failing": "draining"}, 503)
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


# -- the fleet, for those who drive it --------------------------------------------------------


class Target(Body):
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
    """Tell a worker, or all, to claim nothing more; it finishes what it has and stays.

    `all` spares the books worker.
    """
    deps = get_deps(request)
    async with _fleet():
        whom = to_drain(await list_workers(deps.redis), target.worker)
        recorded = await _note_act(deps, "fleet.drain", target.worker, whom)
        meant = await drain(deps.redis, target.worker, actor=OVER_HTTP)
    return {"draining": [worker.id for worker in meant], **recorded}


@operators.post("/resume")
async def resume_worker(request: Request, target: Target) -> dict[str, Any]:
    """Take a drain back."""
    deps = get_deps(request)
    async with _fleet():
        whom = named_by(await list_workers(deps.redis), target.worker)
        recorded = await _note_act(deps, "fleet.resume", target.worker, whom)
        meant = await resume(deps.redis, target.worker, actor=OVER_HTTP)
    return {"resumed": [worker.id for worker in meant], **recorded}


async def _note_act(
    deps: Deps, act: str, target: str, whom: Sequence[WorkerView]
) -> dict[str, bool]:
    """Write down what is about to be done, to whom it will be done.

    The fleet can be driven while Postgres is away: then the answer says that it is not recorded.
    """
    try:
        async with everyone(deps.db, patience_s=READY_PATIENCE_S) as s:
            workers = [worker.id for worker in whom]
            await record_act(s, act, target, actor=OVER_HTTP, workers=workers)
            await s.commit()
    except Overloaded:
        log.warning("act_not_recorded", extra={"act": act, "target": target})
        return {"recorded": False}
    return {}


router.include_router(operators)


@router.get("/v1/payments/status")
async def payments_status(request: Request) -> dict[str, Any]:
    """Which rails could take money, and which do."""
    live = get_deps(request).settings.payments_live
    rails = [{"rail": rail, "configured": False, "live": False} for rail in RAILS]
    return {"live": live and any(rail["live"] for rail in rails), "rails": rails}
