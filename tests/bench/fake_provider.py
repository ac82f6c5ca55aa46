"""A provider that costs next to nothing: `python -m tests.bench.fake_provider`.

It speaks the Anthropic Messages and the OpenAI chat wire, streamed and not, over bytes that
were made beforehand. What it shall answer stands in the prompt, so that it reaches us through
any gateway: see `prompt`. It writes `{"port": N}` to its standard output when it listens, and
`GET /asked` says how often it was asked: `{"calls": N}`.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

import httptools
import uvloop

# Every token is this word; a client counts it to know that nothing was lost. Numbered ones are
# `word0`, `word1` …, which also show what was said twice, or by two voices.
WORD = "ipsum"
NUMBERED = "word"
_TOKEN = f"{WORD} "
_PACE = re.compile(rb"tokens=(\d+) first_ms=([\d.]+) each_ms=([\d.]+)( numbered)?")
_STREAMED = re.compile(rb'"stream"\s*:\s*true')
_WITH_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_INPUT_TOKENS = 20
_MODEL = "fake-model"


@dataclass(frozen=True, slots=True)
class Pace:
    """An answer of `tokens` tokens: the first after `first_ms`, then one every `each_ms`.

    Without any delay the whole answer is one write.
    """

    tokens: int = 16
    first_ms: float = 0.0
    each_ms: float = 0.0
    numbered: bool = False


def prompt(pace: Pace) -> str:
    """A prompt that makes the provider answer at this pace."""
    return (
        "Say the same word again and again: "
        f"tokens={pace.tokens} first_ms={pace.first_ms:g} each_ms={pace.each_ms:g}"
        f"{' numbered' * pace.numbered}"
    )


def _pace_of(body: bytes) -> Pace:
    found = _PACE.search(body)
    if found is None:
        return Pace()
    return Pace(int(found[1]), float(found[2]), float(found[3]), found[4] is not None)


# -- the bytes of an answer -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Script:
    """A streamed answer, ready to be sent: head, the bytes of each token, tail.

    `tokens` is one entry for all of them, or one for each.
    """

    head: bytes
    tokens: tuple[bytes, ...]
    tail: bytes

    def words(self, first: int, end: int) -> bytes:
        """The tokens from `first` on, before `end`."""
        if len(self.tokens) == 1:
            return self.tokens[0] * (end - first)
        return b"".join(self.tokens[first:end])


def _chunk(frames: str) -> bytes:
    body = frames.encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def _named(*events: dict[str, Any]) -> str:
    return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)


def _unnamed(*chunks: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"


def _message(content: list[dict[str, Any]], stop: str | None, written: int) -> dict[str, Any]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": _MODEL,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": _INPUT_TOKENS, "output_tokens": written},
    }


def _texts(tokens: int, numbered: bool) -> list[str]:
    return [f"{NUMBERED}{n} " for n in range(tokens)] if numbered else [_TOKEN]


def _anthropic_script(tokens: int, numbered: bool) -> Script:
    head = _named(
        {"type": "message_start", "message": _message([], None, 1)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    )
    deltas = [{"type": "text_delta", "text": text} for text in _texts(tokens, numbered)]
    words = [_named({"type": "content_block_delta", "index": 0, "delta": d}) for d in deltas]
    tail = _named(
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": tokens},
        },
        {"type": "message_stop"},
    )
    said = tuple(_chunk(word) for word in words)
    return Script(_STREAM_HEAD + _chunk(head), said, _chunk(tail) + _LAST_CHUNK)


def _usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": _INPUT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": _INPUT_TOKENS + tokens,
    }


def _completion(kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": kind,
        "created": 1_700_000_000,
        "model": _MODEL,
        "choices": choices,
    }


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return _completion(
        "chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": finish}]
    )


def _openai_script(tokens: int, numbered: bool, with_usage: bool) -> Script:
    tail = _unnamed(_choice({}, "stop"))
    if with_usage:
        tail += _unnamed({**_completion("chat.completion.chunk", []), "usage": _usage(tokens)})
    head = _unnamed(_choice({"role": "assistant", "content": ""}))
    words = [_unnamed(_choice({"content": text})) for text in _texts(tokens, numbered)]
    return Script(
        _STREAM_HEAD + _chunk(head),
        tuple(_chunk(word) for word in words),
        _chunk(tail + "data: [DONE]\n\n") + _LAST_CHUNK,
    )


@cache
def _script(anthropic: bool, tokens: int, numbered: bool, with_usage: bool) -> Script:
    if anthropic:
        return _anthropic_script(tokens, numbered)
    return _openai_script(tokens, numbered, with_usage)


@cache
def _in_one_piece(anthropic: bool, tokens: int) -> bytes:
    """The whole response of a call that does not stream."""
    text = _TOKEN * tokens
    if anthropic:
        body = _message([{"type": "text", "text": text}], "end_turn", tokens)
    else:
        said = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
        body = {**_completion("chat.completion", choices), "usage": _usage(tokens)}
    return _response(200, json.dumps(body).encode())


def _response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


_NOT_FOUND = _response(404, b'{"error": {"message": "no such path"}}')


# -- the server -------------------------------------------------------------------------------


@dataclass(slots=True)
class Asked:
    """How often we were asked for an answer."""

    calls: int = 0


class Session(asyncio.Protocol):
    """One connection of a client; one request at a time."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._path = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url.partition(b"?")[0]
        self._body = []

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._path == b"/asked":
            self._write(_response(200, json.dumps(asdict(self._asked)).encode()))
            return
        anthropic = self._path.endswith(b"/messages")
        if not anthropic and not self._path.endswith(b"/chat/completions"):
            self._write(_NOT_FOUND)
            return
        body = b"".join(self._body)
        pace = _pace_of(body)
        self._asked.calls += 1
        if _STREAMED.search(body):
            with_usage = anthropic or _WITH_USAGE.search(body) is not None
            self._stream(_script(anthropic, pace.tokens, pace.numbered, with_usage), pace)
        else:
            whole = _in_one_piece(anthropic, pace.tokens)
            self._later(pace.first_ms + pace.each_ms * pace.tokens, self._write, whole)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _later(self, delay_ms: float, action: Callable[..., None], *args: object) -> None:
        if delay_ms:
            self._timer = self._loop.call_later(delay_ms / 1000, action, *args)
        else:
            action(*args)

    def _stream(self, script: Script, pace: Pace) -> None:
        if not pace.first_ms and not pace.each_ms:
            self._write(script.head + script.words(0, pace.tokens) + script.tail)
            return
        self._write(script.head)
        self._later(pace.first_ms, self._say, script, pace, 0, self._loop.time())

    def _say(self, script: Script, pace: Pace, said: int, began: float) -> None:
        """One token, or all that are due by now: a busy provider falls behind, but not for long."""
        if pace.each_ms:
            passed_ms = (self._loop.time() - began) * 1000 - pace.first_ms
            due = min(pace.tokens, max(said, int(passed_ms / pace.each_ms)) + 1)
        else:
            due = pace.tokens
        words = script.words(said, due)
        if due < pace.tokens:
            self._write(words)
            next_at = began + (pace.first_ms + due * pace.each_ms) / 1000
            self._timer = self._loop.call_at(next_at, self._say, script, pace, due, began)
        else:
            self._write(words + script.tail)


async def serve(host: str, port: int) -> None:
    asked = Asked()
    server = await asyncio.get_running_loop().create_server(
        lambda: Session(asked), host, port, backlog=4096
    )
    listening = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"port": listening}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fake_provider", description=__doc__
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    chosen = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(chosen.host, chosen.port))


if __name__ == "__main__":
    main()
