"""A hold in the hands of a worker: leased anew while an answer goes on, and why it may not grow."""

from collections.abc import AsyncIterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared.domain.inference import Completed, Failed, FinishReason, StreamEvent, TextDelta, Usage
from shared.domain.ledger import ZERO
from shared.domain.pricing import Prices
from shared.holding import Held, out_of_funds, over_cap
from workers.asking import Asking, ask
from workers.inference import refused_by_ledger

ONE = Decimal(1)
PRICES = Prices(ONE, ONE)
LEASE_S = 100


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Book:
    """A ledger that answers what it is told to, and keeps what it was asked."""

    def __init__(self, result: str) -> None:
        self.result = result
        self.asked: list[tuple[Decimal, int]] = []

    async def extend(self, inference_id: str, attempt: int, extra: Decimal, ttl_s: int) -> Held:
        self.asked.append((extra, ttl_s))
        return Held(self.result, attempt, Decimal(5), Decimal(5), ONE, Decimal(2))


async def answered(
    words: list[tuple[float, str]], book: Book, held_usd: str = "1000"
) -> Completed | Failed:
    """Ask a provider that says these words, each so many seconds after the one before."""
    clock = Clock()
    done = Completed(FinishReason.STOP, "stop", Usage(1, 1))

    async def stream(_: Any) -> AsyncIterator[StreamEvent]:
        for wait_s, word in words:
            clock.now += wait_s
            yield TextDelta(word)
        yield done

    provider = SimpleNamespace(dialect=None, simulated=False, stream=stream)
    settings = SimpleNamespace(hold_ttl_s=LEASE_S, call_deadline_s=600.0, audit_url=str)
    deps = cast(
        Any,
        SimpleNamespace(
            settings=settings,
            providers={"p": provider},
            ledger=book,
            monotonic=clock,
            clock=clock,
        ),
    )
    answer = SimpleNamespace(begin=lambda _: None, tell=lambda _: None)
    request = SimpleNamespace(background=False, dialect=None, include_usage=False)
    envelope = SimpleNamespace(headers={}, accepted_at=0.0)
    call = cast(
        Any,
        SimpleNamespace(
            inference_id="i",
            receipt_id="r",
            agent_id="a",
            attempt=1,
            claimed_at=0.0,
            age_s=0.0,
            answer=answer,
            request=request,
            envelope=envelope,
        ),
    )
    model = cast(
        Any,
        SimpleNamespace(
            provider="p",
            slug="m",
            provider_model_id="m",
            max_output_tokens=9,
            prices=PRICES,
        ),
    )
    plan = cast(Any, SimpleNamespace(estimated_input_tokens=1))
    return await ask(Asking(call, plan, model, Decimal(held_usd), deps), deps)


async def test_a_long_answer_leases_its_hold_anew_at_half_time() -> None:
    book = Book("EXTENDED")
    words = [(10.0, "word")] * 16  # a word at 10 s, 20 s, … 160 s
    assert isinstance(await answered(words, book), Completed)
    assert book.asked == [(ZERO, LEASE_S)] * 3  # at 50, 100 and 150 s
    book.asked.clear()
    await answered([(4.0, "word")] * 12, book)
    assert book.asked == []


async def test_a_lease_that_cannot_be_renewed_does_not_end_the_answer() -> None:
    assert isinstance(await answered([(60.0, "word")], Book("UNAVAILABLE")), Completed)


@pytest.mark.parametrize(
    ("result", "code", "status"),
    [
        ("DAILY_CAP", "spend_policy_exceeded", 403),
        ("INSUFFICIENT_FUNDS", "insufficient_funds", 402),
        ("UNAVAILABLE", "overloaded", 503),
    ],
)
async def test_an_answer_that_may_not_grow_ends_and_says_which_limit_it_met(
    result: str, code: str, status: int
) -> None:
    last = await answered([(0.0, "x" * 4_000)] * 3, Book(result), held_usd="0.0001")
    assert isinstance(last, Failed)
    assert (last.failure.code, last.failure.status) == (code, status)
    assert "outgrew" in last.failure.message
    if result != "UNAVAILABLE":
        assert {"settled_usd", "held_usd", "available_usd"} <= last.failure.detail.keys()


async def test_an_answer_that_grows_doubles_its_hold_and_is_leased_anew_with_it() -> None:
    book = Book("EXTENDED")
    await answered([(40.0, "x" * 400), (20.0, "y")], book, held_usd="0.00005")
    assert book.asked == [(Decimal("0.00005"), LEASE_S)]


HELD = Held("", 1, Decimal(10), Decimal(4), Decimal(3), Decimal(8), Decimal(5), Decimal(2))


@pytest.mark.parametrize(
    ("result", "settled", "held", "available"),
    [
        ("PER_CALL_CAP", "3", "4", "8"),
        ("DAILY_CAP", "3", "4", "1"),
        ("TENANT_CAP", "5", "2", "1"),
    ],
)
def test_a_cap_shows_what_counts_against_it(
    result: str, settled: str, held: str, available: str
) -> None:
    told = Held(
        result, 1, HELD.balance, HELD.held, HELD.spent_today, HELD.cap, Decimal(5), Decimal(2)
    )
    error = over_cap(told, Decimal(9))
    assert (error.detail["settled_usd"], error.detail["held_usd"]) == (settled, held)
    assert (error.detail["available_usd"], error.detail["cap_usd"]) == (available, "8")
    assert error.detail["cap"] == result.lower()
    assert "UTC" in error.message
    ending = refused_by_ledger(told, cast(Any, SimpleNamespace(hold_usd=Decimal(9))))
    assert ending is not None
    assert ending.outcome == "rejected_cap"
    assert ending.failure_or_bug().status == 403


def test_a_wallet_shows_what_it_has() -> None:
    detail = out_of_funds(HELD, Decimal(9)).detail
    shown = (detail["settled_usd"], detail["held_usd"], detail["available_usd"])
    assert shown == ("10", "4", "6")
