"""Who is asked: the provider itself, and gateways in front of it; the bytes that each is sent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.bench.fake_provider import Pace, prompt
from tests.bench.load import Job
from tests.bench.stack import PROVIDER_KEY

Wire = Literal["anthropic", "openai"]

PATHS: dict[Wire, str] = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}
STREAM_ENDS: dict[Wire, str] = {"anthropic": "message_stop", "openai": "[DONE]"}
BODY_ENDS: dict[Wire, str] = {"anthropic": "end_turn", "openai": '"stop"'}
MAX_TOKENS = 256
AINFERA = "Ainfera"


@dataclass(frozen=True, slots=True)
class Target:
    """One server that answers calls, and what a call must bring along; its processes by name."""

    name: str
    port: int
    wire: Wire
    model: str
    headers: Mapping[str, str] = field(repr=False)
    pids: Mapping[str, int]

    def request(self, pace: Pace, *, stream: bool) -> str:
        """A whole HTTP request that is answered at this pace."""
        body = json.dumps(
            {
                "model": self.model,
                "max_tokens": MAX_TOKENS,
                "stream": stream,
                "messages": [{"role": "user", "content": prompt(pace)}],
            }
        )
        headers = {
            "host": f"127.0.0.1:{self.port}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self.headers,
        }
        lines = [f"POST {PATHS[self.wire]} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
        return "\r\n".join(lines) + "\r\n\r\n" + body

    def job(
        self, pace: Pace, *, stream: bool, seconds: float, concurrency: int = 1, rate: float = 0.0
    ) -> Job:
        """The same as a job for the load generator."""
        ends = STREAM_ENDS if stream else BODY_ENDS
        return Job(
            host="127.0.0.1",
            port=self.port,
            requests=[self.request(pace, stream=stream)],
            words=pace.tokens,
            end=ends[self.wire],
            seconds=seconds,
            concurrency=concurrency,
            rate=rate,
        )


def provider_target(port: int, wire: Wire) -> Target:
    return Target("provider", port, wire, "fake-model", _vendor_headers(wire, PROVIDER_KEY), {})


def ainfera_target(
    port: int, wire: Wire, model: str, api_key: str, pids: Mapping[str, int]
) -> Target:
    return Target(AINFERA, port, wire, model, _vendor_headers(wire, api_key), pids)


def portkey_target(port: int, wire: Wire, provider: Wire, provider_port: int, pid: int) -> Target:
    """Portkey is told with each call which provider is meant and where it is."""
    headers = {
        **_vendor_headers(wire, PROVIDER_KEY),
        "authorization": f"Bearer {PROVIDER_KEY}",
        "x-portkey-provider": provider,
        "x-portkey-custom-host": f"http://127.0.0.1:{provider_port}/v1",
    }
    return Target("Portkey", port, wire, "fake-model", headers, {"portkey": pid})


def _vendor_headers(wire: Wire, key: str) -> dict[str, str]:
    if wire == "anthropic":
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return {"authorization": f"Bearer {key}"}
