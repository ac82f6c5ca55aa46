"""The vendors' own SDKs as readers of streams: what a client of ours would make of our bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai

from shared.domain.inference import CallInfo, Frame
from shared.stream import decode_frames, encode_frames

RECORDED = Path(__file__).parents[2] / "recorded"
CALL = CallInfo(
    inference_id="0198c0de-0000-7000-8000-000000000001",
    receipt_id="0198c0de-0000-7000-8000-000000000002",
    agent_id="0198c0de-0000-7000-8000-000000000003",
    audit_url="http://127.0.0.1:8080/v1/audit/0198c0de-0000-7000-8000-000000000003/verify",
    model="some-model",
    provider="some-provider",
    created=1_750_000_000,
    include_usage=True,
)


def samples(vendor: str) -> list[str]:
    """The names of a vendor's recorded streams."""
    return sorted(path.stem for path in (RECORDED / vendor).glob("*.sse"))


def sample(vendor: str, name: str) -> bytes:
    return (RECORDED / vendor / f"{name}.sse").read_bytes()


def sample_frames(vendor: str, name: str) -> list[Frame]:
    return list(decode_frames(sample(vendor, name) + b"\n\n"))


class _Canned:
    """A server that answers every call with the bytes it was given last."""

    def __init__(self) -> None:
        self.body, self.status, self.content_type = b"", 200, "text/event-stream"
        self.http = httpx2.Client(transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": self.content_type}
        return httpx2.Response(self.status, headers=headers, content=self.body)

    def streams(self, frames: bytes) -> None:
        self.body, self.status, self.content_type = frames, 200, "text/event-stream"

    def answers(self, body: bytes, status: int) -> None:
        self.body, self.status, self.content_type = body, status, "application/json"


anthropic_server, openai_server = _Canned(), _Canned()
anthropic_sdk = anthropic.Anthropic(
    api_key="none", base_url="http://stand.in", http_client=anthropic_server.http, max_retries=0
)
openai_sdk = openai.OpenAI(
    api_key="none", base_url="http://stand.in/v1", http_client=openai_server.http, max_retries=0
)


def read_with_anthropic(frames: bytes | Iterable[Frame]) -> dict[str, Any]:
    """The message that the Anthropic SDK makes of a stream."""
    anthropic_server.streams(frames if isinstance(frames, bytes) else encode_frames(frames))
    with anthropic_sdk.messages.stream(
        model="some-model", max_tokens=64, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        return stream.get_final_message().to_dict(mode="json")


def read_with_openai(frames: bytes | Iterable[Frame]) -> dict[str, Any]:
    """The completion that the OpenAI SDK makes of a stream."""
    openai_server.streams(frames if isinstance(frames, bytes) else encode_frames(frames))
    with openai_sdk.chat.completions.stream(
        model="some-model", messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        return stream.get_final_completion().to_dict(mode="json")


def without_nothing(value: Any) -> Any:
    """The value without fields that are null, which SDKs and wires add and leave out freely."""
    if isinstance(value, dict):
        return {k: without_nothing(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nothing(v) for v in value]
    return value


def openai_chunks(frames: bytes | Iterable[Frame]) -> list[dict[str, Any]]:
    """The chunks that the OpenAI SDK reads from a stream, one by one."""
    openai_server.streams(frames if isinstance(frames, bytes) else encode_frames(frames))
    with openai_sdk.chat.completions.create(
        model="some-model", messages=[{"role": "user", "content": "hi"}], stream=True
    ) as stream:
        return [chunk.to_dict(mode="json") for chunk in stream]
