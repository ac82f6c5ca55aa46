"""One inference afterwards: where it stands, what came of it, and how to stop it."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy import Row

from ingress.answers import order_stop
from ingress.auth import Caller, current_caller, not_found, parse_id
from ingress.deps import Deps, get_deps, reachable
from ingress.wire import moment, usd
from shared.domain.attempts import CallState
from shared.domain.inference import Failure
from shared.errors import Unavailable
from shared.kept import KeptResult, ended_as
from shared.kept import standing as kept_standing
from shared.queue import Envelope
from shared.stream import RecordKind, unpack_failure

router = APIRouter()
Mine = Annotated[Caller, Depends(current_caller)]

OVER = frozenset({"succeeded", "failed", "cancelled", "expired"})

# how long a cancellation waits to see its effect, and how often it looks
CANCEL_PATIENCE_S = 2.0
LOOKS_EVERY_S = 0.05

# Everything that is known of one call of one tenant, wherever it stands. A pinned call has no
# capture: how it ended is in its last audit event, which was written with the settlement.
_FIND = """
SELECT coalesce(k.agent_id, i.agent_id) AS agent_id,
       coalesce(k.receipt_id, r.receipt_id) AS receipt_id,
       coalesce(k.accepted_at, i.created_at) AS created_at,
       coalesce(k.finished_at, i.settled_at) AS finished_at,
       coalesce(k.dialect, i.dialect) AS dialect, i.state AS run_state, k.state AS kept_state,
       k.started_at, k.background, k.stream,
       k.result, coalesce(k.outcome, o.outcome_status, e.outcome) AS outcome,
       r.model_used, r.cost_usd
  FROM (SELECT cast(:id AS uuid) AS id, cast(:tenant_id AS uuid) AS tenant_id) w
  LEFT JOIN kept_calls k ON k.inference_id = w.id AND k.tenant_id = w.tenant_id
  LEFT JOIN inferences i ON i.id = w.id AND i.tenant_id = w.tenant_id
  LEFT JOIN receipts r ON r.inference_id = w.id AND r.tenant_id = w.tenant_id
  LEFT JOIN routing_outcomes o ON o.inference_id = w.id AND o.tenant_id = w.tenant_id
  LEFT JOIN LATERAL (
    SELECT a.payload::jsonb ->> 'outcome' AS outcome FROM audit_events a
     WHERE NOT i.routed AND k.outcome IS NULL AND a.agent_id = i.agent_id
       AND a.created_at >= i.settled_at AND a.created_at < i.settled_at + interval '1 minute'
       AND a.event_type <> 'receipt.created' AND a.payload::jsonb ? 'outcome'
       AND a.payload::jsonb ->> 'inference_id' = i.id::text
     ORDER BY a.created_at LIMIT 1) e ON true
 WHERE k.inference_id IS NOT NULL OR i.id IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a call stands; money in US dollars."""

    inference_id: UUID
    agent_id: UUID
    status: str
    created_at: datetime
    receipt_id: UUID | None = None
    finished_at: datetime | None = None
    model_used: str | None = None
    cost_usd: Decimal | None = None
    kept: bool = False
    result: Any = None
    error: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        return self.status in OVER


@router.get("/v1/inferences/{inference_id}")
async def read_inference(inference_id: str, request: Request, caller: Mine) -> JSONResponse:
    """Where a call stands; for one that is kept, its result too."""
    deps = get_deps(request)
    standing = await find(parse_id(inference_id), caller, deps)
    return JSONResponse(view(standing, deps), headers={"cache-control": "no-store"})


@router.post("/v1/inferences/{inference_id}/cancel")
async def cancel_inference(inference_id: str, request: Request, caller: Mine) -> JSONResponse:
    """Stop a call wherever it is; what it used is settled. Repeating it changes nothing.

    200 with the final state as soon as there is one, 202 while the call is being stopped.
    """
    deps = get_deps(request)
    standing = await find(parse_id(inference_id), caller, deps)
    if not standing.over:
        await stop(standing, caller, deps)
        standing = await settled_soon(standing, caller, deps)
    status = standing.status if standing.over else "cancelling"
    said = {"inference_id": str(standing.inference_id), "status": status}
    return JSONResponse(said, 200 if standing.over else 202)


async def stop(standing: Standing, caller: Caller, deps: Deps) -> None:
    """Note it where whoever takes the call up later reads it; then tell those that run."""
    if standing.kept:
        async with reachable():
            await deps.kept.cancel(standing.inference_id, caller.tenant)
    try:
        await order_stop(standing.inference_id, deps)
    except (RedisError, OSError) as error:
        if not standing.kept:
            raise Unavailable("The order could not be passed on. Repeat it.") from error


async def settled_soon(standing: Standing, caller: Caller, deps: Deps) -> Standing:
    """Where the call stands once it is over, or after a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CANCEL_PATIENCE_S
    while not standing.over and loop.time() < deadline:
        await asyncio.sleep(LOOKS_EVERY_S)
        standing = await find(standing.inference_id, caller, deps)
    return standing


