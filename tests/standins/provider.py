"""A provider that stands in for the real ones: `python -m tests.standins.provider --port N`.

It speaks the Anthropic Messages and the OpenAI chat wire, streamed and not, keeps what it was
asked, and fails on command. Told how to answer, in this order, by: a directive in the last
message (`behaviour.directive`), which passes through any gateway; the header `x-standin` with the
same JSON; `Standin.queue`, one per request; `Standin.default`. Over HTTP the last two are set by
POST /_control `{"default": {…}, "queue": [{…}, …]}`, and GET /_requests tells what was asked.
"""

import argparse
import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools

from tests.standins.behaviour import (
    Answer,
    Behaviour,
    anthropic_answer,
    error_body,
    error_frame,
    openai_answer,
    told_in,
    wants_tool,
)

RECORDED = Path(__file__).parent.parent / "recorded"
PATHS = {"/v1/messages": "anthropic", "/v1/chat/completions": "openai"}
FRAME_ENDS = (b"\n\n", b"\r\n\r\n")


@dataclass(slots=True)
class Asked:
    """One request; `ended` is `answered`, `broken` (by command) or `hung up` (by the client)."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    connection: int
    ended: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, how: str) -> None:
        if not self.ended:
            self.ended = how
            self.over.set()


class Standin:
    """The server's state, shared by its connections."""

    def __init__(self) -> None:
        self.default = Behaviour()
        self.queue: deque[Behaviour] = deque()
        self.requests: deque[Asked] = deque(maxlen=10_000)
        self.arrived = asyncio.Event()
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The Anthropic base URL; OpenAI's is `openai_url`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def then(self, **told: Any) -> "Standin":
        """Answer one more request in this way."""
        self.queue.append(Behaviour.of(told))
        return self

    def always(self, **told: Any) -> "Standin":
        self.default = Behaviour.of(told)
        return self

    def next_behaviour(self, asked: Asked) -> Behaviour:
        told = told_in(asked.body)
        if told is None and (header := asked.headers.get("x-standin")):
            told = Behaviour.of(json.loads(header))
        if told is None and self.queue:
            told = self.queue.popleft()
        return told or self.default

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def serve_forever(self) -> None:
        assert self._server is not None
        await self._server.serve_forever()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@asynccontextmanager
async def running_standin(port: int = 0) -> AsyncIterator[Standin]:
    """A stand-in within this process, on a free port."""
    standin = Standin()
    await standin.start(port)
    try:
        yield standin
    finally:
        standin.close()


