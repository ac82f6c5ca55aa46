"""The same short call in each dialect, over plain HTTP, for what is the same in all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest

from tests.e2e.stack import Stack

PATHS = {
    "native": "/v1/inference",
    "anthropic": "/v1/messages",
    "openai": "/v1/chat/completions",
}
EVERY_DIALECT = pytest.mark.parametrize("dialect", list(PATHS))
STREAMED_OR_NOT = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "folded"])


@dataclass
class Answer:
    """What came back; `frames` are the events of a stream as `(event, data)`, in order."""

    status: int
    headers: httpx.Headers
    content: bytes
    frames: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)

    @property
    def inference_id(self) -> str:
        return self.headers["x-ainfera-inference-id"]

    @property
    def body(self) -> dict[str, Any]:
        parsed: dict[str, Any] = orjson.loads(self.content)
        return parsed

    @property
    def text(self) -> str:
        """The model's words, in whatever dialect and form."""
        if not self.frames:
            return _text_of(self.body)
        return "".join(_delta_of(data) for name, data in self.frames if name != "completed")

    @property
    def error_code(self) -> str | None:
        """The code of a refusal, or of the error that ended a stream."""
        if not self.frames:
            return _code_of(self.body)
        return next((_code_of(d) for n, d in self.frames if n == "error" or "error" in d), None)


def call(
    stack: Stack,
    api_key: str,
    dialect: str,
    prompt: str,
    *,
    model: str = "ainfera-inference",
    stream: bool = False,
    headers: dict[str, str] | None = None,
    after: tuple[bytes, Callable[[], None]] | None = None,
    **fields: Any,
) -> Answer:
    """One call, to its end. `after` says what to do once some bytes of the answer are there."""
    body = {
        "model": model,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        **fields,
    }
    sent = {"authorization": f"Bearer {api_key}", **(headers or {})}
    content = b""
    url = f"{stack.url}{PATHS[dialect]}"
    with httpx.stream("POST", url, json=body, headers=sent, timeout=60, verify=False) as answer:
        for piece in answer.iter_bytes():
            content += piece
            if after is not None and after[0] in content:
                after[1]()
                after = None
    frames = []
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        frames = list(frames_of(content))
    return Answer(answer.status_code, answer.headers, content, frames)


def frames_of(stream: bytes) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """A stream's events; comments are left out and `[DONE]` is an empty event named so."""
    for block in stream.split(b"\n\n"):
        name, data = None, b""
        for line in block.split(b"\n"):
            key, _, value = line.partition(b": ")
            if key == b"event":
                name = value.decode()
            elif key == b"data":
                data += value
        if data == b"[DONE]":
            yield "[DONE]", {}
        elif data:
            yield name, orjson.loads(data)


def models_told(answer: Answer) -> set[str]:
    """What an answer calls its model, wherever its dialect says it."""
    told = [answer.body] if not answer.frames else [data for _, data in answer.frames]
    told += [data["message"] for data in told if isinstance(data.get("message"), dict)]
    return {said[name] for said in told for name in ("model", "model_used") if name in said}


def _text_of(body: dict[str, Any]) -> str:
    content = body.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(block.get("text", "") for block in content)
    return str(body["choices"][0]["message"]["content"])


def _delta_of(data: dict[str, Any]) -> str:
    if "text" in data:
        return str(data["text"])
    if "choices" in data:
        return "".join(choice["delta"].get("content") or "" for choice in data["choices"])
    delta = data.get("delta")
    return str(delta.get("text", "")) if isinstance(delta, dict) else ""


def _code_of(body: dict[str, Any]) -> str | None:
    if "ainfera" in body and "code" in body["ainfera"]:
        return str(body["ainfera"]["code"])
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("code"))
    return body.get("code")