async def find(inference_id: UUID, caller: Caller, deps: Deps) -> Standing:
    """The caller's call of this id. Raises `NotFound`, whatever the reason."""
    if (row := await in_database(inference_id, caller, deps)) is not None:
        return as_standing(inference_id, row, deps)
    waiting = await in_queue(inference_id, deps)
    if waiting is None:
        # it may have left the queue in between
        row = await in_database(inference_id, caller, deps)
        return as_standing(inference_id, row, deps) if row is not None else not_found()
    if waiting.caller["tenant_id"] != caller.tenant_id:
        not_found()
    return Standing(
        inference_id=inference_id,
        agent_id=caller.may_see(UUID(waiting.caller["agent_id"])),
        receipt_id=waiting.receipt_id,
        status="queued",
        created_at=datetime.fromtimestamp(waiting.accepted_at, UTC),
    )


async def in_database(inference_id: UUID, caller: Caller, deps: Deps) -> Row[Any] | None:
    async with reachable():
        rows = await deps.db.run_for(caller.tenant, _FIND, id=inference_id, tenant_id=caller.tenant)
    if not rows:
        return None
    caller.may_see(rows[0].agent_id)
    return rows[0]


async def in_queue(inference_id: UUID, deps: Deps) -> Envelope | None:
    """A call of which only the queue knows yet; None too if the queue cannot be asked."""
    try:
        return await deps.queue.envelope(inference_id)
    except (RedisError, OSError):
        return None


def as_standing(inference_id: UUID, row: Row[Any], deps: Deps) -> Standing:
    """A row of `_FIND` as a standing, its result opened."""
    kept = deps.kept.open_result(inference_id, row.result)
    failure = failure_of(kept)
    return Standing(
        inference_id=inference_id,
        agent_id=row.agent_id,
        receipt_id=row.receipt_id,
        status=status_of(row),
        created_at=row.created_at,
        finished_at=row.finished_at,
        model_used=row.model_used,
        cost_usd=row.cost_usd,
        kept=row.kept_state is not None,
        result=orjson.loads(kept.body) if kept is not None and kept.body else None,
        error=as_error(failure) if failure is not None else None,
    )


def status_of(row: Row[Any]) -> str:
    """One word for where a call stands."""
    runs = row.run_state == "held"
    if row.kept_state is not None:
        return kept_standing(
            row.kept_state, row.outcome, started=runs or row.started_at is not None
        )
    if row.run_state == CallState.DEAD:
        return CallState.DEAD.value
    return "running" if runs else ended_as(row.outcome)


def failure_of(kept: KeptResult | None) -> Failure | None:
    """How a call ended whose last record is no answer."""
    for record in kept.told() if kept is not None else ():
        if record.kind is RecordKind.FAIL:
            return unpack_failure(record.body)
    return None


def as_error(failure: Failure) -> dict[str, Any]:
    return {
        "code": failure.code,
        "status": failure.status,
        "message": failure.message,
        "detail": dict(failure.detail),
    }


def view(standing: Standing, deps: Deps) -> dict[str, Any]:
    """A standing as clients see it."""
    url = f"{deps.settings.base_url}/v1/inferences/{standing.inference_id}"
    said = {
        "inference_id": str(standing.inference_id),
        "agent_id": str(standing.agent_id),
        "receipt_id": standing.receipt_id and str(standing.receipt_id),
        "status": standing.status,
        "model_used": standing.model_used,
        "created_at": moment(standing.created_at),
        "finished_at": standing.finished_at and moment(standing.finished_at),
        "cost_usd": None if standing.cost_usd is None else usd(standing.cost_usd),
        "url": url,
        "events_url": f"{url}/events",
        "result": standing.result,
    }
    if standing.error is not None:
        said["error"] = standing.error
    elif standing.over and standing.result is None:
        said["result_reason"] = why_no_result(standing)
    return said


def why_no_result(standing: Standing) -> str:
    if standing.kept:
        return "The result was not kept."
    return (
        "Only calls in the background or with an Idempotency-Key have their results kept, and only "
        "for a time; the answer of any other goes to the client that asked."
    )
