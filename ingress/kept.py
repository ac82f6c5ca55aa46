"""Calls that are kept: those with an `Idempotency-Key`, and those in the background.

They are durable in Postgres before the queue, or the client, hears of them. The key belongs to
the tenant and the path. The same key with the same request (agent, path, body) is answered with
what the first call's client was told, or waits for it with the others; with another request it is
a conflict. So a client that lost its connection sends the same again and gets the same inference.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from fastapi import Request
from redis.exceptions import RedisError
from starlette.responses import Response

from ingress.answers import answer_headers
from ingress.deps import CALL_PATIENCE_S, Deps, reachable
from ingress.ends import tell
from ingress.events import join_stream
from ingress.limits import Turnstile
from ingress.opening import enqueue, first_word
from ingress.reply import Reply
from shared.domain.inference import InferenceRequest
from shared.errors import AinferaError, IdempotencyConflict, InvalidBody, Overloaded
from shared.kept import DONE, KeptCall
from shared.queue import Envelope, Priority

log = logging.getLogger(__name__)

KEY_HEADER = "idempotency-key"
REPLAYED = {"idempotent-replayed": "true"}
LONGEST_KEY = 255


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The key of a request, None without one. Raises `InvalidBody` for one that is not usable."""
    key = headers.get(KEY_HEADER)
    if key is None:
        return None
    if not (1 <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidBody(
            f"Idempotency-Key: 1 to {LONGEST_KEY} printable ASCII characters are needed.",
            param="Idempotency-Key",
        )
    return key


async def answer_kept(
    request: Request,
    call: InferenceRequest,
    envelope: Envelope,
    key: str | None,
    deps: Deps,
    limited: Turnstile | None = None,
) -> Response:
    """Accept the call, or find the one that has its key; then answer as the one that it is."""
    envelope = replace(envelope, kept=True)
    path = request.scope["path"]
    # before the call can be enqueued: pub/sub forgets what nobody hears
    reply = None
    if not call.background:
        reply = deps.relay.expect(envelope.inference_id, pings=call.stream, kept=True)
    try:
        known = await accept(call, envelope, path, key, deps, limited)
        if known.fresh:
            if reply is None:
                return accepted(envelope, known.standing, deps)
            deps.ends.wait_for(reply, known.inference_id, known.tenant_id, alone=False)
            return await first_word(request, call, envelope, reply, deps)
    except BaseException:
        if reply is not None:
            reply.hang_up()
            deps.relay.forget(reply)
        raise
    if reply is not None:
        deps.relay.forget(reply)
    return await join(request, call, envelope, known, deps)


async def accept(
    call: InferenceRequest,
    envelope: Envelope,
    path: str,
    key: str | None,
    deps: Deps,
    limited: Turnstile | None,
) -> KeptCall:
    """Write the call down and enqueue it, or find the call that has its key.

    Raises `IdempotencyConflict`, `RateLimited`, `Overloaded` and `KillswitchEngaged`; then nothing
    is kept.
    """
    try:
        async with reachable(CALL_PATIENCE_S):
            known = await deps.kept.keep(
                envelope, path, key, stream=call.stream, background=call.background
            )
    except Overloaded:
        # it may be written when Postgres goes on, and nobody was told that it is accepted
        deps.kept.withdraw_patiently(envelope)
        raise
    if known.fresh:
        priority = Priority.BACKGROUND if call.background else Priority.INTERACTIVE
        try:
            if call.background:  # 202 would be a promise; who waits is refused by the worker
                deps.killswitch.check(envelope.caller["tenant_id"])
            await enqueue(envelope, priority, deps, limited)
        except AinferaError:
            await take_back(envelope, deps)
            raise
        except (RedisError, OSError) as error:
            # it is accepted all the same: what is not in the queue is driven into it
            log.warning("kept_call_not_enqueued", extra={"error": repr(error)})
    elif not known.same_request:
        raise IdempotencyConflict(
            "This Idempotency-Key was used for another request. Use a new key, or send the very "
            "same body for the same agent to the same path."
        )
    return known


async def take_back(envelope: Envelope, deps: Deps) -> None:
    """Forget a call that was refused after all.

    Where Postgres is away by now, or its client leaves, as soon as can be: what stays accepted is
    run one day, and charged, though its client was told that it is not.
    """
    try:
        async with reachable(CALL_PATIENCE_S):
            await deps.kept.withdraw(envelope)
    except (Overloaded, asyncio.CancelledError) as stopped:
        deps.kept.withdraw_patiently(envelope)
        if not isinstance(stopped, Overloaded):
            raise


async def join(
    request: Request, call: InferenceRequest, mine: Envelope, known: KeptCall, deps: Deps
) -> Response:
    """Answer with what another call's client is told, from its first word on."""
    envelope = replace(mine, inference_id=known.inference_id, receipt_id=known.receipt_id)
    if call.background:
        response = accepted(envelope, known.standing, deps)
    else:
        reply = await hear(call, known, deps)
        try:
            response = await first_word(request, call, envelope, reply, deps)
        except BaseException:
            reply.hang_up()
            deps.relay.forget(reply)
            raise
    response.headers.update(REPLAYED)
    return response


async def hear(call: InferenceRequest, known: KeptCall, deps: Deps) -> Reply:
    """What a second client hears: the whole of a call that is over, or a call as it runs.

    A stream is joined: the client has its words as they come. Where the replay cannot be read the
    client waits for the end, as for an answer in one body, which comes with its end anyway.
    """
    if call.stream and known.state != DONE:
        try:
            return await join_stream(known.inference_id, known.tenant_id, deps)
        except (RedisError, OSError) as error:
            log.warning("stream_not_joined", extra={"error": repr(error)})
    now = asyncio.get_running_loop().time()
    reply = Reply(known.inference_id.bytes, pings=call.stream, now=now, kept=True)
    if known.state == DONE:
        kept = deps.kept.open_result(known.inference_id, known.sealed_result)
        tell(reply, kept.told() if kept is not None else ())
    else:
        deps.ends.wait_for(reply, known.inference_id, known.tenant_id, alone=True)
    return reply


def accepted(envelope: Envelope, status: str, deps: Deps) -> Response:
    """202: the call is kept, and where to ask for it."""
    url = f"{deps.settings.base_url}/v1/inferences/{envelope.inference_id}"
    body: dict[str, Any] = {
        "inference_id": str(envelope.inference_id),
        "receipt_id": str(envelope.receipt_id),
        "status": status,
        "url": url,
        "events_url": f"{url}/events",
    }
    headers = answer_headers(envelope, None, deps, stream=False) | {"location": url}
    return Response(
        orjson.dumps(body), status_code=202, media_type="application/json", headers=headers
    )
