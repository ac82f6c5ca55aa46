"""Inference calls, in three dialects: authenticate, parse, mint the id, hand to the relay."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ingress import openapi
from ingress.answers import failure_response, order_stop
from ingress.auth import Caller, authenticate
from ingress.deps import Deps, get_deps
from ingress.kept import answer_kept, idempotency_key
from ingress.limits import Turnstile, limit_headers, turnstile
from ingress.opening import enqueue, first_word
from ingress.quoted import give_back, is_replay, quote_named, take_quote
from shared.attribution import attribution_of
from shared.domain.dialects import DIALECTS
from shared.domain.dialects.wishes import HINT_HEADERS, hear_headers
from shared.domain.estimate import estimate_input_tokens
from shared.domain.inference import Dialect, InferenceRequest, InvalidRequest
from shared.errors import AinferaError, InvalidBody, KillswitchEngaged, RequestTooLarge, Unavailable
from shared.ids import mint_id
from shared.log import current_trace
from shared.metrics import ROUTER_ALIAS_HITS
from shared.queue import Envelope, Priority

log = logging.getLogger(__name__)
router = APIRouter()

# the first three are for the provider, the rest for whoever decides
FORWARDED_HEADERS = ("anthropic-version", "anthropic-beta", "tracestate", *HINT_HEADERS.values())
DEEPEST = 200
# where the queue stands still, the order to stop a call may wait there with the call
STOP_PATIENCE_S = 0.5


LEAST = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "What is a double-entry ledger?"}],
}


@router.post(
    "/v1/inference", response_model=None, openapi_extra=openapi.call(Dialect.NATIVE, LEAST)
)
async def native_inference(request: Request) -> Response:
    """One call in the native dialect."""
    return await answer(request, Dialect.NATIVE)


@router.post(
    "/v1/messages", response_model=None, openapi_extra=openapi.call(Dialect.ANTHROPIC, LEAST)
)
async def messages(request: Request) -> Response:
    """One call in the Anthropic Messages dialect."""
    return await answer(request, Dialect.ANTHROPIC)


@router.post(
    "/v1/chat/completions", response_model=None, openapi_extra=openapi.call(Dialect.OPENAI, LEAST)
)
async def chat_completions(request: Request) -> Response:
    """One call in the OpenAI chat completions dialect."""
    return await answer(request, Dialect.OPENAI)


@router.post("/v1/messages/count_tokens", response_model=None, openapi_extra=openapi.count(LEAST))
async def count_tokens(request: Request) -> Response:
    """How many input tokens a Messages body holds, by the estimate that decisions use."""
    deps = get_deps(request)
    (await authenticate(request.headers, None, deps)).may_use(request.scope)
    body = await read_body(request, deps.settings.max_body_bytes)
    call = parse(body, Dialect.ANTHROPIC, max_tokens=1)
    return Response(
        orjson.dumps({"input_tokens": estimate_input_tokens(call)}), media_type="application/json"
    )


# reached past the framework's routing, see `RequestContext`; they bound what they read themselves
CALLS = {
    "/v1/inference": native_inference,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": count_tokens,
    "/v1/chat/completions": chat_completions,
}


async def answer(request: Request, dialect: Dialect) -> Response:
    """The whole of one call: from the headers to a body, or to a stream that has begun.

    Raises an `AinferaError` for what is wrong before the queue is reached; what goes wrong
    behind it comes back as a failure and is rendered with the inference's id.
    """
    deps = get_deps(request)
    deps.drain.check()
    caller = (await authenticate(request.headers, None, deps)).may_use(request.scope)
    body = await read_body(request, deps.settings.max_body_bytes)
    key = idempotency_key(request.headers)
    call = hear(parse(body, dialect), request.headers)
    if call.agent_id is not None and call.agent_id != caller.agent_id:
        caller = await authenticate(request.headers, call.agent_id, deps)
    note_alias(call)
    envelope = seal(body, dialect, call.model, caller, request.headers, deps)
    limited = turnstile(caller, call)
    if limited is None:
        return await answer_call(request, call, envelope, key, deps, None)
    return await answer_limited(request, call, envelope, key, deps, limited)


async def answer_limited(
    request: Request,
    call: InferenceRequest,
    envelope: Envelope,
    key: str | None,
    deps: Deps,
    limited: Turnstile,
) -> Response:
    """The same, with what is left of the key's limits on the answer, or on the refusal."""
    try:
        response = await answer_call(request, call, envelope, key, deps, limited)
    except AinferaError as refused:
        response = failure_response(refused.failure(), envelope.dialect, None, deps)
    if limited.standing is not None:
        response.headers.update(limit_headers(limited.standing, envelope.dialect))
    return response


