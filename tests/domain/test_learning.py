"""The estimates: the bound holds as often as it says, tightens with answers, loosens with age."""

import random
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_UP, Decimal, getcontext, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.learning import (
    ALL_BANDS,
    NO_EVIDENCE,
    Tally,
    Terms,
    decayed,
    estimates,
    inverse_weight,
    offered,
    snapshot_hash,
    unit_weight,
    wilson,
)
from tests.domain.routing_cases import steady

TERMS = Terms(half_life_days=10, min_support=50)


def tally(n: int, good: int, age_days: int = 0, **other: object) -> Tally:
    fields = {"task_type": "code", "model": "m", "band": "balanced", "checked": n, **other}
    return Tally(age_days=age_days, n=n, good=good, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("n", [30, 200])
def test_the_bounds_hold_the_truth_as_often_as_they_say(share: float, n: int) -> None:
    dice, held, rounds = random.Random(n * 100 + int(share * 100)), 0, 1_500
    for _ in range(rounds):
        good = sum(dice.random() < share for _ in range(n))
        lower, upper = wilson(Decimal(good) / n, Decimal(n))
        held += float(lower) <= share <= float(upper)
    assert 0.925 <= held / rounds <= 0.985


@pytest.mark.parametrize("age", [0, 40])
def test_they_hold_it_for_answers_of_all_ages_too(age: int) -> None:
    """Half of the answers are `age` days older: they weigh less, and the bound knows it."""
    dice, held, rounds, share = random.Random(age), 0, 600, 0.8
    for _ in range(rounds):
        found = NO_EVIDENCE
        for days in (0, age):
            good = sum(dice.random() < share for _ in range(60))
            found = found.plus(decayed(days, 10), 60, good)
        lower, upper = wilson(found.share, found.number)
        held += float(lower) <= share <= float(upper)
    assert held / rounds >= 0.925


@steady
@given(st.integers(0, 100), st.integers(1, 40), st.integers(2, 5))
def test_more_answers_of_the_same_kind_tighten_it(good: int, n: int, times: int) -> None:
    share = Decimal(good) / 100
    low, high = wilson(share, Decimal(n))
    lower, higher = wilson(share, Decimal(n * times))
    assert low <= lower <= share <= higher <= high


@steady
@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 80), st.integers(1, 40))
def test_age_never_adds_weight_and_takes_support(n: int, good: int, age: int, more: int) -> None:
    good = min(good, n)
    assert decayed(age, 10) >= decayed(age + more, 10)
    fresh = estimates([tally(n, good), tally(n, good)], TERMS)[0]
    mixed = estimates([tally(n, good), tally(n, good, age)], TERMS)[0]
    assert mixed.q == fresh.q
    assert mixed.effective <= fresh.effective
    assert mixed.lower <= fresh.lower
    assert mixed.upper >= fresh.upper


def test_a_half_life_halves() -> None:
    assert [decayed(days, 10) for days in (0, 10, 20)] == [10**9, 5 * 10**8, 25 * 10**7]


def test_newer_answers_outweigh_older_ones() -> None:
    (found, _) = estimates([tally(100, 100, 0), tally(100, 0, 20)], TERMS)
    assert found.q == Decimal("0.8000")
    assert found.effective < 200


@steady
@given(st.integers(0, 400), st.integers(0, 400))
def test_bounds_are_rounded_away_from_the_estimate(n: int, good: int) -> None:
    good, n = min(good, n), max(n, 1)
    (found, _) = estimates([tally(n, min(good, n))], TERMS)
    lower, upper = wilson(Decimal(min(good, n)) / n, Decimal(n))
    places = Decimal("0.0001")
    assert found.lower == lower.quantize(places, ROUND_FLOOR)
    assert found.upper == upper.quantize(places, ROUND_CEILING)
    assert 0 <= found.lower <= found.upper <= 1


def test_whoever_asks_has_no_say_in_the_arithmetic() -> None:
    told = estimates([tally(73, 61, 3), tally(11, 2, 9)], TERMS)
    with localcontext(prec=6):
        assert getcontext().prec == 6
        assert estimates([tally(73, 61, 3), tally(11, 2, 9)], TERMS) == told


@steady
@given(
    st.lists(st.tuples(st.integers(1, 99_999), st.integers(0, 400)), min_size=1, max_size=6),
    st.integers(2, 9),
)
def test_no_digit_of_a_bound_or_a_weight_depends_on_the_context(
    parts: list[tuple[int, int]], places: int
) -> None:
    """Numbers of many digits: rounded to a few of them first, they would come out otherwise."""

    def figures() -> tuple[object, ...]:
        found = NO_EVIDENCE
        for n, age in parts:
            found = found.plus(decayed(age, 14), n, n // 3)
        bounds = wilson(found.share, found.number), wilson(found.share, found.effective)
        weights = unit_weight(Decimal("12.345678912")), inverse_weight(Decimal("0.123456789"))
        offers = estimates([tally(n, n // 3, age) for n, age in parts], TERMS)
        return bounds, weights, offers, found.number, found.effective, found.share

    told = figures()
    with localcontext(prec=places, rounding=ROUND_UP):
        assert figures() == told
    with localcontext(prec=6):
        assert figures() == told


def test_known_values() -> None:
    """Wilson's interval of 8 of 10, from a table."""
    lower, upper = wilson(Decimal("0.8"), Decimal(10))
    assert (round(lower, 4), round(upper, 4)) == (Decimal("0.4902"), Decimal("0.9433"))
    assert wilson(Decimal(1), Decimal(0)) == (Decimal(0), Decimal(1))


def test_only_what_has_support_is_offered_over_all_bands() -> None:
    cells = estimates(
        [
            tally(30, 27),
            tally(30, 27, band="cost"),
            tally(49, 49, model="few"),
            tally(500, 480, model="unchecked", checked=40),
            tally(500, 480, model="hardly", checked=200),
        ],
        TERMS,
    )
    assert offered([each.to_json() for each in cells]) == {
        "code": {"m": {"q": "0.9000", "lower": "0.7985", "n": 60}}
    }
    assert {each.band for each in cells if each.model == "m"} == {"balanced", "cost", ALL_BANDS}


def test_old_answers_alone_are_no_support() -> None:
    (new, _) = estimates([tally(60, 54)], TERMS)
    (old, _) = estimates([tally(60, 54, 10)], TERMS)
    assert (new.q, new.effective, new.supported) == (old.q, 60, True)
    assert (old.effective, old.supported) == (30, False)
    assert old.lower < new.lower


def test_equal_estimates_have_an_equal_hash() -> None:
    one, other = [tally(3, 2), tally(4, 4, 2)], [tally(4, 4, 2), tally(3, 2)]
    assert snapshot_hash(TERMS, estimates(one, TERMS)) == snapshot_hash(
        TERMS, estimates(other, TERMS)
    )
    assert snapshot_hash(TERMS, []) != snapshot_hash(Terms(), [])
