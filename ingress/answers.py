"""How an answer looks to its client: headers, the open stream, a failure in its dialect."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from uuid import UUID

import orjson
from redis.exceptions import RedisError
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ingress.deps import Deps
from ingress.reply import Reply
from shared.control import CANCEL, give_order
from shared.domain.dialects import DIALECTS
from shared.domain.inference import ROUTING_TARGET, CallInfo, Dialect, Failed, Failure
from shared.errors import Draining
from shared.queue import Envelope
from shared.stream import RecordKind, encode_frames, number_frames, unpack_failure

log = logging.getLogger(__name__)

LONGEST_HEADER = 1024
PINGS = {
    Dialect.ANTHROPIC: b'event: ping\ndata: {"type": "ping"}\n\n',
    Dialect.OPENAI: b": ping\n\n",
    Dialect.NATIVE: b": ping\n\n",
}


class AnswerStream(EventSourceResponse):
    """An open answer as server-sent events: ready bytes go out as they come.

    sse-starlette's response without its task group and its cancel scope around every chunk,
    which cost more than writing the bytes. What they are for is done once for all streams:
    the relay's timer pings the silent and cuts the stalled off, `watch` (the call's own, since
    it came in) hears of a client that leaves, and a shutdown waits for streams to end.
    """

    def __init__(
        self, reply: Reply, envelope: Envelope, watch: asyncio.Task[None], deps: Deps
    ) -> None:
        headers = answer_headers(envelope, reply.opened, deps, stream=True)
        super().__init__(nothing(), headers=headers, ping=0)
        self._reply = reply
        self._envelope = envelope
        self._watch = watch
        self._deps = deps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._reply
        try:
            with reply.sending():
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                more = True
                while more:
                    chunk, more = await self._next()
                    reply.sends()
                    await send({"type": "http.response.body", "body": chunk, "more_body": more})
                    reply.sent()
        except ConnectionAbortedError:
            log.info("client_left")
        finally:
            self._watch.cancel()
            if reply.finished or reply.goes_on:
                self._deps.relay.forget(reply)
            else:
                await asyncio.shield(abandon(reply, self._envelope, self._deps))

    async def _next(self) -> tuple[bytes, bool]:
        """The next bytes for the client, and whether there will be more."""
        kind, body = await self._reply.next()
        if kind is RecordKind.DATA:
            return body, True
        if kind is None:
            return PINGS[self._envelope.dialect], True
        if kind is RecordKind.FAIL:
            body = failure_frames(unpack_failure(body), self._reply, self._envelope, self._deps)
        return body, False


async def nothing() -> AsyncIterator[bytes]:
    """The content that sse-starlette asks for; the stream brings its own."""
    return
    yield b""


async def watch_disconnect(request: Request, reply: Reply) -> None:
    """Let the reply know once its client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    reply.hang_up()


async def abandon(reply: Reply, envelope: Envelope, deps: Deps) -> None:
    """The client left: its provider call is stopped and what was used is settled.

    Not that of a call that is kept, whose client may come back for it, nor where the operator
    lets all calls run to their end. Of those who only follow a call any may leave.
    """
    deps.relay.forget(reply)
    drains = envelope.kept or deps.settings.on_disconnect == "drain"
    if not (reply.finished or reply.follows or drains):
        try:
            await order_stop(envelope.inference_id, deps)
        except (RedisError, OSError) as error:
            log.warning("call_not_stopped", extra={"error": repr(error)})


async def order_stop(inference_id: UUID, deps: Deps) -> None:
    """Stop a call, wherever it is: the order stands at its job first, then all workers hear it.

    In that order, because a worker that starts between the two hears the second or reads the first.
    """
    await deps.queue.stop(inference_id)
    await give_order(deps.redis, CANCEL, inference_id=str(inference_id))


def answer_headers(
    envelope: Envelope, opened: bytes | None, deps: Deps, *, stream: bool
) -> dict[str, str]:
    """The contract's headers; the model's name only where it is known by now."""
    agent_id, inference_id = envelope.caller["agent_id"], str(envelope.inference_id)
    headers = {
        "x-ainfera-inference-id": inference_id,
        "x-ainfera-agent-id": agent_id,
        "x-ainfera-receipt-id": str(envelope.receipt_id),
        "x-ainfera-audit-url": deps.settings.audit_url(agent_id),
        "x-ainfera-router": ROUTING_TARGET if envelope.model == ROUTING_TARGET else "direct",
        "request-id": inference_id,
        "x-request-id": inference_id,
    }
    if stream:
        headers["x-ainfera-stream-mode"] = "native"
    if opened is not None:
        head: dict[str, Any] = orjson.loads(opened)
        headers["x-ainfera-model"] = head["model"]
        if head["simulated"]:
            headers["x-ainfera-simulated"] = "true"
        if head["ignored"]:
            headers["x-ainfera-ignored-fields"] = as_header(head["ignored"])
    return headers


def as_header(names: Iterable[str]) -> str:
    """Names that a client chose, as a header value: nothing in it can end the header."""
    return quote(",".join(names)[:LONGEST_HEADER], safe=",._-[]$ ")


def failure_frames(failure: Failure, reply: Reply, envelope: Envelope, deps: Deps) -> bytes:
    """A failure inside a stream that has begun, in the stream's dialect."""
    dialect = DIALECTS[envelope.dialect]
    agent_id = envelope.caller["agent_id"]
    call = CallInfo(
        inference_id=str(envelope.inference_id),
        receipt_id=str(envelope.receipt_id),
        agent_id=agent_id,
        audit_url=deps.settings.audit_url(agent_id),
        model="",
        provider="",
        created=int(envelope.accepted_at),
    )
    frames = dialect.render_event(Failed(failure), dialect.RenderState(call))
    told = encode_frames(frames)
    # an end that is our own word bears the last record's number: a client resumes after that
    return number_frames(told, reply.last_seq) if reply.last_seq >= 0 else told


def failure_response(
    failure: Failure,
    dialect: Dialect,
    envelope: Envelope | None,
    deps: Deps,
    beside: Mapping[str, Any] | None = None,
) -> Response:
    """A failure as the HTTP response of its dialect, with the inference's id where there is one.

    `beside` goes to the top level of the body.
    """
    spoken = DIALECTS[dialect]
    inference_id = str(envelope.inference_id) if envelope is not None else None
    headers = answer_headers(envelope, None, deps, stream=False) if envelope is not None else {}
    if failure.status == HTTPStatus.CONFLICT:
        headers["x-should-retry"] = "false"  # SDKs send a 409 again by themselves, in vain
    if failure.code == Draining.code:
        headers["connection"] = "close"  # its next request shall find another instance
    if failure.retry_after is not None:
        # never too early: whole seconds for the standard's header, SDKs read the milliseconds
        headers["retry-after"] = str(max(1, math.ceil(failure.retry_after)))
        headers["retry-after-ms"] = str(math.ceil(failure.retry_after * 1000))
    return Response(
        orjson.dumps({**spoken.render_failure(failure, inference_id), **(beside or {})}),
        status_code=spoken.http_status(failure),
        media_type="application/json",
        headers=headers,
    )
