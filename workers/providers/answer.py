"""An HTTP/1.1 answer as its bytes come in: head first, then a body that is read in pieces.

What makes an answer whole, and when it is cut off, is RFC 9112, sections 6.3 and 8.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import httptools
import httpx

# Heads, trailers and chunk extensions: no server means well that sends more than this of them.
MAX_OVERHEAD_BYTES = 64 * 1024


class Wire(Protocol):
    """The connection that an answer comes from."""

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class Answer(httpx.AsyncByteStream):
    """One answer; the connection feeds it, one reader at a time reads it.

    `status` and `headers` count once `headed` has returned. `whole` says that its last byte has
    come, though not that it was read; `reusable` that the connection may serve another request
    then; `untouched` that not a byte of it has come.
    """

    def __init__(self, wire: Wire) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.whole = self.reusable = False
        self.untouched = True
        self.unread = 0
        self._wire = wire
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._overhead = 0
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # -- the reader's side ---------------------------------------------------------------------

    async def headed(self) -> "Answer":
        """Itself, once its head has come. Raises `httpx.TransportError`."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._more()
        return self

    async def read(self) -> bytes:
        """All bytes that have come and are unread, at least one; b"" at the end of the body.

        Raises `httpx.ReadError` or `httpx.RemoteProtocolError` if the body was cut off.
        """
        while not self._parts:
            if self.whole:
                return b""
            if self._error is not None:
                raise self._error
            await self._more()
        parts = self._parts
        self._parts = []
        self.unread = 0
        if not self.whole:  # else the connection is another's by now
            self._wire.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def aclose(self) -> None:
        """Let go of it. What has not come yet is not waited for: its connection is closed."""
        self.give_up()

    def give_up(self) -> None:
        if not self.whole:
            self._wire.abort()

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # -- the connection's side -----------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes of the connection; what follows a whole answer makes it not `reusable`."""
        self.untouched = False
        before = self.unread
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.reusable = False
            self.fail(httpx.RemoteProtocolError(f"not an HTTP/1.1 answer: {error}"))
        if self.unread == before and not self.whole:
            self._spend(len(data))
        else:
            self._overhead = 0
        if self.whole or self._error is not None:
            del self._parser  # nothing more is fed; the two hold each other in memory
        self._wake()

    def lost(self, error: Exception | None) -> None:
        """The connection is gone, by an end of its bytes (None) or by an error.

        That is the proper end only of a body of which nothing else tells the end.
        """
        if error is not None:
            self.fail(httpx.ReadError(f"the connection broke: {error!r}"))
        elif self.status and not self._has_length():
            self.whole = True
            self._wake()
        else:
            what = "the whole answer" if self.status else "an answer"
            self.fail(httpx.RemoteProtocolError(f"the server hung up before {what} came"))

    def fail(self, error: httpx.TransportError) -> None:
        """The answer is cut off here, unless it is whole."""
        if not self.whole and self._error is None:
            self._error = error
            self._wake()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _spend(self, size: int) -> None:
        self._overhead += size
        if self._overhead > MAX_OVERHEAD_BYTES:
            self.fail(httpx.RemoteProtocolError("headers without end"))

    def _has_length(self) -> bool:
        """Whether the head promises an end; a strange coding is taken for one that broke it."""
        return any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers
        )

    # -- what the parser calls -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.whole:
            raise ValueError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else a trailer, which nobody here reads
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.headers.clear()  # RFC 9110, section 15.2: another head follows
            return
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_OVERHEAD_BYTES:
            raise ValueError("headers too long")
        self.status = status
        parser = self._parser
        self.reusable = parser.should_keep_alive() and parser.get_http_version() == "1.1"

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self.unread += len(data)

    def on_message_complete(self) -> None:
        self.whole = bool(self.status)
