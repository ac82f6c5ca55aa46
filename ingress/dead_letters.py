"""Dead letters for operators: look at them, run one again, or end it for good."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from redis.exceptions import RedisError

from ingress.auth import not_found, require_internal
from ingress.deps import everyone, get_deps
from ingress.wire import Moment, Text
from shared.dead_letters import LetterFilter, close_letter, find_letters, read_letter
from shared.domain.attempts import LetterState
from shared.errors import LetterNotDead
from shared.keys import request_sealer
from shared.operators import OVER_HTTP
from shared.replays import ReplayRefusal, enqueue_replay, order_replay

router = APIRouter(
    prefix="/internal/dead-letters",
    dependencies=[Depends(require_internal)],
    include_in_schema=False,
)

MOST_LETTERS = 500
REFUSED = {
    ReplayRefusal.NOT_DEAD: "The letter does not wait any more: it was replayed, discarded or has"
    " expired.",
    ReplayRefusal.UNREADABLE: "The request cannot be read by this version, or with this master"
    " key.",
    ReplayRefusal.WORN_OUT: "The call has been tried too often.",
}


@router.get("")
async def list_letters(
    request: Request,
    state: LetterState | Literal["any"] = LetterState.DEAD,
    tenant: UUID | None = None,
    since: Moment | None = None,
    code: Text | None = None,
    model: Text | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LETTERS)] = 100,
) -> list[dict[str, Any]]:
    """The oldest letters that the filters mean; never what they carry."""
    wanted = LetterFilter(None if state == "any" else state, tenant, since, code, model)
    async with everyone(get_deps(request).db) as s:
        return await find_letters(s, wanted, limit)


@router.get("/{inference_id}")
async def show_letter(inference_id: UUID, request: Request) -> dict[str, Any]:
    """One letter: its error, its attempts, what became of it; never what it carries."""
    async with everyone(get_deps(request).db) as s:
        letter = await read_letter(s, inference_id)
    return letter if letter is not None else not_found()


@router.post("/{inference_id}/replay")
async def replay_letter(inference_id: UUID, request: Request) -> dict[str, Any]:
    """Run the call again under its id; `queued` is false where the books worker has to see to it.

    Raises `NotFound`, or `LetterNotDead` (409) where it cannot be replayed.
    """
    deps = get_deps(request)
    sealer = request_sealer(deps.settings.master_key.get_secret_value())
    async with everyone(deps.db) as s:
        ordered = await order_replay(s, sealer, inference_id, OVER_HTTP)
        if ordered is ReplayRefusal.UNKNOWN:
            not_found()
        if isinstance(ordered, ReplayRefusal):
            raise LetterNotDead(REFUSED[ordered], reason=ordered.value)
        await s.commit()
    try:
        await enqueue_replay(deps.queue, ordered)
    except (RedisError, OSError):
        return {"inference_id": str(inference_id), "state": "replayed", "queued": False}
    return {"inference_id": str(inference_id), "state": "replayed", "queued": True}


@router.post("/{inference_id}/discard")
async def discard_letter(inference_id: UUID, request: Request) -> dict[str, Any]:
    """End the call for good, at no charge. Raises `NotFound`, or `LetterNotDead` (409)."""
    deps = get_deps(request)
    async with everyone(deps.db) as s:
        if await read_letter(s, inference_id) is None:
            not_found()
        if not await close_letter(s, deps.kept, inference_id, LetterState.DISCARDED, OVER_HTTP):
            raise LetterNotDead(REFUSED[ReplayRefusal.NOT_DEAD], reason="not_dead")
        await s.commit()
    return {"inference_id": str(inference_id), "state": "discarded"}
