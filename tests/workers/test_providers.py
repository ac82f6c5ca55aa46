"""One contract, every provider: the events of an answer, whoever gives it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest
import pytest_asyncio
from pydantic import SecretStr

from shared.config import PROVIDER_SETTINGS, ProviderConfig, Settings, active_providers
from shared.domain.inference import (
    Completed,
    Dialect,
    FinishReason,
    Forwarded,
    Started,
    StreamEvent,
    ToolCallStarted,
)
from shared.stream import decode_frames
from tests.standins.behaviour import CACHE_READ_TOKENS, INPUT_TOKENS
from tests.standins.calls import (
    KEY,
    a_call,
    a_request,
    a_tool,
    arguments_of,
    canonical,
    events_of,
    providers_at,
    text_of,
)
from tests.standins.provider import Standin, running_standin
from workers.providers import (
    PROVIDERS,
    Provider,
    build_providers,
    open_transport,
)

WIRES = ("anthropic", "openai")
ALL = (*WIRES, "simulated")
DIALECTS = tuple(Dialect)
# words that look like the frames around them
DECEIVING = 'An "error" of\n\nevent: message_stop\r\n\r\nevent: error\u2028"finish_reason":"x"'


@pytest_asyncio.fixture
async def standin() -> AsyncIterator[Standin]:
    async with running_standin() as running:
        yield running


@pytest_asyncio.fixture
async def providers(standin: Standin) -> AsyncIterator[dict[str, Provider]]:
    async with providers_at(standin) as built:
        yield built


def read(events: list[StreamEvent], provider: Provider) -> list[StreamEvent]:
    """Canonical events, whether they were forwarded or not."""
    if any(isinstance(event, Forwarded) for event in events):
        assert provider.dialect is not None
        return canonical(events, provider.dialect)
    return events


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ALL)
async def test_text_has_one_beginning_and_one_end(
    name: str, dialect: Dialect, providers: dict[str, Provider]
) -> None:
    provider = providers[name]
    events = await events_of(provider, a_call(a_request(dialect), provider))
    assert [isinstance(event, Started) for event in events].count(True) == 1
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Completed)
    assert len([event for event in events if isinstance(event, Completed)]) == 1
    assert text_of(read(events, provider)).strip()
    assert events[-1].finish_reason is FinishReason.STOP
    assert events[-1].usage.input_tokens > 0
    assert events[-1].usage.output_tokens > 0
    assert not events[-1].usage.estimated


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ALL)
async def test_a_tool_that_is_offered_is_called(
    name: str, dialect: Dialect, providers: dict[str, Provider]
) -> None:
    provider = providers[name]
    request = a_request(dialect, tools=[a_tool(dialect)])
    events = read(await events_of(provider, a_call(request, provider)), provider)
    calls = [event for event in events if isinstance(event, ToolCallStarted)]
    assert [(call.index, call.name) for call in calls] == [(0, "weather")]
    assert isinstance(orjson.loads(arguments_of(events))["city"], str)
    assert isinstance(events[-1], Completed)
    assert events[-1].finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("name", ALL)
async def test_an_answer_to_a_tool_result_is_text(
    name: str, providers: dict[str, Provider]
) -> None:
    provider = providers[name]
    messages = [
        {"role": "user", "content": "Where am I?"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}],
        },
    ]
    request = a_request(Dialect.ANTHROPIC, messages=messages, tools=[a_tool(Dialect.ANTHROPIC)])
    events = read(await events_of(provider, a_call(request, provider)), provider)
    assert text_of(events)
    assert isinstance(events[-1], Completed)
    assert events[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("forward", [True, False])
async def test_forwarded_and_translated_say_the_same(
    name: str, forward: bool, standin: Standin, providers: dict[str, Provider]
) -> None:
    provider = providers[name]
    assert provider.dialect is not None
    standin.always(text=DECEIVING)
    options: dict[str, Any] = {}
    if name == "openai":
        options["stream_options"] = {"include_usage": True}
    call = a_call(a_request(provider.dialect, **options), provider, forward=forward)
    events = await events_of(provider, call)
    assert any(isinstance(event, Forwarded) for event in events) is forward
    spoken = read(events, provider)
    assert text_of(spoken) == DECEIVING
    assert isinstance(spoken[-1], Completed)
    assert (spoken[-1].usage.input_tokens, spoken[-1].usage.cache_read_tokens) == (
        INPUT_TOKENS,
        CACHE_READ_TOKENS,
    )
    assert isinstance(events[-1], Completed)
    assert events[-1].usage == spoken[-1].usage


@pytest.mark.parametrize("name", WIRES)
async def test_forwarded_size_is_an_upper_bound_and_a_close_one(
    name: str, standin: Standin, providers: dict[str, Provider]
) -> None:
    provider = providers[name]
    assert provider.dialect is not None
    standin.always(words=40)
    events = await events_of(provider, a_call(a_request(provider.dialect), provider))
    size = sum(event.size for event in events if isinstance(event, Forwarded))
    written = len(text_of(read(events, provider)))
    assert written <= size <= written * 4


async def test_plain_frames_of_one_read_travel_together_and_the_end_is_kept_back(
    providers: dict[str, Provider], standin: Standin
) -> None:
    standin.always(words=50)
    provider = providers["anthropic"]
    events = await events_of(provider, a_call(a_request(Dialect.ANTHROPIC), provider))
    started, *forwarded, completed = events
    assert isinstance(started, Started)
    assert len(forwarded) < 25
    names = [
        name
        for event in forwarded
        if isinstance(event, Forwarded)
        for name, _ in decode_frames(event.frames)
    ]
    assert names[:2] == ["message_start", "content_block_start"]
    assert not {"message_delta", "message_stop"} & set(names)
    assert isinstance(completed, Completed)
    assert [name for name, _ in decode_frames(completed.tail)] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_always_asked_for_and_shown_only_if_the_client_asked(
    asked: bool, providers: dict[str, Provider], standin: Standin
) -> None:
    provider = providers["openai"]
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    call = a_call(a_request(Dialect.OPENAI, **options), provider)
    completed = (await events_of(provider, call))[-1]
    assert isinstance(completed, Completed)
    assert completed.usage.output_tokens == 5
    tail = [data for _, data in decode_frames(completed.tail)]
    assert [bool(data.get("usage")) for data in tail] == (
        [False, True, False] if asked else [False, False]
    )
    assert completed.tail.endswith(b"data: [DONE]\n\n")
    assert standin.requests[-1].body["stream_options"]["include_usage"] is True


async def test_the_client_is_spoken_for_with_our_key_and_its_own_version(
    providers: dict[str, Provider], standin: Standin
) -> None:
    headers = {
        "anthropic-version": "2099-01-01",
        "anthropic-beta": "a,b",
        "traceparent": "00-1-2-01",
        "cookie": "c=1",
        "x-api-key": "ainfera_client",
        "authorization": "Bearer ainfera_client",
    }
    request = a_request(Dialect.ANTHROPIC, some_new_field={"kept": [1]})
    await events_of(
        providers["anthropic"], a_call(request, providers["anthropic"], headers=headers)
    )
    await events_of(providers["openai"], a_call(request, providers["openai"], headers=headers))
    anthropic, openai = standin.requests
    assert anthropic.headers["x-api-key"] == KEY
    assert anthropic.headers["anthropic-version"] == "2099-01-01"
    assert anthropic.headers["anthropic-beta"] == "a,b"
    assert anthropic.headers["accept-encoding"] == "identity"
    assert anthropic.body["some_new_field"] == {"kept": [1]}
    assert anthropic.body["model"] == "vendor-model"
    assert "ainfera_client" not in str(anthropic.headers) + str(openai.headers)
    assert openai.headers["authorization"] == f"Bearer {KEY}"
    assert "anthropic-version" not in openai.headers
    assert "cookie" not in openai.headers


async def test_no_cookie_is_kept(providers: dict[str, Provider], standin: Standin) -> None:
    standin.always(extra_headers=[["set-cookie", "tenant=1; Path=/"]])
    for _ in range(2):
        events = await events_of(
            providers["openai"], a_call(a_request(Dialect.OPENAI), providers["openai"])
        )
        assert isinstance(events[-1], Completed)
    assert [asked.headers.get("cookie") for asked in standin.requests] == [None, None]


async def test_a_client_of_another_dialect_has_no_say_in_the_version(
    providers: dict[str, Provider], standin: Standin
) -> None:
    provider = providers["anthropic"]
    headers = {"anthropic-version": "2099-01-01", "anthropic-beta": "a"}
    await events_of(provider, a_call(a_request(Dialect.OPENAI), provider, headers=headers))
    assert standin.requests[-1].headers["anthropic-version"] == "2023-06-01"
    assert "anthropic-beta" not in standin.requests[-1].headers


async def test_fields_this_wire_has_no_word_for_are_named(providers: dict[str, Provider]) -> None:
    provider = providers["openai"]
    request = a_request(Dialect.ANTHROPIC, top_k=5)
    started = (await events_of(provider, a_call(request, provider)))[0]
    assert isinstance(started, Started)
    assert started.ignored == ("top_k",)


@pytest.mark.parametrize("name", WIRES)
async def test_connections_are_used_again(
    name: str, providers: dict[str, Provider], standin: Standin
) -> None:
    standin.always(late_end_ms=20)
    provider = providers[name]
    for _ in range(3):
        await events_of(provider, a_call(a_request(Dialect.NATIVE), provider))
        await drained()
    assert standin.connections == 1


async def drained() -> None:
    """Wait for the tasks that read answers to their very end."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "drain"]
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("name", WIRES)
async def test_hanging_up_is_heard_by_the_provider(
    name: str, providers: dict[str, Provider], standin: Standin
) -> None:
    standin.always(hang="midstream", words=10)
    provider = providers[name]
    async with aclosing(provider.stream(a_call(a_request(Dialect.NATIVE), provider))) as stream:
        assert isinstance(await anext(stream), Started)
    await standin.requests[-1].over.wait()
    assert standin.requests[-1].ended == "hung up"


