"""The rule of limits: a minute's worth at once, then as much as has leaked, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.limits import (
    DEEPEST,
    LARGEST_RATE,
    MINUTE_US,
    Bucket,
    correct,
    expected_tokens,
    leaked,
    remaining,
    reset_us,
    take,
)

RATES = st.one_of(st.integers(1, 100), st.integers(1, LARGEST_RATE))
STEPS = st.lists(st.tuples(st.integers(0, 3 * MINUTE_US), st.integers(0, 200)), max_size=40)


@given(RATES, STEPS)
def test_it_admits_what_the_rule_of_arrival_times_admits(
    rate: int, steps: list[tuple[int, int]]
) -> None:
    """ITU-T I.371's other form of the rule, in exact fractions of a microsecond."""
    increment = Fraction(MINUTE_US, rate)
    arrival, bucket, now = Fraction(0), Bucket(), 0
    for passed, amount in steps:
        now += passed
        later = max(arrival, Fraction(now)) + min(amount, rate) * increment
        fits = later - now <= MINUTE_US
        bucket, wait = take(bucket, rate, amount, now)
        assert (wait == 0) == fits
        if fits:
            arrival = later
        else:
            assert wait - 1 < later - now - MINUTE_US <= wait


@given(RATES, STEPS, st.integers(0, 200))
def test_who_waits_as_told_is_admitted_and_not_a_moment_sooner(
    rate: int, steps: list[tuple[int, int]], amount: int
) -> None:
    bucket, now = Bucket(), 0
    for passed, each in steps:
        now += passed
        bucket, _ = take(bucket, rate, each, now)
    _, wait = take(bucket, rate, amount, now)
    assert take(bucket, rate, amount, now + wait)[1] == 0
    if wait:
        assert take(bucket, rate, amount, now + wait - 1)[1] == 1


@given(st.integers(1, 50), st.lists(st.integers(0, MINUTE_US), min_size=1, max_size=200))
def test_no_minute_sees_more_than_two_minutes_worth(rate: int, pauses: list[int]) -> None:
    bucket, now, admitted = Bucket(), 0, []
    for pause in pauses:
        now += pause
        bucket, wait = take(bucket, rate, 1, now)
        if not wait:
            admitted.append(now)
    for at in admitted:
        assert sum(at <= other < at + MINUTE_US for other in admitted) <= 2 * rate


def test_a_burst_is_a_minutes_worth() -> None:
    bucket = Bucket()
    for left in reversed(range(7)):
        bucket, wait = take(bucket, 7, 1, 0)
        assert wait == 0
        assert remaining(bucket.level, 7) == left
    assert take(bucket, 7, 1, 0)[1] == 8_571_429  # a seventh of a minute, rounded up
    assert reset_us(bucket.level, 7) == MINUTE_US


def test_what_is_larger_than_the_bucket_takes_all_of_it() -> None:
    bucket, wait = take(Bucket(), 100, 5_000, 0)
    assert (wait, remaining(bucket.level, 100)) == (0, 0)
    assert take(bucket, 100, 5_000, MINUTE_US - 1)[1] == 1
    assert take(bucket, 100, 5_000, MINUTE_US)[1] == 0


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed() -> None:
    reserved, _ = take(Bucket(), 100, 60, 0)
    assert remaining(correct(reserved, 100, 60, 10, 0).level, 100) == 90
    owed = correct(reserved, 100, 60, 150, 0)
    assert remaining(owed.level, 100) == 0
    assert take(owed, 100, 1, 0)[1] == MINUTE_US * 51 // 100
    # a debt is forgiven beyond what two minutes pay
    ruined = correct(reserved, 100, 60, 10**9, 0)
    assert ruined.level == DEEPEST * 100 * MINUTE_US


@given(RATES, st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_clock_that_goes_back_neither_fills_nor_drains(rate: int, one: int, other: int) -> None:
    bucket = Bucket(rate * MINUTE_US, max(one, other))
    assert leaked(bucket, rate, min(one, other)) == bucket


@pytest.mark.parametrize(
    ("asked", "most", "expected"), [(10, None, 1034), (10, 5, 15), (10, 32_000, 1034)]
)
def test_an_answer_is_expected_to_be_of_a_usual_length(
    asked: int, most: int | None, expected: int
) -> None:
    assert expected_tokens(asked, most) == expected


@given(RATES, st.lists(st.tuples(st.integers(0, MINUTE_US), st.integers(0, 10**9)), max_size=30))
def test_every_number_is_one_that_a_double_holds(rate: int, steps: list[tuple[int, int]]) -> None:
    bucket, now = Bucket(), 1_800_000_000_000_000
    for passed, used in steps:
        now += passed
        taken, _ = take(bucket, rate, used, now)
        bucket = correct(taken, rate, 0, used, now)
        assert bucket.level + rate * MINUTE_US < 2**53
