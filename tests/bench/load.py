"""The load generator, in a process of its own: `python -m tests.bench.load`.

It takes one job a line on its standard input, opens its connections, warms them with one call
each and writes `{"ready": true}`; on the next line it runs, and writes what it measured. Each
answer is checked: status 200, every token there, the end there.
"""

import asyncio
import json
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from math import ceil
from time import perf_counter
from typing import cast

import httptools
import uvloop

from tests.bench.fake_provider import WORD

_WORD = WORD.encode()
_LONGEST_WAIT_S = 20.0
_MOST_CONNECTIONS = 512
# The loop's timers are this coarse: so late a call is not late, the clock was.
_TICK_S = 0.002


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask, how often, and for how long.

    Closed loop: `concurrency` connections, each asks again as soon as it was answered. Open
    loop, where `rate` is not 0: `rate` calls a second whether or not the earlier ones were
    answered, timed from the moment each should have begun. `requests` are whole HTTP requests,
    taken in turn. A good answer has `words` words and ends with `end`.
    """

    host: str
    port: int
    requests: list[str]
    words: int
    end: str
    seconds: float
    concurrency: int = 1
    rate: float = 0.0


@dataclass(slots=True)
class Measured:
    """Times in milliseconds; `first_ms` is the time to the first token.

    `seconds` is from the first request to the last answer; `in_time` counts the answers within
    the first `window_s` of them, which is how long was asked.
    """

    calls: int = 0
    errors: int = 0
    error: str = ""
    seconds: float = 0.0
    window_s: float = 0.0
    in_time: int = 0
    total_ms: dict[str, float] = field(default_factory=dict)
    first_ms: dict[str, float] = field(default_factory=dict)


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest, by the nearest rank; empty without values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {name: ceil(len(ordered) * p) - 1 for name, p in _RANKS.items()}
    return {name: round(ordered[rank], 3) for name, rank in ranks.items()}


_RANKS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


class Client(asyncio.Protocol):
    """One connection: a request out, an answer in, its times noted by the `Run`."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self.began = 0.0
        self.first: float | None = None
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not a subclass

    def ask(self, request: bytes, began: float) -> None:
        self._parts, self.first, self.began, self.busy = [], None, began, True
        self._parser = httptools.HttpResponseParser(self)
        assert self._transport is not None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self.first is None and _WORD in body:
            self.first = perf_counter()
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self.busy = False
        status = self._parser.get_status_code()
        self._run.answered(self, status, b"".join(self._parts))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._run.broken(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Run:
    """One job: first warmed, then run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._loop = asyncio.get_running_loop()
        self._requests = [request.encode() for request in job.requests]
        self._end = job.end.encode()
        self._asked = 0
        self._idle: deque[Client] = deque()
        self._waiting: deque[float] = deque()
        self._clients: set[Client] = set()
        self._opening = 0
        self._open = 0
        self._all_answered = asyncio.Event()
        self._until = 0.0
        self._measured = Measured()
        self._totals: list[float] = []
        self._firsts: list[float] = []

    async def warm(self) -> None:
        """Open the connections of the closed loop, or enough for the open one; one call each."""
        count = self.job.concurrency if not self.job.rate else min(64, ceil(self.job.rate / 10))
        for _ in range(count):
            await self._connect()
        self._until = 0.0
        for client in list(self._idle):
            self._begin(client, perf_counter())
        self._idle.clear()
        await self._settled()
        warmed = self._measured
        if warmed.errors:
            raise RuntimeError(f"{warmed.errors} warming calls failed: {warmed.error}")
        self._measured, self._totals, self._firsts = Measured(), [], []

    async def run(self) -> Measured:
        began = perf_counter()
        self._until = began + self.job.seconds
        if self.job.rate:
            await self._offer(began)
        else:
            while self._idle:
                self._begin(self._idle.popleft(), perf_counter())
        await self._settled()
        result = self._measured
        result.window_s = self.job.seconds
        result.seconds = round(perf_counter() - began, 4)
        result.total_ms, result.first_ms = percentiles(self._totals), percentiles(self._firsts)
        for client in self._clients:
            client.close()
        return result

    async def _offer(self, began: float) -> None:
        """Begin calls at their times; a call whose time has come waits only for a connection."""
        step = 1.0 / self.job.rate
        due = began
        while due < self._until:
            now = perf_counter()
            while due <= now and due < self._until:
                self._open += 1
                if self._idle:
                    at = now if now - due < _TICK_S else due
                    self._begin(self._idle.popleft(), at, counted=True)
                else:
                    self._waiting.append(due)
                    self._grow()
                due += step
            await asyncio.sleep(max(0.0, due - perf_counter()))

    def _grow(self) -> None:
        if len(self._clients) + self._opening < _MOST_CONNECTIONS:
            self._opening += 1
            self._loop.create_task(self._connect_one_more())

    async def _connect_one_more(self) -> None:
        try:
            await self._connect()
        finally:
            self._opening -= 1
        if self.job.rate:
            self._serve_waiting()
        elif self._idle and perf_counter() < self._until:
            self._begin(self._idle.popleft(), perf_counter())

    def _serve_waiting(self) -> None:
        while self._waiting and self._idle:
            self._begin(self._idle.popleft(), self._waiting.popleft(), counted=True)

    async def _connect(self) -> None:
        _, client = await self._loop.create_connection(
            lambda: Client(self), self.job.host, self.job.port
        )
        self._clients.add(client)
        self._idle.append(client)

    def _begin(self, client: Client, at: float, *, counted: bool = False) -> None:
        if not counted:
            self._open += 1
        self._all_answered.clear()
        request = self._requests[self._asked % len(self._requests)]
        self._asked += 1
        client.ask(request, at)

    def answered(self, client: Client, status: int, body: bytes) -> None:
        now = perf_counter()
        if status != 200 or body.count(_WORD) != self.job.words or self._end not in body[-4096:]:
            self._fail(f"status {status}: {body[:200]!r} … {body[-100:]!r}")
        else:
            self._measured.calls += 1
            self._measured.in_time += now <= self._until
            self._totals.append((now - client.began) * 1000)
            self._firsts.append(((client.first or now) - client.began) * 1000)
        self._free(client, now)

    def broken(self, client: Client) -> None:
        """The connection broke in the middle of an answer; another one takes its place."""
        self._clients.discard(client)
        self._fail("the connection was closed before the answer was complete")
        self._open -= 1
        if perf_counter() < self._until:
            self._grow()
        self._note_quiet()

    def _fail(self, why: str) -> None:
        self._measured.errors += 1
        self._measured.error = self._measured.error or why

    def _free(self, client: Client, now: float) -> None:
        self._open -= 1
        if self.job.rate:
            self._idle.append(client)
            self._serve_waiting()
        elif now < self._until:
            self._begin(client, now)
        else:
            self._idle.append(client)
        self._note_quiet()

    def _note_quiet(self) -> None:
        if self._open == 0:
            self._all_answered.set()

    async def _settled(self) -> None:
        """All answered, or given up: what is still open then counts as an error."""
        self._note_quiet()
        try:
            async with asyncio.timeout(max(0.0, self._until - perf_counter()) + _LONGEST_WAIT_S):
                while self._open:
                    self._all_answered.clear()
                    await self._all_answered.wait()
        except TimeoutError:
            self._measured.errors += self._open
            self._measured.error = self._measured.error or "no answer in time"


async def serve() -> None:
    """Job lines in, result lines out, until the input ends."""
    reader = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        run = Run(Job(**json.loads(line)))
        try:
            await run.warm()
        except (OSError, RuntimeError) as error:
            _tell({"failed": str(error)})
            continue
        _tell({"ready": True})
        await reader.readline()
        _tell(asdict(await run.run()))


def _tell(words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
