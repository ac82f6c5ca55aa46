"""One pure ASGI middleware: the trace id of the request, and its count and duration."""

import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.log import bind_trace
from shared.metrics import observe_request

TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")


class RequestContext:
    """Outermost of all, so that it sees every response, the error handler's too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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

        try:
            await self._app(scope, receive, noting)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            observe_request(scope["method"], path, status, time.perf_counter() - began)


def trace_id(scope: Scope) -> str:
    """The trace id of the client's `traceparent` (W3C Trace Context), else a new one."""
    for name, value in scope["headers"]:
        if name == b"traceparent" and (match := TRACEPARENT.match(value)):
            return match[1].decode()
    return secrets.token_hex(16)
