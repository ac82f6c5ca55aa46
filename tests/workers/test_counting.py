"""What workers count of providers: every time that one was asked, and what is settled for good."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from shared.domain.inference import Completed, Failed, FinishReason, StreamEvent, TextDelta, Usage
from shared.domain.pricing import Prices
from shared.errors import ProviderError
from shared.metrics import FLEET
from tests.standins.provider import running_standin
from tests.workers.test_providers_faults import ask as ask_wire
from workers import settle
from workers.call import Ending, Outcome
from workers.inference import ask_until_answered
from workers.settle import NotOurs

DONE = Completed(FinishReason.STOP, "stop", Usage(input_tokens=12, output_tokens=40))
BROKEN = Failed(ProviderError("It broke.", provider="p", upstream_status=500).failure())


class Scripted:
    """A provider that says what it was told to; an exception is raised."""

    dialect, simulated = None, False

    def __init__(self, *says: StreamEvent | BaseException) -> None:
        self._says = says

    async def stream(self, _: object) -> AsyncIterator[StreamEvent]:
        for said in self._says:
            if isinstance(said, BaseException):
                raise said
            yield said


def counted(name: str, **labels: str) -> float:
    return FLEET.get_sample_value(name, labels) or 0.0


def asked(provider: str, outcome: str) -> float:
    return counted("ainfera_provider_calls_total", provider=provider, outcome=outcome)


async def carry_out(providers: dict[str, Scripted]) -> Ending:
    """Ask these in order, each for one model, as the story of a call does."""
    candidates = [
        SimpleNamespace(
            slug=name, provider=name, provider_model_id=name, max_output_tokens=9,
            prices=Prices(Decimal(1), Decimal(1)),
        )
        for name in providers
    ]  # fmt: skip
    plan: Any = SimpleNamespace(
        candidates=candidates,
        hold_usd=Decimal(1),
        hold_for=lambda _: Decimal(0),
        estimated_input_tokens=1,
    )
    answer = SimpleNamespace(begin=lambda _: None, tell=lambda _: None)
    call: Any = SimpleNamespace(
        hold_on=None, reached=False, asked=[], answer=answer, inference_id="i", receipt_id="r",
        agent_id="a", claimed_at=0.0, age_s=0.0,
        request=SimpleNamespace(dialect=None, include_usage=False, background=False),
        envelope=SimpleNamespace(accepted_at=0.0, headers={}),
    )  # fmt: skip
    deps: Any = SimpleNamespace(
        providers=providers,
        monotonic=asyncio.get_running_loop().time,
        settings=SimpleNamespace(
            hold_ttl_s=60, call_deadline_s=60, audit_url=lambda _: "https://here"
        ),
        cancellations=SimpleNamespace(watch=lambda _: nullcontext(), was_cancelled=lambda _: False),
    )
    return await ask_until_answered(call, plan, deps)


def names(count: int) -> Sequence[str]:
    return [f"p-{uuid4()}" for _ in range(count)]


async def test_a_provider_asked_in_vain_is_counted_beside_the_one_that_answered() -> None:
    first, second = names(2)
    ending = await carry_out({first: Scripted(BROKEN), second: Scripted(TextDelta("Hi."), DONE)})
    assert ending.outcome is Outcome.SUCCEEDED
    assert asked(first, "failed_provider") == 1
    assert asked(second, "succeeded") == 1


@pytest.mark.parametrize(
    ("says", "outcome"),
    [
        ((TextDelta("Hi."), BROKEN), "failed_midstream"),
        ((TextDelta("Hi."), ZeroDivisionError()), "failed_midstream"),
        ((ZeroDivisionError(),), "failed_provider"),
        ((), "failed_provider"),
    ],
)
async def test_every_way_in_which_an_asking_ends_is_counted_once(says: Any, outcome: str) -> None:
    (only,) = names(1)
    await carry_out({only: Scripted(*says)})
    assert asked(only, outcome) == 1


async def test_one_that_is_cut_off_was_asked_all_the_same() -> None:
    (only,) = names(1)
    with pytest.raises(asyncio.CancelledError):
        await carry_out({only: Scripted(TextDelta("Hi."), asyncio.CancelledError())})
    assert asked(only, "cancelled") == 1


async def test_a_retry_is_one_more_call() -> None:
    before = asked("openai", "retried")
    async with running_standin() as standin:
        standin.then(status=500, retry_after="0")
        standin.then(status=500, retry_after="0")
        events = await ask_wire(standin, "openai", forward=False, provider_attempts=3)
    assert isinstance(events[-1], Completed)
    assert asked("openai", "retried") - before == 2


@pytest.mark.parametrize("result", ["SETTLED", "EXISTS", "FENCED"])
async def test_tokens_are_counted_once_they_are_settled(
    result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (provider,) = names(1)
    monkeypatch.setattr(settle, "settlement_item", lambda *_: {})

    async def settled(_: object) -> str:
        assert tokens("output") == 0  # not before it is durable
        return result

    def tokens(direction: str) -> float:
        return counted("ainfera_tokens_total", provider=provider, direction=direction)

    candidate: Any = SimpleNamespace(provider=provider, prices=Prices(Decimal(1), Decimal(1)))
    ending = Ending(
        Outcome.CANCELLED,
        candidate=candidate,
        usage=Usage(input_tokens=10, cache_read_tokens=2, output_tokens=50),
        held_usd=Decimal(1),
        latency_ms=700,
        ttft_ms=200,
    )
    call: Any = SimpleNamespace(envelope=SimpleNamespace(kept=False))
    deps: Any = SimpleNamespace(ledger=SimpleNamespace(settle=settled))
    before = counted("ainfera_settlements_total", outcome="cancelled")
    plan: Any = None
    if result == "SETTLED":
        await settle.settle(call, plan, ending, deps)
    else:
        with pytest.raises(NotOurs):
            await settle.settle(call, plan, ending, deps)
    mine = result == "SETTLED"
    assert counted("ainfera_settlements_total", outcome="cancelled") - before == mine
    assert (tokens("input"), tokens("output")) == ((12, 50) if mine else (0, 0))
    pace = counted("ainfera_tokens_per_second_sum", provider=provider)
    assert pace == (100 if mine else 0)
