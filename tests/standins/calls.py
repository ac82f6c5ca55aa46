"""Calls to providers, for tests: the providers against a stand-in, and their events in a list."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from pydantic import SecretStr

from shared.config import PROVIDER_SETTINGS, ProviderConfig, Settings
from shared.domain.dialects import DIALECTS, WIRES
from shared.domain.inference import (
    Completed,
    Dialect,
    Failed,
    Forwarded,
    InferenceRequest,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
)
from shared.stream import decode_frames
from tests.standins.provider import Standin
from workers.providers import Provider, ProviderCall, build_providers, open_transport

KEY = "sk-standin-0123456789"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
SETTINGS = {"simulated_first_token_ms": 0, "simulated_token_ms": 0}


@asynccontextmanager
async def providers_at(standin: Standin, **settings: Any) -> AsyncIterator[dict[str, Provider]]:
    """`anthropic`, `openai` and the others at the stand-in, and `simulated`."""
    configured = Settings(**{**SETTINGS, **settings})
    configs = {
        slug: ProviderConfig(
            slug=slug,
            base_url=standin.url if slug == "anthropic" else standin.openai_url,
            api_key=SecretStr(KEY),
            configured=True,
        )
        for slug in PROVIDER_SETTINGS
    }
    nobody = ProviderConfig(slug="openai", base_url="")
    async with open_transport() as http:
        yield {
            **build_providers(configured, configs, http),
            "simulated": build_providers(configured, {"openai": nobody}, http)["openai"],
        }


def a_request(dialect: Dialect, text: str = "Where am I?", **body: Any) -> InferenceRequest:
    """A request as a client of the dialect would write it."""
    told: dict[str, Any] = {
        "model": "pinned",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    }
    if dialect is Dialect.ANTHROPIC:
        told["max_tokens"] = 256
    return DIALECTS[dialect].parse_request(told | body)


def a_tool(dialect: Dialect) -> dict[str, Any]:
    if dialect is Dialect.ANTHROPIC:
        return {"name": "weather", "description": "Weather", "input_schema": WEATHER}
    return {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}


def a_call(
    request: InferenceRequest, provider: Provider, *, forward: bool | None = None, **more: Any
) -> ProviderCall:
    """Forwarded where the dialects are the same, unless told otherwise."""
    same = provider.dialect is request.dialect
    told: dict[str, Any] = {
        "model": "vendor-model",
        "slug": "our-model",
        "max_output_tokens": 1024,
        "seed": "1",
    }
    forwarded = same if forward is None else forward
    return ProviderCall(request=request, forward=forwarded, **(told | more))


async def events_of(provider: Provider, call: ProviderCall) -> list[StreamEvent]:
    async with aclosing(provider.stream(call)) as stream:
        return [event async for event in stream]


def canonical(events: Iterable[StreamEvent], dialect: Dialect) -> list[StreamEvent]:
    """The events with the forwarded frames and the tail parsed into canonical ones."""
    wire = WIRES[dialect]
    state, found = wire.ParseState(), []
    for event in events:
        frames = b""
        if isinstance(event, Forwarded):
            frames = event.frames
        elif isinstance(event, Completed):
            frames = event.tail
        for name, data in decode_frames(frames):
            found.extend(wire.parse_event(name, data, state))
        if isinstance(event, Failed) or (isinstance(event, Completed) and not event.tail):
            found.append(event)
    return found


def text_of(events: Iterable[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def arguments_of(events: Iterable[StreamEvent]) -> str:
    return "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))