@pytest.mark.parametrize("name", WIRES)
async def test_a_cancelled_reader_hangs_up(
    name: str, providers: dict[str, Provider], standin: Standin
) -> None:
    standin.always(hang="before_first_token")
    provider = providers[name]
    task = asyncio.create_task(events_of(provider, a_call(a_request(Dialect.NATIVE), provider)))
    await standin.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await standin.requests[-1].over.wait()
    assert standin.requests[-1].ended == "hung up"


@pytest.mark.parametrize("name", WIRES)
async def test_words_come_as_they_are_spoken(
    name: str, providers: dict[str, Provider], standin: Standin
) -> None:
    """A provider that falls silent after half of its words has had that half passed on."""
    standin.always(hang="midstream", words=10)
    provider = providers[name]
    heard: list[StreamEvent] = []
    async with aclosing(provider.stream(a_call(a_request(Dialect.NATIVE), provider))) as stream:
        async for event in stream:
            heard.append(event)
            if "lorem4" in text_of(heard):
                break
    assert text_of(heard) == "lorem0 lorem1 lorem2 lorem3 lorem4 "


def configs(**keys: str) -> dict[str, ProviderConfig]:
    return {
        slug: ProviderConfig(
            slug=slug,
            base_url=vendor_url,
            api_key=SecretStr(keys[slug]) if slug in keys else None,
            configured=slug in keys,
        )
        for slug, (_, _, vendor_url) in PROVIDER_SETTINGS.items()
    }


def test_every_provider_that_can_be_set_has_a_wire() -> None:
    assert set(PROVIDERS) == set(PROVIDER_SETTINGS)


@pytest.mark.parametrize(
    ("simulate", "keys", "active", "simulated"),
    [
        ("auto", {}, set(PROVIDER_SETTINGS), set(PROVIDER_SETTINGS)),
        ("auto", {"openai": "k"}, {"openai"}, set()),
        ("on", {"openai": "k"}, set(PROVIDER_SETTINGS), set(PROVIDER_SETTINGS) - {"openai"}),
        ("off", {}, set(), set()),
        ("off", {"xai": "k"}, {"xai"}, set()),
    ],
)
async def test_a_simulation_never_answers_unawares(
    simulate: str,
    keys: dict[str, str],
    active: set[str],
    simulated: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = Settings(simulate=simulate)
    async with open_transport() as http:
        built = build_providers(settings, configs(**keys), http)
    assert set(built) == active == active_providers(settings, configs(**keys), PROVIDERS)
    assert {slug for slug, provider in built.items() if provider.simulated} == simulated
    told = [record for record in caplog.records if record.message == "providers_simulated"]
    assert len(told) == bool(simulated)
    assert all(record.levelno == logging.WARNING for record in told)
