"""Inference calls, in three dialects: authenticate, parse, mint the id, hand to the relay."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from ingress.auth import Caller, authenticate
from ingress.deps import Deps, get_deps
from ingress.relay import Reply
from shared.control import CANCEL, give_order
from shared.domain.dialects import DIALECTS
from shared.domain.estimate import estimate_input_tokens
from shared.domain.inference import (
    CallInfo,
    Dialect,
    Failed,
    Failure,
    InferenceRequest,
    InvalidRequest,
)
from shared.errors import InvalidBody, RequestTooLarge, Unavailable
from shared.ids import mint_id
from shared.log import current_trace
from shared.metrics import ROUTER_ALIAS_HITS, TIME_TO_FIRST_EVENT
from shared.queue import Envelope
from shared.stream import RecordKind, encode_frames, number_frames, unpack_failure

log = logging.getLogger(__name__)
router = APIRouter()

FORWARDED_HEADERS = ("anthropic-version", "anthropic-beta", "tracestate")
LONGEST_HEADER = 1024
DEEPEST = 200
PINGS = {
    Dialect.ANTHROPIC: b'event: ping\ndata: {"type": "ping"}\n\n',
    Dialect.OPENAI: b": ping\n\n",
    Dialect.NATIVE: b": ping\n\n",
}


@router.post("/v1/inference", response_model=None)
async def native_inference(request: Request) -> Response:
    """One call in the native dialect."""
    return await answer(request, Dialect.NATIVE)


@router.post("/v1/messages", response_model=None)
async def messages(request: Request) -> Response:
    """One call in the Anthropic Messages dialect."""
    return await answer(request, Dialect.ANTHROPIC)


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request) -> Response:
    """One call in the OpenAI chat completions dialect."""
    return await answer(request, Dialect.OPENAI)


@router.post("/v1/messages/count_tokens", response_model=None)
async def count_tokens(request: Request) -> Response:
    """How many input tokens a Messages body holds, by the estimate that decisions use."""
    deps = get_deps(request)
    await authenticate(request.headers, None, deps)
    body = await read_body(request, deps.settings.max_body_bytes)
    call = parse(body, Dialect.ANTHROPIC, max_tokens=1)
    return Response(
        orjson.dumps({"input_tokens": estimate_input_tokens(call)}), media_type="application/json"
    )


async def answer(request: Request, dialect: Dialect) -> Response:
    """The whole of one call: from the headers to a body, or to a stream that has begun.

    Raises an `AinferaError` for what is wrong before the queue is reached; what goes wrong
    behind it comes back as a failure and is rendered with the inference's id.
    """
    deps = get_deps(request)
    caller = await authenticate(request.headers, None, deps)
    body = await read_body(request, deps.settings.max_body_bytes)
    call = parse(body, dialect)
    if call.background:
        raise InvalidBody(
            "background: calls in the background are not offered.", param="background"
        )
    if call.agent_id is not None and call.agent_id != caller.agent_id:
        caller = await authenticate(request.headers, call.agent_id, deps)
    note_alias(call)
    envelope = seal(body, dialect, caller, request.headers, deps)
    reply = deps.relay.expect(envelope.inference_id, pings=call.stream)
    try:
        await deps.queue.enqueue(envelope)
        return await _first_word(request, call, envelope, reply, deps)
    except (RedisError, OSError) as error:
        deps.relay.forget(reply)
        raise Unavailable("The queue cannot be reached; nothing was charged. Retry.") from error
    except BaseException:
        deps.relay.forget(reply)
        raise


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises `RequestTooLarge` as soon as `limit` bytes are passed."""
    too_large = RequestTooLarge(f"The body is larger than {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(body: bytes, dialect: Dialect, **defaults: Any) -> InferenceRequest:
    """The body as a request. Raises `InvalidBody`, which names the field at fault.

    `defaults` stand in for fields that the body leaves out.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"The body is not valid JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise InvalidBody("The body must be a JSON object.")
    refuse_depth(body, parsed)
    try:
        return DIALECTS[dialect].parse_request({**defaults, **parsed} if defaults else parsed)
    except InvalidRequest as error:
        raise InvalidBody(str(error), param=error.param) from error


def refuse_depth(body: bytes, parsed: Any) -> None:
    """JSON can be read deeper than it can be written; what cannot be passed on is refused here."""
    if body.count(b"{") + body.count(b"[") > DEEPEST:
        try:
            orjson.dumps(parsed)
        except TypeError as error:
            raise InvalidBody("The body is nested too deeply.") from error


def note_alias(call: InferenceRequest) -> None:
    if call.alias is not None:
        ROUTER_ALIAS_HITS.labels(alias=call.alias).inc()
        log.info("router_alias_hit", extra={"legacy": call.alias, "canonical": call.model})


def seal(
    body: bytes, dialect: Dialect, caller: Caller, headers: Mapping[str, str], deps: Deps
) -> Envelope:
    """What the worker gets: fresh ids, the caller and the body as it came."""
    passed_on = {
        name: headers[name]
        for name in FORWARDED_HEADERS
        if name in headers and headers[name].isascii()
    }
    trace_id = current_trace()
    passed_on["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-01"
    return Envelope(
        inference_id=mint_id(),
        receipt_id=mint_id(),
        dialect=dialect,
        reply_to=deps.relay.channel,
        caller=caller.for_worker(),
        accepted_at=time.time(),
        trace_id=trace_id,
        headers=passed_on,
        body=body,
    )


async def _first_word(
    request: Request, call: InferenceRequest, envelope: Envelope, reply: Reply, deps: Deps
) -> Response:
    """Wait for what decides the status; a stream that waits long is opened before that."""
    began = time.perf_counter()
    watch = asyncio.create_task(_watch_disconnect(request, reply))
    try:
        await reply.wait_opened()
        TIME_TO_FIRST_EVENT.observe(time.perf_counter() - began)
        if reply.gone:
            await _abandon(reply, envelope, deps)
            return Response(status_code=499)
        if not call.stream or (reply.opened is None and reply.ended):
            return await _body(reply, envelope, deps)
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    return EventSourceResponse(
        _stream(reply, envelope, deps),
        headers=answer_headers(envelope, reply.opened, deps, stream=True),
        ping=0,
        send_timeout=deps.settings.idle_deadline_s,
    )


async def _watch_disconnect(request: Request, reply: Reply) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    reply.hang_up()


async def _abandon(reply: Reply, envelope: Envelope, deps: Deps) -> None:
    """The client left: its provider call is stopped and what was used is settled."""
    deps.relay.forget(reply)
    if not reply.finished:
        await give_order(deps.redis, CANCEL, inference_id=str(envelope.inference_id))


async def _body(reply: Reply, envelope: Envelope, deps: Deps) -> Response:
    """A folded answer, whose one body has come with its opening, or a failure before the start."""
    kind, body = await reply.next()
    while kind is None:  # a ping that came while the status was still open
        kind, body = await reply.next()
    deps.relay.forget(reply)
    if kind is RecordKind.FAIL:
        return failure_response(unpack_failure(body), envelope.dialect, envelope, deps)
    headers = answer_headers(envelope, reply.opened, deps, stream=False)
    return Response(body, media_type="application/json", headers=headers)


async def _stream(reply: Reply, envelope: Envelope, deps: Deps) -> AsyncIterator[bytes]:
    """The chunks of a streamed answer, with a ping in every long silence."""
    try:
        while True:
            kind, body = await reply.next()
            if kind is None:
                yield PINGS[envelope.dialect]
            elif kind is RecordKind.FAIL:
                yield failure_frames(unpack_failure(body), reply, envelope, deps)
                return
            else:
                yield body
            if kind is RecordKind.DONE:
                return
    except ConnectionAbortedError:
        return
    finally:
        await asyncio.shield(_abandon(reply, envelope, deps))


def answer_headers(
    envelope: Envelope, opened: bytes | None, deps: Deps, *, stream: bool
) -> dict[str, str]:
    """The contract's headers; the model's name only where it is known by now."""
    agent_id = envelope.caller["agent_id"]
    headers = {
        "x-ainfera-inference-id": str(envelope.inference_id),
        "x-ainfera-agent-id": agent_id,
        "x-ainfera-receipt-id": str(envelope.receipt_id),
        "x-ainfera-audit-url": deps.settings.audit_url(agent_id),
        "request-id": str(envelope.inference_id),
        "x-request-id": str(envelope.inference_id),
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
    return number_frames(encode_frames(frames), reply.next_seq)


def failure_response(
    failure: Failure, dialect: Dialect, envelope: Envelope | None, deps: Deps
) -> Response:
    """A failure as the HTTP response of its dialect, with the inference's id where there is one."""
    spoken = DIALECTS[dialect]
    inference_id = str(envelope.inference_id) if envelope is not None else None
    headers = answer_headers(envelope, None, deps, stream=False) if envelope is not None else {}
    if failure.retry_after is not None:
        headers["retry-after"] = str(max(1, round(failure.retry_after)))
    return Response(
        orjson.dumps(spoken.render_failure(failure, inference_id)),
        status_code=spoken.http_status(failure),
        media_type="application/json",
        headers=headers,
    )
