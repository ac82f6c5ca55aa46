"""HTTP/1.1 to providers: one request at a time on a connection, connections kept for the next.

httpx is the interface and httptools the parser. A general client costs a worker more CPU than
all else that it does for a call; this one has what a gateway needs and nothing more: no proxies,
redirects, cookies, or decoding. Source: RFC 9112.
"""

import asyncio
import ssl
from typing import NamedTuple, cast

import httpx

from workers.providers.answer import Answer
from workers.providers.dialing import dial

KEEPALIVE_S = 90.0
# A provider that is faster than its reader waits when this much is unread.
MAX_UNREAD_BYTES = 256 * 1024
# A server that closed a kept connection as we wrote is heard from within one round trip.
STALE_S = 2.0

# Ours to say: they must match the bytes that are sent, and be there once.
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Origin(NamedTuple):
    """Whom a connection leads to; `host` without brackets."""

    scheme: str
    host: str
    port: int


class Connection(asyncio.Protocol):
    """One connection: idle in its pool, or busy with one answer."""

    def __init__(self, pool: "Transport", origin: Origin) -> None:
        self.origin = origin
        self.expires_at = 0.0
        self._pool = pool
        self._answer: Answer | None = None
        self._paused = self._writing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not a subclass

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def send(self, head: bytes, body: bytes) -> Answer:
        """Ask. The body is in memory and nothing follows it, so one write takes it all.

        What the server says is heard meanwhile: it may refuse a body that it did not read.
        """
        answer = Answer(self)
        if self.closing:
            answer.fail(httpx.ReadError("the connection is closed"))
        else:
            self._answer = answer
            self._transport.writelines((head, body))
        return answer

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # nobody asked: whatever this is, the next call must not read it
            return
        answer.feed(data)
        if answer.whole or answer.failed:
            self._let_go(answer)
        elif answer.unread > MAX_UNREAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """No answer comes any more, so what is unsent need not be sent: RFC 9112, section 9.6."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if exc is not None and self._writing:
            answer.fail(httpx.WriteError(f"the request could not be sent: {exc!r}"))
        answer.lost(exc)

    def pause_writing(self) -> None:
        self._writing = True

    def resume_writing(self) -> None:
        self._writing = False

    def resume(self) -> None:
        """Read on, where reading had paused."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; an answer that is under way is cut off."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.fail(httpx.ReadError("the connection was closed from this side"))
        self._pool.lost(self)
        self._transport.abort()

    def _let_go(self, answer: Answer) -> None:
        """The answer needs this connection no more: into the pool, or away with it."""
        self._answer = None
        unsent = self._transport.get_write_buffer_size()
        if answer.whole and answer.reusable and not unsent:
            self._pool.keep(self)
        else:
            self.abort()


