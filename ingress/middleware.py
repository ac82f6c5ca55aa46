"""One pure ASGI middleware: the request's trace id, its count and duration, and a shortcut."""

import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.log import bind_trace
from shared.metrics import observe_request

# Nothing but a call needs more. The framework has the whole of a body in memory before it asks for
# a key, or how often an address has come.
LARGEST_SMALL_BODY = 256 * 1024
TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")


Endpoint = Callable[[Request], Awaitable[Response]]
OnError = Callable[[Request, Exception], Awaitable[Response]]


class RequestContext:
    """Outermost of all, so that it sees every response, the error handler's too.

    `shortcuts` are endpoints by path that a POST reaches without the framework's routing:
    nine layers that inference calls have no use for, each of which every chunk of a stream
    would pass again, and which cost a call as much as reading, checking and enqueueing it.
    """

    def __init__(
        self,
        app: ASGIApp,
        shortcuts: Mapping[str, Endpoint] | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._app = app
        self._shortcuts = shortcuts or {}
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 499
        bind_trace(trace_id(scope))

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        endpoint = self._shortcuts.get(scope["path"]) if scope["method"] == "POST" else None
        try:
            if endpoint is not None:
                await self._call(endpoint, scope, receive, noting)
            else:
                await self._app(scope, bounded(receive), noting)
        except Exception:
            status = 500 if status == 499 else status  # nobody left: it is our own bug
            raise
        finally:
            path = scope["path"] if endpoint else getattr(scope.get("route"), "path", "other")
            observe_request(scope["method"], path, status, time.perf_counter() - began)

    async def _call(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:  # the edge of a request; the handler logs what is a bug
            if self._on_error is None:
                raise
            response = await self._on_error(request, error)
        await response(scope, receive, send)


def bounded(receive: Receive, most: int = LARGEST_SMALL_BODY) -> Receive:
    """`receive`, until a body has more than `most` bytes. Raises `HTTPException` then, because all
    others are a body that cannot be parsed to the framework."""
    size = 0

    async def counting() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, f"The body is larger than {most} bytes.")
        return message

    return counting


def trace_id(scope: Scope) -> str:
    """The trace id of the client's `traceparent` (W3C Trace Context), else a new one."""
    for name, value in scope["headers"]:
        if name == b"traceparent" and (match := TRACEPARENT.match(value)):
            return match[1].decode()
    return f"{random.getrandbits(128):032x}"  # names a trace and guards nothing
