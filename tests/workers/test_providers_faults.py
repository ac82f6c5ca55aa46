"""How each wire breaks, and what the worker is told: events, never exceptions."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from shared.domain.inference import (
    Completed,
    Dialect,
    Failed,
    Failure,
    FinishReason,
    Forwarded,
    Started,
    StreamEvent,
)
from tests.standins.calls import KEY, a_call, a_request, canonical, events_of, providers_at, text_of
from tests.standins.provider import Standin, running_standin
from workers.providers import Provider
from workers.providers.watch import Silent, Watch

WIRES = ("anthropic", "openai")
TOO_LONG = "prompt is too long: 210000 tokens > 200000 maximum"


@pytest_asyncio.fixture
async def standin() -> AsyncIterator[Standin]:
    async with running_standin() as running:
        yield running


async def ask(
    standin: Standin, name: str, forward: bool, deadline_s: float | None = None, **settings: Any
) -> list[StreamEvent]:
    """The canonical events of one call, forwarded or translated."""
    async with providers_at(standin, **settings) as providers:
        provider = providers[name]
        call = a_call(asked(provider), provider, forward=forward, deadline_s=deadline_s)
        return await events_of(provider, call)


def asked(provider: Provider) -> Any:
    assert provider.dialect is not None
    return a_request(provider.dialect)


def dialect_of(name: str) -> Dialect:
    return Dialect(name)


def spoken(events: list[StreamEvent], name: str) -> str:
    if any(isinstance(event, Forwarded) for event in events):
        return text_of(canonical(events, dialect_of(name)))
    return text_of(events)


def failure_of(events: list[StreamEvent]) -> Failure:
    last = events[-1]
    assert isinstance(last, Failed)
    assert not [event for event in events[:-1] if isinstance(event, Failed | Completed)]
    return last.failure


both = pytest.mark.parametrize(
    ("name", "forward"), [(name, forward) for name in WIRES for forward in (True, False)]
)


@both
@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_a_busy_provider_is_asked_again(
    name: str, forward: bool, status: int, standin: Standin
) -> None:
    standin.then(status=status, retry_after="0")
    events = await ask(standin, name, forward, provider_attempts=2)
    assert isinstance(events[-1], Completed)
    assert len(standin.requests) == 2


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_attempts_are_counted(attempts: int, standin: Standin) -> None:
    standin.always(status=500, retry_after="0", message="busy, sorry")
    failure = failure_of(await ask(standin, "openai", True, provider_attempts=attempts))
    assert len(standin.requests) == attempts
    assert failure.code == "provider_error"
    assert failure.status == 502
    assert failure.message == "busy, sorry"
    assert failure.detail == {"provider": "openai", "upstream_status": 500}


async def test_a_provider_that_asks_for_much_patience_is_left(standin: Standin) -> None:
    standin.always(status=429, retry_after="60")
    failure = failure_of(await ask(standin, "anthropic", True, provider_attempts=3))
    assert len(standin.requests) == 1
    assert failure.retry_after == 60.0
    assert failure.detail["upstream_status"] == 429


@pytest.mark.parametrize("busy", [1, 2])
async def test_no_attempt_is_waited_for_beyond_the_deadline(busy: int, standin: Standin) -> None:
    """What is told then is what the provider said, not that time ran out."""
    for number in range(busy):
        standin.then(status=429, retry_after="0" if number + 1 < busy else "5")
    events = await ask(standin, "openai", True, deadline_s=4, provider_attempts=4)
    assert failure_of(events).detail["upstream_status"] == 429
    assert len(standin.requests) == busy


@pytest.mark.parametrize(("said", "requests"), [("false", 1), ("true", 2)])
async def test_the_providers_word_on_retrying_counts(
    said: str, requests: int, standin: Standin
) -> None:
    headers = (("x-should-retry", said),)
    standin.always(status=529 if said == "false" else 418, extra_headers=headers, retry_after="0")
    failure_of(await ask(standin, "anthropic", True, provider_attempts=2))
    assert len(standin.requests) == requests


@both
@pytest.mark.parametrize(
    ("status", "code", "ours"), [(400, "invalid_request", 400), (413, "request_too_large", 413)]
)
async def test_the_clients_own_fault_keeps_its_wording(
    name: str, forward: bool, status: int, code: str, ours: int, standin: Standin
) -> None:
    standin.always(status=status, message=TOO_LONG, error_type="invalid_request_error")
    failure = failure_of(await ask(standin, name, forward))
    assert (failure.code, failure.status, failure.message) == (code, ours, TOO_LONG)
    assert not failure.retryable
    assert len(standin.requests) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, f"Incorrect API key provided: {KEY[:8]}"),
        (400, f"API key not valid: {KEY[:8]}"),
        (400, f"Your credit balance is too low, {KEY[:8]}"),
    ],
)
async def test_our_own_key_is_no_fault_of_the_client(
    status: int, message: str, standin: Standin
) -> None:
    standin.always(status=status, message=message)
    failure = failure_of(await ask(standin, "openai", False))
    assert failure.code == "provider_error"
    assert failure.detail["upstream_status"] == status
    assert KEY[:8] not in failure.message
    assert len(standin.requests) == 1


@both
async def test_redirects_are_not_followed(name: str, forward: bool, standin: Standin) -> None:
    elsewhere = (("location", f"{standin.url}/v1/messages"),)
    standin.then(status=307, extra_headers=elsewhere)
    failure = failure_of(await ask(standin, name, forward))
    assert failure.detail["upstream_status"] == 307
    assert len(standin.requests) == 1


@both
async def test_an_error_inside_a_200_before_the_first_word_leaves_the_client_untold(
    name: str, forward: bool, standin: Standin
) -> None:
    standin.always(error_inside=0, message="Overloaded", error_type="overloaded_error")
    events = await ask(standin, name, forward)
    assert len(events) == 1
    failure = failure_of(events)
    assert (failure.code, failure.status, failure.message) == ("provider_error", 502, "Overloaded")
    assert failure.detail["provider"] == name
    assert "upstream_status" in failure.detail


@both
async def test_an_error_in_mid_stream_comes_after_the_words_before_it(
    name: str, forward: bool, standin: Standin
) -> None:
    standin.always(error_inside=3, word_ms=1, message="Overloaded", error_type="overloaded_error")
    events = await ask(standin, name, forward)
    assert isinstance(events[0], Started)
    assert spoken(events, name) == "lorem0 lorem1 lorem2 "
    assert failure_of(events).message == "Overloaded"


@both
async def test_a_200_that_is_no_stream_is_a_fault(
    name: str, forward: bool, standin: Standin
) -> None:
    standin.always(content_type="text/html")
    failure = failure_of(await ask(standin, name, forward))
    assert failure.code == "provider_error"
    assert failure.detail["upstream_status"] == 200


@both
async def test_a_stream_that_is_cut_has_no_end(name: str, forward: bool, standin: Standin) -> None:
    standin.always(cut=3, word_ms=1)
    events = await ask(standin, name, forward)
    assert spoken(events, name) == "lorem0 lorem1 lorem2 "
    assert failure_of(events).code == "provider_error"


@both
async def test_a_stream_that_ends_too_soon_has_no_end(
    name: str, forward: bool, standin: Standin
) -> None:
    standin.always(omit_end=True)
    events = await ask(standin, name, forward)
    assert spoken(events, name) == "lorem0 lorem1 lorem2 lorem3 lorem4 "
    assert failure_of(events).code == "provider_error"


@both
async def test_a_cut_before_the_first_word_leaves_the_client_untold(
    name: str, forward: bool, standin: Standin
) -> None:
    standin.always(cut=0)
    events = await ask(standin, name, forward)
    assert len(events) == 1
    assert failure_of(events).code == "provider_error"


@both
@pytest.mark.parametrize("after", [0, 2])
async def test_a_malformed_frame_ends_the_stream(
    name: str, forward: bool, after: int, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    standin.always(malformed=after, word_ms=1)
    events = await ask(standin, name, forward)
    assert spoken(events, name) == "lorem0 lorem1 "[: after * 7]
    assert failure_of(events).code == "provider_error"
    assert (len(events) == 1) is (after == 0)


async def test_what_broke_is_billed_by_what_was_written(standin: Standin) -> None:
    standin.always(cut=20, words=40, word_ms=1)
    for forward in (True, False):
        last = (await ask(standin, "anthropic", forward))[-1]
        assert isinstance(last, Failed)
        assert last.usage is not None
        assert last.usage.estimated
        assert last.usage.input_tokens == 12
        assert last.usage.output_tokens >= 20


@both
async def test_usage_left_out_is_estimated(name: str, forward: bool, standin: Standin) -> None:
    standin.always(omit_usage=True)
    events = await ask(standin, name, forward)
    assert isinstance(events[-1], Completed)
    assert events[-1].usage.estimated
    assert events[-1].finish_reason is FinishReason.STOP


@both
@pytest.mark.parametrize("end", ["\n", "\r\n"])
async def test_one_byte_at_a_time(name: str, forward: bool, end: str, standin: Standin) -> None:
    standin.always(chunk_bytes=1, crlf=end == "\r\n", words=2, comments=True)
    events = await ask(standin, name, forward)
    assert isinstance(events[-1], Completed)
    assert spoken(events, name) == "lorem0 lorem1 "


@both
@pytest.mark.parametrize("where", ["before_headers", "before_first_token", "midstream"])
async def test_silence_ends_at_the_idle_deadline(
    name: str, forward: bool, where: str, standin: Standin
) -> None:
    standin.always(hang=where)
    events = await ask(standin, name, forward, idle_deadline_s=0.3, provider_attempts=1)
    failure = failure_of(events)
    assert (failure.code, failure.status) == ("provider_error", 502)
    assert (len(events) == 1) is (where != "midstream")
    await standin.requests[-1].over.wait()
    assert standin.requests[-1].ended == "hung up"


@both
async def test_bytes_that_make_no_frame_are_silence(
    name: str, forward: bool, standin: Standin
) -> None:
    """Each byte comes well within the idle deadline, a frame never does."""
    standin.always(chunk_bytes=1, byte_ms=10)
    events = await ask(standin, name, forward, idle_deadline_s=0.3)
    assert len(events) == 1
    assert failure_of(events).code == "provider_error"
    await standin.requests[-1].over.wait()
    assert standin.requests[-1].ended == "hung up"


@both
async def test_a_stream_without_end_ends_at_the_total_deadline(
    name: str, forward: bool, standin: Standin
) -> None:
    standin.always(words=2000, word_ms=5)
    events = await ask(standin, name, forward, call_deadline_s=0.5)
    failure = failure_of(events)
    assert (failure.code, failure.status) == ("deadline_exceeded", 504)
    assert spoken(events, name).startswith("lorem0 lorem1 ")


async def test_a_call_has_no_more_time_than_is_left_of_it(standin: Standin) -> None:
    standin.always(hang="before_headers")
    failure = failure_of(await ask(standin, "openai", True, deadline_s=0.3))
    assert failure.code == "deadline_exceeded"
    assert len(standin.requests) == 1


async def test_a_slow_reader_is_not_a_silent_provider() -> None:
    """Only time spent waiting is silence, however long the reader was busy between."""
    watch = Watch(total_s=60, idle_s=0.8)
    await watch.wait(asyncio.sleep(0.05))
    await asyncio.sleep(1.0)
    await watch.wait(asyncio.sleep(0.4))
    with pytest.raises(Silent):
        await watch.wait(asyncio.Event().wait())
    watch.close()


async def test_a_reader_that_is_cancelled_for_another_reason_is_cancelled() -> None:
    watch = Watch(total_s=60, idle_s=60)
    task = asyncio.create_task(watch.wait(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.close()


@both
async def test_a_provider_that_is_not_there(name: str, forward: bool, standin: Standin) -> None:
    standin.close()
    failure = failure_of(await ask(standin, name, forward))
    assert failure.code == "provider_error"
    assert failure.detail == {"provider": name, "upstream_status": None}


async def test_content_this_wire_cannot_carry_is_the_clients_fault(standin: Standin) -> None:
    block = {"type": "search_result", "title": "t", "source": "s", "content": []}
    messages = [{"role": "user", "content": [block]}]
    async with providers_at(standin) as providers:
        provider = providers["openai"]
        request = a_request(Dialect.ANTHROPIC, messages=messages)
        failure = failure_of(await events_of(provider, a_call(request, provider)))
    assert (failure.code, failure.status) == ("invalid_request", 400)
    assert not standin.requests


async def test_no_prompt_and_no_key_is_logged(
    standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "the launch code is 0000"
    for told in (
        {"status": 500, "retry_after": "0"},
        {"malformed": 0},
        {"status": 401},
        {"cut": 2},
    ):
        standin.always(**told)
        async with providers_at(standin) as providers:
            provider = providers["openai"]
            call = a_call(a_request(Dialect.NATIVE, secret), provider)
            failure_of(await events_of(provider, call))
    told_all = " ".join(str(vars(record)) for record in caplog.records)
    assert "provider_retry" in told_all
    assert secret not in told_all
    assert KEY not in told_all