async def answer_call(
    request: Request,
    call: InferenceRequest,
    envelope: Envelope,
    key: str | None,
    deps: Deps,
    limited: Turnstile | None,
) -> Response:
    """The call as it is, or at the terms of the quote that it names."""
    named = quote_named(call, request.headers)
    if named is None:
        return await answer_accepted(request, call, envelope, key, deps, limited)
    envelope = await take_quote(named, call, envelope, key, deps)
    try:
        response = await answer_accepted(request, call, envelope, key, deps, limited)
    except AinferaError:
        await give_back(envelope, deps)
        raise
    if is_replay(response):
        await give_back(envelope, deps)
    return response


async def answer_accepted(
    request: Request,
    call: InferenceRequest,
    envelope: Envelope,
    key: str | None,
    deps: Deps,
    limited: Turnstile | None,
) -> Response:
    """One that is kept, or one that lives as long as its client waits for it."""
    if key is not None or call.background:
        try:
            return await answer_kept(request, call, envelope, key, deps, limited)
        except KillswitchEngaged:  # not kept: a worker refuses it, and writes that down
            return await answer_interactive(request, call, envelope, deps, limited)
    return await answer_interactive(request, call, envelope, deps, limited)


async def answer_interactive(
    request: Request,
    call: InferenceRequest,
    envelope: Envelope,
    deps: Deps,
    limited: Turnstile | None,
) -> Response:
    """A call that lives as long as its client waits for it."""
    reply = deps.relay.expect(envelope.inference_id, pings=call.stream, envelope=envelope)
    try:
        await enqueue(envelope, Priority.INTERACTIVE, deps, limited)
        return await first_word(request, call, envelope, reply, deps)
    except (RedisError, OSError):
        deps.relay.forget(reply)
        return await unconfirmed(envelope, deps)
    except BaseException:
        deps.relay.forget(reply)
        raise


async def unconfirmed(envelope: Envelope, deps: Deps) -> Response:
    """The queue may have the call or not: it shall not run for nobody, and its id is told."""
    with suppress(RedisError, OSError):
        async with asyncio.timeout(STOP_PATIENCE_S):
            await order_stop(envelope.inference_id, deps)
    away = Unavailable(
        "The queue does not answer, so the call may or may not have been queued. If it was, it is "
        "stopped, or charged once, as the agent's wallet and ledger show. Retry; with an "
        "Idempotency-Key no call runs twice."
    )
    return failure_response(away.failure(), envelope.dialect, envelope, deps)


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body.

    Raises `RequestTooLarge` as soon as `limit` bytes are passed, `InvalidBody` for half a body.
    """
    too_large = RequestTooLarge(f"The body is larger than {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
    except ClientDisconnect as gone:
        raise InvalidBody("The client left before its body was whole.") from gone
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


def hear(call: InferenceRequest, headers: Mapping[str, str]) -> InferenceRequest:
    """The call with the wishes of its headers. Raises `InvalidBody`, which names the header."""
    try:
        return hear_headers(call, headers)
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
    body: bytes,
    dialect: Dialect,
    model: str,
    caller: Caller,
    headers: Mapping[str, str],
    deps: Deps,
) -> Envelope:
    """What the worker gets: fresh ids, the caller and the body as it came."""
    passed_on = {
        name: headers[name]
        for name in FORWARDED_HEADERS
        if name in headers and headers[name].isascii()
    }
    trace_id = current_trace()
    passed_on["traceparent"] = f"00-{trace_id}-{random.getrandbits(64):016x}-01"
    return Envelope(
        inference_id=mint_id(),
        receipt_id=mint_id(),
        dialect=dialect,
        reply_to=deps.relay.channel,
        caller=caller.for_worker(),
        accepted_at=time.time(),
        trace_id=trace_id,
        headers=passed_on,
        model=model,
        body=body,
        attribution=attribution_of(headers),
    )