class Transport(httpx.AsyncBaseTransport):
    """Asks servers over HTTP/1.1 and keeps the connections, as many as were needed at once.

    Of a request's time-outs only `connect` (seconds, from name to TLS) is heeded: who reads an
    answer knows how long it may take. An answer's stream is an `Answer`. A connection goes back
    to its pool when its answer is whole, even if it is not read yet; the connection of an answer
    that is closed or cancelled before is closed.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer's head, its body as a stream. Raises `httpx.TransportError`."""
        if self._closed:
            raise RuntimeError("this transport is closed")
        body = await _body(request)
        head = _head(request, len(body))
        origin = _origin(request.url)
        connection = self._take(origin)
        answer = None if connection is None else await self._ask_again(connection, head, body)
        if answer is None:
            timeout = request.extensions.get("timeout", {}).get("connect")
            connection = await self._connect(origin, timeout)
            answer = await _asked(connection, head, body)
        return httpx.Response(answer.status, headers=answer.headers, stream=answer)

    async def aclose(self) -> None:
        """Close every connection; answers under way are cut off."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for connection in list(self._open):
            connection.abort()

    async def _ask_again(self, connection: Connection, head: bytes, body: bytes) -> Answer | None:
        """The answer over a kept connection, or None if that was closed before it could ask.

        A server may close an idle connection just as a request is on its way: RFC 9112, section
        9.3.1. Then it has read nothing, and over a new connection it is asked for the first time.
        That cannot be known from here, only told by the signs: the connection was a kept one, it
        was lost and not given up, no byte of an answer came, and all that within a round trip or
        so. A server that dies later, over a question it has begun to answer, is not asked twice.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = connection.send(head, body)
        try:
            return await _headed(answer)
        except httpx.TransportError:
            if answer.untouched and not self._closed and loop.time() - began < STALE_S:
                return None
            raise

    async def _connect(self, origin: Origin, timeout_s: float | None) -> Connection:
        loop = asyncio.get_running_loop()
        tls = self._tls if origin.scheme == "https" else None
        name = origin.host if tls else None

        async def attempt(family: int, address: str) -> Connection:
            _, made = await loop.create_connection(
                lambda: Connection(self, origin),
                address,
                origin.port,
                family=family,
                ssl=tls,
                server_hostname=name,
            )
            return made

        try:
            async with asyncio.timeout(timeout_s):
                connection = await dial(origin.host, origin.port, attempt)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {origin.host} in time") from error
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"no connection to {origin.host}: {error!r}") from error
        if self._closed:
            connection.abort()
        elif not connection.closing:
            self._open.add(connection)
        return connection

    # -- the pool ------------------------------------------------------------------------------

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)

    def keep(self, connection: Connection) -> None:
        """Into the pool; the last one in is the first one out, so that the rest may expire."""
        loop = asyncio.get_running_loop()
        connection.expires_at = loop.time() + KEEPALIVE_S
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_at(connection.expires_at, self._sweep)

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    def _sweep(self) -> None:
        """Close what was idle for too long; each pool is in the order of its expiry."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for idle in self._idle.values():
            while idle and idle[0].expires_at <= now:
                idle[0].abort()
        rest = [idle[0].expires_at for idle in self._idle.values() if idle]
        self._sweep_timer = loop.call_at(min(rest), self._sweep) if rest else None


async def _asked(connection: Connection, head: bytes, body: bytes) -> Answer:
    return await _headed(connection.send(head, body))


async def _headed(answer: Answer) -> Answer:
    """Once its head is there; who is cancelled while waiting closes the connection."""
    try:
        return await answer.headed()
    except BaseException:
        answer.give_up()
        raise


async def _body(request: httpx.Request) -> bytes:
    if isinstance(request.stream, httpx.SyncByteStream):
        return request.read()
    return await request.aread()


def _origin(url: httpx.URL) -> Origin:
    scheme = url.scheme
    host = url.raw_host
    if scheme not in ("http", "https") or not host:
        raise httpx.UnsupportedProtocol(f"cannot ask {scheme}://{url.host}")
    return Origin(scheme, host.decode("ascii"), url.port or (443 if scheme == "https" else 80))


def _head(request: httpx.Request, length: int) -> bytes:
    """The request's first line and headers. Raises `httpx.LocalProtocolError`.

    A line end within a header would begin another header, or another request: RFC 9112,
    section 11.1.
    """
    method, url, host = request.method, request.url, b""
    if method in ("HEAD", "CONNECT"):
        raise httpx.UnsupportedProtocol(f"{method} has no use here")
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), url.raw_path), b""]
    for name, value in request.headers.raw:
        lowered = name.lower()
        if lowered not in _FRAMING:
            lines.append(b"%b: %b" % (name, value))
        elif lowered == b"host":
            host = value
    lines[1] = b"host: " + (host or url.netloc)
    if length or method in _WITH_BODY:
        lines.append(b"content-length: %d" % length)
    head = b"\r\n".join([*lines, b"", b""])
    ends = len(lines) + 1
    if head.count(b"\r") != ends or head.count(b"\n") != ends or b"\0" in head:
        raise httpx.LocalProtocolError("a header with a line end in it")
    return head
