"""A provider of both vendors that says what a test tells it to, and notes what it did.

A test registers what shall be said and gets a word to put into its prompt; a request that holds
the word is answered so. Requests without one get a short greeting. What is sent goes out frame
by frame, with the moment noted, over a real connection of its own.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.e2e.wires import anthropic_frames, openai_frames
from tests.e2e.witness import Backstage, eventually
from tests.standins.behaviour import error_body

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Say:
    """What to answer. Texts come one frame each, `gap_s` apart, then the tool calls.

    `in_lockstep` each text waits for a `step`, the first only if it `first_waits` too. `status`
    other than 200 is an HTTP error with the message `error`. After `broken_after` texts the
    connection is cut or, with `error`, an error frame is sent; where `break_waits`, only after a
    `step`. `usage` False leaves all counts out.
    """

    texts: tuple[str, ...] = ("Hello", " there.")
    tools: tuple[tuple[str, str], ...] = ()
    input_tokens: int = 12
    output_tokens: int = 4
    cache_read_tokens: int = 0
    usage: bool = True
    finish: str = "stop"
    gap_s: float = 0.0
    status: int = 200
    error: str = ""
    error_type: str = "api_error"
    headers: tuple[tuple[str, str], ...] = ()
    broken_after: int | None = None
    in_lockstep: bool = False
    first_waits: bool = False
    break_waits: bool = False

    @classmethod
    def tool_calls(cls, *calls: tuple[str, str], before: str = "", **more: Any) -> "Say":
        """Tool calls as `(name, JSON of the arguments)`, perhaps after some words."""
        texts = (before,) if before else ()
        return cls(texts=texts, tools=calls, finish="tool_calls", **more)


@dataclass
class Asked:
    """One request as it came, and what became of its answer; moments are of `time.monotonic`."""

    wire: str
    body: dict[str, Any]
    headers: dict[str, str]
    say: Say
    sent: list[tuple[float, str]] = field(default_factory=list)
    finished: bool = False
    hung_up: bool = False
    steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def step(self) -> None:
        """Let an answer in lockstep go on by one text; callable from any thread."""
        self.loop.call_soon_threadsafe(self.steps.release)

    @property
    def over(self) -> bool:
        return self.finished or self.hung_up

    @property
    def sent_texts(self) -> list[str]:
        return [text for _, text in self.sent if text]

    @property
    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def _blocks(self) -> list[dict[str, Any]]:
        contents = [m["content"] for m in self._messages if isinstance(m.get("content"), list)]
        return [block for content in contents for block in content]

    @property
    def system(self) -> Any:
        if self.wire == "anthropic":
            return _text(self.body.get("system"))
        found = [m["content"] for m in self._messages if m["role"] == "system"]
        return _text(found[0]) if found else None

    @property
    def stop(self) -> Any:
        return self.body.get("stop_sequences" if self.wire == "anthropic" else "stop")

    @property
    def max_tokens(self) -> Any:
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens")

    @property
    def tool_names(self) -> list[str]:
        tools = self.body.get("tools", [])
        return [t["name"] if self.wire == "anthropic" else t["function"]["name"] for t in tools]

    @property
    def tool_is_forced(self) -> bool:
        return self.body.get("tool_choice") in ({"type": "any"}, "required")

    @property
    def tool_results(self) -> dict[str, str]:
        """By the id of the call that they answer."""
        if self.wire == "anthropic":
            found = [b for b in self._blocks if b["type"] == "tool_result"]
            return {b["tool_use_id"]: _text(b["content"]) for b in found}
        return {m["tool_call_id"]: m["content"] for m in self._messages if m["role"] == "tool"}

    @property
    def past_tool_arguments(self) -> list[str]:
        if self.wire == "anthropic":
            found = [b["input"] for b in self._blocks if b["type"] == "tool_use"]
            return [orjson.dumps(arguments).decode() for arguments in found]
        calls = [call for m in self._messages for call in m.get("tool_calls") or ()]
        return [call["function"]["arguments"] for call in calls]

    @property
    def images(self) -> list[str]:
        """The images shown, in base64."""
        if self.wire == "anthropic":
            return [b["source"]["data"] for b in self._blocks if b["type"] == "image"]
        urls = [b["image_url"]["url"] for b in self._blocks if b["type"] == "image_url"]
        return [url.partition(";base64,")[2] for url in urls]


def _text(content: Any) -> Any:
    """A string, or the one text block that stands for it."""
    if isinstance(content, list) and len(content) == 1 and content[0].get("type") == "text":
        return content[0]["text"]
    return content


class Upstream:
    """The server, on the backstage loop; `anthropic_url` and `openai_url` are its base URLs."""

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage
        self._scripts: dict[str, dict[str, Say]] = {}
        self._asked: dict[str, list[Asked]] = {}
        self._runner: web.AppRunner = backstage.run(self._start())
        host, port = self._runner.addresses[0][:2]
        self.anthropic_url = f"http://{host}:{port}"
        self.openai_url = f"http://{host}:{port}/v1"

    def close(self) -> None:
        self._backstage.run(self._runner.cleanup())

    def will(self, say: Say, on_anthropic: Say | None = None) -> str:
        """Answer requests that hold the returned word so, perhaps otherwise on one wire."""
        word = f"cue-{next(_numbers)}-end"
        self._scripts[word] = {"openai": say, "anthropic": on_anthropic or say}
        self._asked[word] = []
        return word

    def all_asked(self, word: str) -> list[Asked]:
        return list(self._asked[word])

    def asked(self, word: str) -> Asked:
        """The newest request that held the word, as soon as there is one."""
        return eventually(lambda: self._asked[word][-1:], f"a request with {word}")[0]

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/chat/completions", self._completions)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "anthropic")

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "openai")

    async def _answer(self, request: web.Request, wire: str) -> web.StreamResponse:
        raw = (await request.read()).decode()
        word = next((w for w in self._scripts if w in raw), "")
        say = self._scripts[word][wire] if word else Say()
        asked = Asked(
            wire, orjson.loads(raw), {k.lower(): v for k, v in request.headers.items()}, say
        )
        self._asked.setdefault(word, []).append(asked)
        if say.status != 200:
            asked.finished = True
            return web.Response(
                body=error_body(wire, say.error, say.error_type),
                status=say.status,
                headers=dict(say.headers),
                content_type="application/json",
            )
        try:
            return await _stream(request, asked)
        except (asyncio.CancelledError, ConnectionError):
            asked.hung_up = True
            raise


async def _stream(request: web.Request, asked: Asked) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    async for frame, text in _paced(asked):
        # noted before it leaves: whoever has it has it later than this
        asked.sent.append((time.monotonic(), text))
        await response.write(frame)
    if asked.say.broken_after is not None and not asked.say.error:
        asked.finished = True
        assert request.transport is not None
        request.transport.abort()
        return response
    await response.write_eof()
    asked.finished = True
    return response


async def _paced(asked: Asked) -> AsyncIterator[tuple[bytes, str]]:
    """Frames with the text in them, each text at its time."""
    frames = anthropic_frames if asked.wire == "anthropic" else openai_frames
    texts = 0
    for frame, text in frames(asked.say, str(asked.body["model"])):
        if text:
            if asked.say.in_lockstep and (texts or asked.say.first_waits):
                await asked.steps.acquire()
            elif asked.say.gap_s and texts:
                await asyncio.sleep(asked.say.gap_s)
            texts += 1
        yield frame, text
        if asked.say.break_waits and text and texts == asked.say.broken_after:
            await asked.steps.acquire()
