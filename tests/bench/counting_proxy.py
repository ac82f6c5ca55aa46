"""A proxy on a Unix socket that counts what a process asks of Postgres or of Valkey.

It stands between one process and one store, passes every byte on as it comes and reads only
what the process sends. A round trip is, for Postgres, a message that the server answers before
the client goes on: Query, Sync or Flush (BEGIN and COMMIT are such messages too); for Valkey,
whatever is sent at once after the last answer, so that a pipeline is one. A prepared statement
is counted under the text it was prepared from.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from time import perf_counter
from typing import Protocol, Self

import hiredis

from shared.fleet import BEAT
from shared.lanes import RENEW

_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_CHUNK = 65_536
_LONGEST_TEXT = 80

# as EVALSHA names them
HEARTBEATS = frozenset(sha1(script.encode()).hexdigest().encode() for script in (BEAT, RENEW))


@dataclass(frozen=True, slots=True)
class Sent:
    """One request of the process: when (`perf_counter`), over which connection, what.

    `is_trip` is False for what travelled with an earlier request of the same pipeline.
    """

    at: float
    connection: int
    what: str
    is_trip: bool


class Reading(Protocol):
    """What one connection sends, read as it passes."""

    def requests(self, data: bytes) -> Iterable[tuple[str, bool]]:
        """The requests that `data` completes, each with whether it is a round trip."""

    def answered(self) -> None:
        """The store said something on this connection."""


class ValkeyReading:
    """RESP, as a client sends it: arrays of strings, the first of which is the command.

    What is sent by the clock and not for a call is told apart: it is no call's round trip.
    """

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._answered = True

    def requests(self, data: bytes) -> Iterator[tuple[str, bool]]:
        self._reader.feed(data)
        while (request := self._reader.gets()) is not False:
            words = request if isinstance(request, list) else [request]
            is_trip, self._answered = self._answered, False
            if len(words) > 1 and bytes(words[1]) in HEARTBEATS:
                yield "heartbeat", False
            else:
                yield bytes(words[0]).decode().upper(), is_trip

    def answered(self) -> None:
        self._answered = True


class PostgresReading:
    """The frontend's half of the PostgreSQL protocol, version 3."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False
        self._texts: dict[bytes, str] = {}
        self._said: list[str] = []

    def requests(self, data: bytes) -> Iterator[tuple[str, bool]]:
        self._buffer += data
        while (message := self._next_message()) is not None:
            yield from self._read(*message)

    def answered(self) -> None:
        """Nothing to note: the messages themselves tell where a round trip ends."""

    def _next_message(self) -> tuple[bytes, bytes] | None:
        """Type and body of the next whole message; the first of a connection has no type."""
        head = 1 if self._started else 0
        if len(self._buffer) < head + 4:
            return None
        length = int.from_bytes(self._buffer[head : head + 4])
        if len(self._buffer) < head + length:
            return None
        kind, body = self._buffer[:head], self._buffer[head + 4 : head + length]
        self._buffer = self._buffer[head + length :]
        return kind, body

    def _read(self, kind: bytes, body: bytes) -> Iterator[tuple[str, bool]]:
        if not self._started:
            wants_cipher = int.from_bytes(body[:4]) in (_SSL_REQUEST, _GSS_REQUEST)
            self._started = not wants_cipher and int.from_bytes(body[:4]) != _CANCEL_REQUEST
            yield "(connect)", True
        elif kind == b"Q":
            yield _short(body.rstrip(b"\0")), True
        elif kind == b"P":
            name, text = body.split(b"\0")[:2]
            self._texts[name] = _short(text)
            self._said.append(f"prepare {self._texts[name]}")
        elif kind == b"B":
            self._said = [self._texts.get(body.split(b"\0")[1], "?")]
        elif kind in (b"S", b"H"):
            yield " + ".join(self._said) or "(sync)", True
            self._said = []
        elif kind == b"p":
            yield "(password)", True


def _short(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())[:_LONGEST_TEXT]


class CountingProxy:
    """`async with CountingProxy(listen, upstream, PostgresReading) as proxy`: both are sockets."""

    def __init__(self, listen: Path, upstream: Path, reading: Callable[[], Reading]) -> None:
        self.sent: list[Sent] = []
        self._listen = listen
        self._upstream = upstream
        self._reading = reading
        self._connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listen.parent.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._connected, str(self._listen))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def trips(self, since: float = 0.0, until: float = float("inf")) -> int:
        """Round trips begun between two moments of `perf_counter`."""
        return sum(sent.is_trip for sent in self._between(since, until))

    def by_request(self, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """How often each request was sent between two moments."""
        return Counter(sent.what for sent in self._between(since, until))

    def _between(self, since: float, until: float) -> Iterator[Sent]:
        return (sent for sent in self.sent if since <= sent.at <= until)

    def _connected(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        task = asyncio.create_task(self._serve(from_client, to_client))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        from_store, to_store = await asyncio.open_unix_connection(str(self._upstream))
        self._connections += 1
        number, reading = self._connections, self._reading()

        def count(data: bytes) -> None:
            now = perf_counter()
            for what, is_trip in reading.requests(data):
                self.sent.append(Sent(now, number, what, is_trip))

        directions = {
            asyncio.create_task(_pump(from_client, to_store, count)),
            asyncio.create_task(_pump(from_store, to_client, lambda _: reading.answered())),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            to_store.close()
            to_client.close()


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, note: Callable[[bytes], None]
) -> None:
    with suppress(ConnectionError):
        while data := await source.read(_CHUNK):
            note(data)
            sink.write(data)
            await sink.drain()