class Connection(asyncio.Protocol):
    """One connection: requests one after another, each answered by a task."""

    def __init__(self, standin: Standin) -> None:
        self._standin = standin
        standin.connections += 1
        self._number = standin.connections
        self._asked: Asked | None = None
        self._answering: asyncio.Task[None] | None = None
        self._forget()

    def _forget(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    # -- asyncio and httptools ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked is not None:
            self._asked.end("hung up")
        if self._answering is not None:
            self._answering.cancel()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.decode().partition("?")[0]
        raw, headers = b"".join(self._body), self._headers
        self._forget()
        body = json.loads(raw) if raw else {}
        if path.startswith("/_"):
            self._send(200, self._control(path, body))
            return
        dialect = PATHS.get(path)
        if dialect is None:
            self._send(404, error_body("openai", f"no {path} here", "not_found_error"))
            return
        self._asked = Asked(path, headers, body, self._number)
        self._standin.requests.append(self._asked)
        self._standin.arrived.set()
        self._answering = asyncio.get_running_loop().create_task(
            self._answer(self._asked, dialect), name="answer"
        )

    # -- answers -----------------------------------------------------------------------------

    def _control(self, path: str, body: dict[str, Any]) -> bytes:
        standin = self._standin
        if path == "/_control":
            if "default" in body:
                standin.always(**body["default"])
            if "queue" in body:
                standin.queue = deque(Behaviour.of(told) for told in body["queue"])
            return json.dumps({"default": asdict(standin.default)}).encode()
        told = [
            {"path": a.path, "headers": a.headers, "body": a.body, "ended": a.ended}
            for a in standin.requests
        ]
        return json.dumps({"connections": standin.connections, "requests": told}).encode()

    async def _answer(self, asked: Asked, dialect: str) -> None:
        behaviour = self._standin.next_behaviour(asked)
        if behaviour.hang == "before_headers":
            await asyncio.Event().wait()
        if behaviour.status != 200:
            body = error_body(dialect, behaviour.message, behaviour.error_type)
            self._send(behaviour.status, body, behaviour)
            asked.end("answered")
            return
        answer = frames_of(asked.body, dialect, behaviour)
        if not asked.body.get("stream"):
            await asyncio.sleep((behaviour.first_ms + behaviour.word_ms * len(answer.words)) / 1000)
            self._send(200, answer.body, behaviour)
            asked.end("answered")
            return
        await self._stream(asked, dialect, behaviour, answer)

    async def _stream(
        self, asked: Asked, dialect: str, behaviour: Behaviour, answer: Answer
    ) -> None:
        self._transport.write(head(200, behaviour.content_type, None, behaviour))
        waiting: list[bytes] = []
        async for part in script(dialect, behaviour, answer):
            if part is None:  # a pause follows: what was written so far goes out now
                await self._write(b"".join(waiting), behaviour)
                waiting.clear()
                continue
            if part == CUT:
                await self._write(b"".join(waiting), behaviour)
                self._transport.close()  # without the chunk that ends the answer
                asked.end("broken")
                return
            waiting.append(part)
        await self._write(b"".join(waiting), behaviour)
        if behaviour.late_end_ms:
            await asyncio.sleep(behaviour.late_end_ms / 1000)
        self._transport.write(b"0\r\n\r\n")
        asked.end("answered")

    async def _write(self, data: bytes, behaviour: Behaviour) -> None:
        """One chunk, or many of `chunk_bytes`, each its own write to the socket."""
        if not data:
            return
        if behaviour.crlf:
            data = data.replace(b"\n", b"\r\n")
        size = behaviour.chunk_bytes or len(data)
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if behaviour.chunk_bytes:
                await asyncio.sleep(behaviour.byte_ms / 1000)

    def _send(self, status: int, body: bytes, behaviour: Behaviour | None = None) -> None:
        said = behaviour or Behaviour()
        self._transport.write(head(status, "application/json", len(body), said) + body)


CUT = b"\0cut"


async def script(dialect: str, behaviour: Behaviour, answer: Answer) -> AsyncIterator[bytes | None]:
    """The frames of the answer in time; None before each pause, `CUT` for a broken connection."""
    if behaviour.comments:
        yield b": keep-alive\n\n"
    for frame in answer.head:
        yield frame
    if behaviour.hang == "before_first_token":
        yield None
        await asyncio.Event().wait()
    if behaviour.first_ms:
        yield None
        await asyncio.sleep(behaviour.first_ms / 1000)
    for number, word in enumerate((*answer.words, b"")):
        if number == behaviour.cut:
            yield CUT
        if number == behaviour.error_inside:
            yield error_frame(dialect, behaviour.message, behaviour.error_type)
            return
        if number == behaviour.malformed:
            yield b'data: {"type": "content_block_del\n\n'
        if number and number == len(answer.words) // 2 and behaviour.hang == "midstream":
            yield None
            await asyncio.Event().wait()
        if number and behaviour.word_ms:
            yield None
            await asyncio.sleep(behaviour.word_ms / 1000)
        if behaviour.comments:
            yield b": keep-alive\n\n"
        if word:
            yield word
    if not behaviour.omit_end:
        for frame in answer.tail:
            yield frame


def frames_of(body: dict[str, Any], dialect: str, behaviour: Behaviour) -> Answer:
    """The answer to a request: a recorded one, or one made once and kept."""
    if behaviour.sample:
        return Answer((), ((RECORDED / behaviour.sample).read_bytes(),), (), b"")
    model = str(body.get("model"))
    tool = wants_tool(body) if behaviour.use_tools else None
    if dialect == "anthropic":
        return anthropic_answer(behaviour, model, tool)
    options = body.get("stream_options") or {}
    return openai_answer(behaviour, model, tool, bool(options.get("include_usage")))


def head(status: int, content_type: str, length: int | None, behaviour: Behaviour) -> bytes:
    """Status line and headers; the vendors' own rate limits and ids are among them."""
    lines = [
        f"HTTP/1.1 {status} Standin",
        f"content-type: {content_type}",
        "request-id: req_standin",
        "anthropic-ratelimit-requests-remaining: 7",
        "transfer-encoding: chunked" if length is None else f"content-length: {length}",
    ]
    if behaviour.retry_after:
        lines.append(f"retry-after: {behaviour.retry_after}")
    lines += [f"{name}: {value}" for name, value in behaviour.extra_headers]
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


async def main(port: int) -> None:
    async with running_standin(port) as standin:
        print(json.dumps({"port": standin.port}), flush=True)  # noqa: T201
        await standin.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(main(parser.parse_args().port))
