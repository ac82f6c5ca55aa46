"""A provider of both vendors that numbers its answers and its words, so that splicing shows.

A question names its call (`call-7-end`). The n-th answer to it says `c7n1w0 c7n1w1 …`: whoever
hears words of two answers, or with a hole between them, has been told a spliced text.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

import orjson
from aiohttp import web

from tests.e2e.upstream import Say
from tests.e2e.wires import anthropic_frames, openai_frames
from tests.standins.behaviour import error_body

CALL = re.compile(r"call-(\d+)-end")
WORD = re.compile(rb"c(\d+)n(\d+)w(\d+) ")


class Mood(StrEnum):
    """How a provider takes a question; all but the first are faults."""

    FINE = "fine"
    TOO_MANY = "429"
    BROKEN = "500"
    CUT = "cut"
    DRIP = "drip"
    MALFORMED = "malformed"
    ERROR_IN_200 = "error in 200"
    NO_USAGE = "no usage"
    SILENT = "time-out"
    BYTEWISE = "one byte a second"


@dataclass(frozen=True, slots=True)
class Part:
    """What a call is answered with. `once`: only the first question is taken amiss."""

    words: int
    gap_s: float
    mood: Mood = Mood.FINE
    once: bool = True


@dataclass(slots=True)
class Question:
    call: int
    number: int
    mood: Mood
    asked_at: float
    whole: bool = False
    over_at: float = 0.0


@dataclass
class NumberingProvider:
    url: str = ""
    parts: dict[int, Part] = field(default_factory=dict)
    questions: dict[int, list[Question]] = field(default_factory=dict)
    moods: Counter[Mood] = field(default_factory=Counter)
    asked: int = 0
    forgotten: int = 0
    late: list[int] = field(default_factory=list)

    @property
    def again(self) -> int:
        """Questions that follow another which the provider did not take amiss."""
        fine = (Mood.FINE, Mood.NO_USAGE)
        now = [each.mood in fine for asked in self.questions.values() for each in asked[:-1]]
        return self.forgotten + sum(now)

    def forget(self) -> None:
        """Let go of calls that are over; who asks for one of them all the same is noted."""
        self.forgotten = self.again
        self.parts.clear()
        self.questions.clear()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        wire = "anthropic" if request.path == "/v1/messages" else "openai"
        raw = await request.read()
        found = CALL.search(raw.decode())
        assert found is not None
        call = int(found[1])
        self.asked += 1
        if call not in self.parts:
            self.late.append(call)
            return web.Response(status=500)
        part, before = self.parts[call], self.questions.setdefault(call, [])
        mood = Mood.FINE if part.once and before else part.mood
        question = Question(call, len(before) + 1, mood, time.time())
        before.append(question)
        self.moods[mood] += 1
        if mood in (Mood.TOO_MANY, Mood.BROKEN):
            return web.Response(
                body=error_body(wire, "not now", "api_error"),
                status=int(mood),
                content_type="application/json",
            )
        try:
            with suppress(ConnectionError):  # whoever asked has hung up, or was killed
                return await self._stream(request, wire, str(orjson.loads(raw)["model"]), question)
        finally:
            question.over_at = time.time()
        return web.Response()

    async def _stream(
        self, request: web.Request, wire: str, model: str, question: Question
    ) -> web.StreamResponse:
        part, mood = self.parts[question.call], question.mood
        say = Say(
            texts=tuple(f"c{question.call}n{question.number}w{n} " for n in range(part.words)),
            usage=mood is not Mood.NO_USAGE,
            output_tokens=part.words,
            broken_after=part.words // 2 if mood in (Mood.CUT, Mood.ERROR_IN_200) else None,
            error="overloaded" if mood is Mood.ERROR_IN_200 else "",
        )
        if mood is Mood.SILENT:
            await asyncio.sleep(3600)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        gap_s = 0.7 if mood is Mood.DRIP else part.gap_s
        frames = anthropic_frames if wire == "anthropic" else openai_frames
        for frame, text in frames(say, model):
            if text:
                await asyncio.sleep(gap_s)
            if mood is Mood.MALFORMED and text.endswith("w1 "):
                await response.write(b'data: {"choices": [{"delta"\n\n')
            if mood is Mood.BYTEWISE and text:
                for byte in frame:
                    await response.write(bytes([byte]))
                    await asyncio.sleep(1)
            await response.write(frame)
        if mood is Mood.CUT:
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write_eof()
        question.whole = True
        return response


@asynccontextmanager
async def running_provider() -> AsyncIterator[NumberingProvider]:
    provider = NumberingProvider()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/messages", provider.answer)
    app.router.add_post("/v1/chat/completions", provider.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    provider.url = f"http://{host}:{port}"
    try:
        yield provider
    finally:
        await runner.cleanup()
