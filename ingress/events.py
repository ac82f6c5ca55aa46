"""The events of one inference, read again: from the start, or from where a client left off."""

import asyncio
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from starlette.responses import Response

from ingress.answers import (
    AnswerStream,
    answer_headers,
    failure_response,
    watch_disconnect,
)
from ingress.auth import Caller, current_caller, not_found, parse_id
from ingress.deps import Deps, get_deps, session
from ingress.ends import tell
from ingress.inferences import OVER, in_database, status_of
from ingress.openapi import EVENTS
from ingress.reply import Reply
from shared.domain.dialects.unfold import unfold
from shared.domain.inference import Dialect
from shared.errors import EventsExpired, InvalidBody, Unavailable
from shared.kept import ACCEPTED, DEAD, KeptCallRow
from shared.metrics import STREAM_RESUMES
from shared.queue import Envelope
from shared.replay_stream import unpack_head
from shared.stream import (
    Position,
    Record,
    RecordKind,
    ReplayEnds,
    encode_frames,
    look_at_replay,
    note_follower,
    number_frames,
    read_replay,
)

router = APIRouter()

LAST_EVENT_ID = "last-event-id"
LARGEST_SEQ = 2**32 - 1
# behind every entry that an attempt can have
END_OF_ATTEMPT = 2**64 - 1

Mine = Annotated[Caller, Depends(current_caller)]


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a reader sets in: behind the entry `since`, with what comes `after` this record.

    `opened` is the opening of the answer, where it is known already.
    """

    since: Position
    after: Position | None
    opened: bytes | None


@router.get("/v1/inferences/{inference_id}/events", response_model=None, openapi_extra=EVENTS)
async def read_events(inference_id: str, request: Request, caller: Mine) -> Response:
    """The inference's events as a stream, in the dialect of the call.

    Nothing is left to send after the last event: that is a 204, which tells an `EventSource` not
    to come again. What is not kept any more is a 410 that says how the call ended.
    """
    deps = get_deps(request)
    deps.drain.check()
    last_seen = last_event_id(request)
    wanted = parse_id(inference_id)
    try:
        ends = await look_at_replay(deps.redis, wanted)
        envelope = await whose(wanted, ends, caller, deps)
        if envelope is None:
            return await read_on_record(request, wanted, last_seen, caller, deps)
        if ends is not None and is_at_end(ends.last[-1], last_seen):
            return nothing_left(envelope, deps)
        begins = await beginning(wanted, ends, last_seen, deps)
        return await follow(request, envelope, begins, deps)
    except (RedisError, OSError) as error:
        raise Unavailable("The events cannot be read at the moment. Retry.") from error


def last_event_id(request: Request) -> int | None:
    """The `seq` of the last event that the client has; None: it wants all of them.

    Raises `InvalidBody` for what was never an id of ours.
    """
    said = request.headers.get(LAST_EVENT_ID, "").strip()
    if not said:
        return None
    if not (said.isascii() and said.isdigit() and len(said) <= 10 and int(said) <= LARGEST_SEQ):
        raise InvalidBody("Last-Event-ID: not the id of an event.", param="Last-Event-ID")
    return int(said)


async def whose(
    inference_id: UUID, ends: ReplayEnds | None, caller: Caller, deps: Deps
) -> Envelope | None:
    """The call, if it is the caller's and its events are kept, or still to come.

    None if neither the replay nor the queue knows it. Raises `NotFound` for someone else's.
    """
    if ends is not None and ends.head is not None:
        envelope: Envelope | None = unpack_head(ends.head, inference_id)
    else:
        envelope = await deps.queue.envelope(inference_id)
    if envelope is None:
        return None
    if envelope.caller["tenant_id"] != caller.tenant_id:
        not_found()
    caller.may_see(UUID(envelope.caller["agent_id"]))
    return envelope


def is_at_end(last: Record, last_seen: int | None) -> bool:
    """Whether the client has everything. Raises `InvalidBody` for an id behind the last one."""
    if last_seen is None or last.kind < RecordKind.DONE:
        return False
    if last_seen > last.seq:
        raise InvalidBody("Last-Event-ID: no event has this id.", param="Last-Event-ID")
    return last_seen == last.seq


def nothing_left(envelope: Envelope, deps: Deps) -> Response:
    return Response(status_code=204, headers=answer_headers(envelope, None, deps, stream=True))


async def beginning(
    inference_id: UUID, ends: ReplayEnds | None, last_seen: int | None, deps: Deps
) -> Beginning:
    """Where to set in. Of several attempts, the client's is the one that told words."""
    if ends is None:
        return Beginning((0, 0), None if last_seen is None else (0, last_seen), None)
    records = ends.first
    attempt = records[0].attempt
    if ends.last[-1].attempt != attempt:
        records = await read_replay(deps.redis, inference_id)
        attempt = attempt_of(records)
    openings = [r.body for r in records if r.kind is RecordKind.OPEN and r.attempt == attempt]
    opened = openings[0] if openings else None
    if last_seen is None:
        return Beginning((attempt - 1, END_OF_ATTEMPT), None, opened)
    return Beginning((attempt, last_seen), (attempt, last_seen), opened)


def attempt_of(records: list[Record]) -> int:
    """The first that told words, as no other may after it; else the newest."""
    spoke = [record.attempt for record in records if record.kind is RecordKind.DATA]
    return min(spoke) if spoke else records[-1].attempt


