"""Many clients at once, each with a connection of its own, and what became of each answer.

A client goes by what it can see: the status, the frames, the end of the response. Each word of
an answer has its number (`fake_provider.NUMBERED`), so a hole, a repetition and a splice show.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, cast

import httptools

from tests.bench.fake_provider import NUMBERED, Pace, prompt

# path by dialect, and how a stream of it ends when all is well
DIALECTS = {
    "anthropic": ("/v1/messages", b"event: message_stop"),
    "openai": ("/v1/chat/completions", b"data: [DONE]"),
    "native": ("/v1/inference", b"event: completed"),
}
_ERRORS = (b"event: error", b'data: {"error"')
_WORD = re.compile(NUMBERED.encode() + rb"(\d+) ")
_FIRST = f"{NUMBERED}0 ".encode()
_MOST_TRIES = 20
_BETWEEN_TRIES_S = 0.05

# complete, one clean error in the dialect, or what may not be: `odd`
Kind = Literal["complete", "error", "odd"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a client makes of its answer; `why` of all that is not complete; `words` were read."""

    kind: Kind
    why: str = ""
    words: int = 0


def judge(dialect: str, status: int, content: bytes, tokens: int, *, whole: bool) -> Verdict:
    """The verdict on an answer of `tokens` numbered words; `whole`: the response itself ended."""
    if not whole:
        return Verdict("odd", f"the connection was cut after {len(content)} bytes")
    if status != 200:
        refused = _refusal(content)
        return Verdict("error" if refused else "odd", f"status {status} {refused}")
    end = DIALECTS[dialect][1]
    # the native end repeats the whole answer
    numbers = [int(n) for n in _WORD.findall(content.partition(b"event: completed")[0])]
    frames = [f.strip() for f in content.split(b"\n\n") if f.strip() and not f.startswith(b":")]
    errors = [frame for frame in frames if any(mark in frame for mark in _ERRORS)]
    ends = sum(end in frame for frame in frames)
    if numbers != list(range(len(numbers))):
        return Verdict("odd", f"a hole or a splice: {numbers}", len(numbers))
    if not errors and ends == 1 and end in frames[-1] and len(numbers) == tokens:
        return Verdict("complete", words=len(numbers))
    # of the three, OpenAI's end alone follows an error too
    said_last = frames[-2:-1] if dialect == "openai" else frames[-1:]
    if len(errors) == 1 and said_last == errors and ends == (dialect == "openai"):
        return Verdict("error", _code(errors[0]), len(numbers))
    return Verdict("odd", f"{len(errors)} errors, {ends} ends: {content[-200:]!r}", len(numbers))


def _refusal(content: bytes) -> str:
    """The code of an error that came instead of a stream, or "" if it is none of ours."""
    try:
        return _code(b"data: " + content)
    except ValueError:
        return ""


def _code(frame: bytes) -> str:
    """What an error frame calls itself: its code, else its type, and its message."""
    said = json.loads(frame.partition(b"data: ")[2].partition(b"\n")[0])
    error = said.get("error", said)
    if not isinstance(error, dict):
        return f"{error}: {said.get('message', said.get('detail', ''))}"
    return f"{error.get('code') or error.get('type')}: {error.get('message', '')}"


class Reader(asyncio.Protocol):
    """One connection: one request out, one answer in, then closed."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.began = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = self.whole = False

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def content(self) -> bytes:
        return b"".join(self._parts)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not a subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        if not self.began.is_set() and _FIRST in body:
            self.began.set()

    def on_message_complete(self) -> None:
        self.whole = True
        assert self._transport is not None
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.began.set()
        if not self.ended.done():
            self.ended.set_result(None)

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass
class Crowd:
    """Clients of one agent. `doors` are the ports of the ingresses; they may change meanwhile.

    Each call has a connection of its own, to the next door in turn. A door that refuses it, or
    closes it before a byte has come, is left for the next one, as a load balancer would;
    `refused` and `turned_away` count how often.
    """

    api_key: str = field(repr=False)
    doors: list[int]
    patience_s: float
    verdicts: list[Verdict] = field(default_factory=list)
    open: int = 0
    refused: int = 0
    turned_away: int = 0
    _number: int = 0

    async def ask(self, pace: Pace, began: asyncio.Event | None = None) -> Verdict:
        """One streamed call, judged and counted; `began` is set at its first word or its end."""
        self._number += 1
        number, dialect = self._number, list(DIALECTS)[self._number % len(DIALECTS)]
        try:
            async with asyncio.timeout(self.patience_s):
                verdict = await self._answered(number, dialect, pace, began)
        except TimeoutError:
            verdict = Verdict("odd", f"no end within {self.patience_s:.0f} s")
        if began is not None:
            began.set()
        self.verdicts.append(verdict)
        return verdict

    async def _answered(
        self, number: int, dialect: str, pace: Pace, began: asyncio.Event | None
    ) -> Verdict:
        request = self._request(dialect, pace)
        for attempt in range(_MOST_TRIES):
            door = self.doors[(number + attempt) % len(self.doors)]
            reader = await self._connected(door, request)
            if reader is not None:
                await self._read(reader, began)
                if reader.heard:
                    whole = reader.whole
                    return judge(dialect, reader.status, reader.content, pace.tokens, whole=whole)
                self.turned_away += 1
            await asyncio.sleep(_BETWEEN_TRIES_S)
        return Verdict("odd", "no door was open")

    async def _connected(self, door: int, request: bytes) -> Reader | None:
        loop = asyncio.get_running_loop()
        try:
            connected = await loop.create_connection(lambda: Reader(request), "127.0.0.1", door)
        except ConnectionRefusedError:
            self.refused += 1
            return None
        return connected[1]

    async def _read(self, reader: Reader, began: asyncio.Event | None) -> None:
        try:
            await reader.began.wait()
            if began is not None and reader.heard:
                began.set()
            self.open += 1
            try:
                await reader.ended
            finally:
                self.open -= 1
        except asyncio.CancelledError:
            reader.leave()
            raise

    def _request(self, dialect: str, pace: Pace) -> bytes:
        body = json.dumps(
            {
                "model": "ainfera-inference",
                "max_tokens": 8 * pace.tokens,
                "stream": True,
                "messages": [{"role": "user", "content": prompt(pace)}],
            }
        )
        return (
            f"POST {DIALECTS[dialect][0]} HTTP/1.1\r\nhost: localhost\r\n"
            f"authorization: Bearer {self.api_key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def count(self, kind: Kind) -> int:
        return sum(verdict.kind == kind for verdict in self.verdicts)


async def at_intervals(crowd: Crowd, paces: Sequence[Pace], over_s: float) -> list["Call"]:
    """Begin one call for each pace, spread evenly over so many seconds; returns when all are."""
    start, calls = perf_counter(), []
    for number, pace in enumerate(paces):
        await asyncio.sleep(max(0.0, start + over_s * number / len(paces) - perf_counter()))
        began = asyncio.Event()
        calls.append(Call(asyncio.create_task(crowd.ask(pace, began)), began))
    return calls


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way."""

    task: asyncio.Task[Verdict]
    began: asyncio.Event
