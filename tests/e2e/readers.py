"""Clients that read a stream while a test goes on."""

import re
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.calls import PATHS
from tests.e2e.stack import Stack
from tests.e2e.test_anthropic_sdk import asking
from tests.e2e.witness import eventually

EVENT_ID = re.compile(rb"\nid: (\d+)\n\n")


@dataclass
class Reader:
    """A client that reads a stream on a thread of its own; `content` is what it has so far."""

    url: str
    api_key: str
    dialect: str | None = None
    prompt: str = ""
    last_event_id: str | None = None
    stream: bool = True
    model: str = "gpt-5-mini"
    idempotency_key: str | None = None
    content: bytes = b""
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    broke: bool = False
    _thread: threading.Thread | None = None

    def begin(self) -> "Reader":
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        headers = {"authorization": f"Bearer {self.api_key}"}
        if self.last_event_id is not None:
            headers["last-event-id"] = self.last_event_id
        if self.idempotency_key is not None:
            headers["idempotency-key"] = self.idempotency_key
        body = {
            "model": self.model,
            "max_tokens": 64,
            "stream": self.stream,
            "messages": asking(self.prompt),
        }
        method, json = ("POST", body) if self.dialect else ("GET", None)
        try:
            with httpx.stream(
                method, self.url, json=json, headers=headers, timeout=60, verify=False
            ) as response:
                self.status, self.headers = response.status_code, response.headers
                for piece in response.iter_raw():
                    self.content += piece
        except httpx.TransportError:
            self.broke = True

    def has(self, text: bytes) -> None:
        eventually(lambda: text in self.content, f"{text!r} read")

    def to_the_end(self) -> bytes:
        assert self._thread is not None
        self._thread.join(40)
        assert not self._thread.is_alive(), "the stream never ended"
        return self.content

    @property
    def inference_id(self) -> str:
        found: str = eventually(
            lambda: self.headers.get("x-ainfera-inference-id", ""), "an inference id"
        )
        return found

    @property
    def words(self) -> str:
        said = re.findall(rb"word\d+ ", self.content.partition(b"event: completed")[0])
        return b"".join(said).decode()

    @property
    def last_id(self) -> str:
        return str(EVENT_ID.findall(self.content)[-1].decode())


def asking_for(stack: Stack, api_key: str, dialect: str, prompt: str, **more: Any) -> Reader:
    return Reader(f"{stack.url}{PATHS[dialect]}", api_key, dialect, prompt, **more).begin()


def following(
    stack: Stack, api_key: str, inference_id: str, last_event_id: str | None = None
) -> Reader:
    url = f"{stack.url}/v1/inferences/{inference_id}/events"
    return Reader(url, api_key, last_event_id=last_event_id).begin()


def whole_events(content: bytes) -> bytes:
    """What a client that lost its connection has: up to the last event with an id."""
    ends = [found.end() for found in EVENT_ID.finditer(content)]
    return content[: ends[-1]] if ends else b""