async def follow(request: Request, envelope: Envelope, begins: Beginning, deps: Deps) -> Response:
    """A stream that has begun; it waits for the first event as the call's own answer does."""
    tenant_id = UUID(envelope.caller["tenant_id"])
    reply = await reader(envelope.inference_id, tenant_id, begins, deps, kept=envelope.kept)
    return await stream(request, reply, envelope, deps)


async def reader(
    inference_id: UUID, tenant_id: UUID, begins: Beginning, deps: Deps, *, kept: bool
) -> Reply:
    """One more reader of a call, fed by its replay as it grows.

    The end of one that is kept is in the database, whatever becomes of the replay.
    """
    STREAM_RESUMES.inc()
    await note_follower(deps.redis, inference_id)
    reply = await deps.relay.follow(
        inference_id,
        str(tenant_id),
        since=begins.since,
        after=begins.after,
        opened=begins.opened,
        kept=kept,
    )
    if kept:
        deps.ends.wait_for(reply, inference_id, tenant_id, alone=False)
    return reply


async def join_stream(inference_id: UUID, tenant_id: UUID, deps: Deps) -> Reply:
    """A reader of a kept call from its first word on. Raises `RedisError` and `OSError`."""
    ends = await look_at_replay(deps.redis, inference_id)
    begins = await beginning(inference_id, ends, None, deps)
    return await reader(inference_id, tenant_id, begins, deps, kept=True)


async def stream(request: Request, reply: Reply, envelope: Envelope, deps: Deps) -> Response:
    watch = asyncio.create_task(watch_disconnect(request, reply))
    try:
        await reply.wait_opened()
    except BaseException:
        watch.cancel()
        reply.hang_up()
        deps.relay.forget(reply)
        raise
    return EventStream(reply, envelope, watch, deps)


class EventStream(AnswerStream):
    """The same stream as the call's own; an answer that was one body is told as events."""

    async def _next(self) -> tuple[bytes, bool]:
        body, more = await super()._next()
        if not more and body.startswith(b"{"):
            frames = unfold(self._envelope.dialect, orjson.loads(body))
            body = number_frames(encode_frames(frames), self._reply.last_seq)
        return body, more


async def read_on_record(
    request: Request, inference_id: UUID, last_seen: int | None, caller: Caller, deps: Deps
) -> Response:
    """A call that only the database knows. Raises `NotFound` if that does not know it either."""
    async with session(deps.db, caller.tenant) as s:
        kept = await kept_call(s, inference_id, caller)
    if kept is None:
        return await expired(inference_id, caller, deps)
    envelope = Envelope(
        inference_id=inference_id,
        receipt_id=kept.receipt_id,
        dialect=Dialect(kept.dialect),
        reply_to="",
        caller={"tenant_id": str(kept.tenant_id), "agent_id": str(kept.agent_id)},
        accepted_at=kept.accepted_at.timestamp(),
        trace_id="",
        body=b"",
        kept=True,
    )
    if kept.state == ACCEPTED:  # it will be driven into the queue
        begins = await beginning(inference_id, None, last_seen, deps)
        return await follow(request, envelope, begins, deps)
    result = deps.kept.open_result(inference_id, kept.result)
    if result is None:
        return await expired(inference_id, caller, deps)
    return await tell_kept(request, envelope, list(result.told()), last_seen, deps)


async def kept_call(s: AsyncSession, inference_id: UUID, caller: Caller) -> KeptCallRow | None:
    query = select(KeptCallRow).where(
        col(KeptCallRow.inference_id) == inference_id, col(KeptCallRow.tenant_id) == caller.tenant
    )
    kept = (await s.scalars(query)).one_or_none()
    if kept is not None:
        caller.may_see(kept.agent_id)
    return kept


async def tell_kept(
    request: Request, envelope: Envelope, records: list[Record], last_seen: int | None, deps: Deps
) -> Response:
    """The events of a call that has ended, from its kept result."""
    if is_at_end(records[-1], last_seen):
        return nothing_left(envelope, deps)
    STREAM_RESUMES.inc()
    after = None if last_seen is None else (0, last_seen)
    reply = Reply(envelope.inference_id.bytes, after=after, follows=True)
    tell(reply, records)
    if records[0].kind is RecordKind.OPEN:
        reply.opened = records[0].body
    return await stream(request, reply, envelope, deps)


async def expired(inference_id: UUID, caller: Caller, deps: Deps) -> Response:
    """How a call stands whose events are not kept any more, in the words of `read_inference`.

    Raises `NotFound` if it is unknown.
    """
    row = await in_database(inference_id, caller, deps)
    if row is None:
        not_found()
    status = status_of(row)
    if status not in (*OVER, DEAD):
        raise Unavailable("The events of this call were lost while it runs. Ask for its state.")
    ended = "set aside, and an operator may run it again" if status == DEAD else f"over: {status}"
    error = EventsExpired(
        f"The events of this inference are not kept any more. It is {ended}. "
        f"GET /v1/inferences/{inference_id} says more.",
        inference_id=str(inference_id),
        state=status,
        receipt_id=str(row.receipt_id) if row.receipt_id else None,
    )
    return failure_response(error.failure(), Dialect(row.dialect), None, deps)
