"""How an answer begins: the call is enqueued, and its first word decides the HTTP status."""

import asyncio
import logging
import time

from fastapi import Request
from redis.exceptions import RedisError
from starlette.responses import Response
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from ingress.answers import (
    AnswerStream,
    abandon,
    answer_headers,
    failure_response,
    watch_disconnect,
)
from ingress.deps import CALL_PATIENCE_S, Deps
from ingress.limits import Turnstile
from ingress.reply import Reply
from shared.domain.inference import InferenceRequest
from shared.limiting import Admission
from shared.metrics import TIME_TO_FIRST_EVENT
from shared.queue import Envelope, Priority, Queued
from shared.stream import RecordKind, unpack_failure

log = logging.getLogger(__name__)

# a store that restarts, or fails over, is back about then
PERSISTENCE_S = 1.0


async def enqueue(
    envelope: Envelope, priority: Priority, deps: Deps, limited: Turnstile | None = None
) -> None:
    """Queue the call.

    Raises `RateLimited` or `Overloaded` where the queue has no room for it, and `RateLimited`
    where its key's limits do not admit it; `limited` hears where the key stands. Raises
    `RedisError` or `OSError`, `TimeoutError` among them, where nobody knows whether it was queued.
    """
    admission = limited.admission if limited is not None else None
    try:
        async with asyncio.timeout(CALL_PATIENCE_S):
            queued = await deps.queue.enqueue(envelope, priority, admission=admission)
    except TimeoutError:
        raise  # a store that stands still says nothing, however often it is asked
    except (RedisError, OSError) as error:
        log.warning("enqueue_repeated", extra={"error": repr(error)})
        queued = await _enqueue_again(envelope, priority, admission, deps)
    if limited is not None:
        limited.standing = queued.standing
    queued.ensure_taken()


async def _enqueue_again(
    envelope: Envelope, priority: Priority, admission: Admission | None, deps: Deps
) -> Queued:
    """Nobody knows whether it was queued; under one id it is queued once, however often asked."""
    retrying = AsyncRetrying(
        retry=retry_if_exception_type((RedisError, OSError)),
        stop=stop_after_delay(PERSISTENCE_S),
        wait=wait_exponential(multiplier=0.05, max=0.25),
        reraise=True,
    )
    return await retrying(deps.queue.enqueue, envelope, priority, admission=admission)


async def first_word(
    request: Request, call: InferenceRequest, envelope: Envelope, reply: Reply, deps: Deps
) -> Response:
    """Wait for what decides the status; a stream that waits long is opened before that."""
    began = time.perf_counter()
    watch = asyncio.create_task(watch_disconnect(request, reply))
    try:
        await reply.wait_opened()
    except BaseException:
        watch.cancel()
        raise
    TIME_TO_FIRST_EVENT.observe(time.perf_counter() - began)
    if call.stream and not reply.gone and (reply.opened is not None or not reply.ended):
        return AnswerStream(reply, envelope, watch, deps)
    watch.cancel()
    if reply.gone:
        await abandon(reply, envelope, deps)
        return Response(status_code=499)
    return await _body(reply, envelope, deps)


async def _body(reply: Reply, envelope: Envelope, deps: Deps) -> Response:
    """A folded answer, whose one body has come with its opening, or a failure before the start."""
    kind, body = await reply.next()
    while kind is None:  # a ping that came while the status was still open
        kind, body = await reply.next()
    deps.relay.forget(reply)
    if not reply.finished:  # broken off here, not by the worker: nobody will hear what it says
        await abandon(reply, envelope, deps)
    if kind is RecordKind.FAIL:
        return failure_response(unpack_failure(body), envelope.dialect, envelope, deps)
    headers = answer_headers(envelope, reply.opened, deps, stream=False)
    return Response(body, media_type="application/json", headers=headers)
