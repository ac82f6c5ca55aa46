"""What calls cost, to the ninth decimal."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.inference import Usage
from shared.domain.pricing import (
    Prices,
    cap_to_nano,
    cost,
    estimated_usage,
    floor_to_nano,
    from_nano,
    hold_amount,
    nano_text,
    projected_cost,
    to_nano,
)
from tests.domain.routing_cases import steady


def d(text: str) -> Decimal:
    return Decimal(text)


OPUS = Prices(d("15.00"), d("75.00"), d("1.50"), d("18.75"))
PLAIN = Prices(d("2"), d("6"))

amounts = st.decimals("0", "1000", places=9)
price_sets = st.builds(Prices, amounts, amounts, st.none() | amounts, st.none() | amounts)
tokens = st.integers(0, 10_000_000)
usages = st.builds(Usage, tokens, tokens, tokens, tokens)


@pytest.mark.parametrize(
    ("usage", "prices", "expected"),
    [
        (Usage(1_000_000, 0), OPUS, "15.000000000"),
        (Usage(0, 1_000_000), OPUS, "75.000000000"),
        (Usage(100, 200, 300, 400), OPUS, "0.024450000"),
        # a class without a price of its own costs as input
        (Usage(100, 200, 300, 400), PLAIN, "0.002800000"),
        (Usage(), OPUS, "0.000000000"),
        # half a nano-dollar goes up, less goes down
        (Usage(1, 0), Prices(d("0.0005"), d("1")), "0.000000001"),
        (Usage(1, 0), Prices(d("0.000499999"), d("1")), "0.000000000"),
        # summed first, rounded once: 0.4 + 0.4 nano-dollars are one
        (Usage(1, 1), Prices(d("0.0004"), d("0.0004")), "0.000000001"),
    ],
)
def test_cost(usage: Usage, prices: Prices, expected: str) -> None:
    assert f"{cost(usage, prices):f}" == expected


@steady
@given(usages, price_sets)
def test_cost_is_the_exact_sum_rounded_half_up(usage: Usage, prices: Prices) -> None:
    read = prices.price_in if prices.price_cache_read is None else prices.price_cache_read
    write = prices.price_in if prices.price_cache_write is None else prices.price_cache_write
    nano = 10**9
    exact = (
        usage.input_tokens * int(prices.price_in * nano)
        + usage.output_tokens * int(prices.price_out * nano)
        + usage.cache_read_tokens * int(read * nano)
        + usage.cache_write_tokens * int(write * nano)
    )
    charged = int(cost(usage, prices).scaleb(9))
    assert -500_000 < charged * 1_000_000 - exact <= 500_000


@steady
@given(usages, usages, price_sets)
def test_more_usage_never_costs_less(one: Usage, other: Usage, prices: Prices) -> None:
    both = Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cache_read_tokens + other.cache_read_tokens,
        one.cache_write_tokens + other.cache_write_tokens,
    )
    assert cost(both, prices) >= cost(one, prices)


def test_projected_cost() -> None:
    assert f"{projected_cost(PLAIN, 1000, 1000):f}" == "0.008000000"
    assert f"{projected_cost(PLAIN, 1, 0):f}" == "0.000002000"


def test_hold_is_the_projected_cost_and_a_quarter_of_its_input() -> None:
    assert f"{hold_amount(PLAIN, 1000, 1000):f}" == "0.008500000"
    assert f"{hold_amount(OPUS, 1000, 0):f}" == "0.018750000"
    assert f"{hold_amount(OPUS, 0, 1000):f}" == "0.075000000"


@steady
@given(price_sets, tokens, tokens)
def test_hold_is_never_below_the_projected_cost(
    prices: Prices, input_tokens: int, output_tokens: int
) -> None:
    held = hold_amount(prices, input_tokens, output_tokens)
    projected = projected_cost(prices, input_tokens, output_tokens)
    assert projected <= held <= projected * d("1.25") + d("0.000000001")


@steady
@given(tokens, tokens, st.integers(0, 100))
def test_hold_covers_an_input_that_was_all_cache_writes_at_vendor_rates(
    input_tokens: int, output_tokens: int, price: int
) -> None:
    prices = Prices(d("4") * price, d("5") * price, d("1") * price, d("5") * price)
    used = Usage(output_tokens=output_tokens, cache_write_tokens=input_tokens)
    assert cost(used, prices) <= hold_amount(prices, input_tokens, output_tokens)


@pytest.mark.parametrize(("chars", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (-3, 0)])
def test_estimated_usage(chars: int, expected: int) -> None:
    assert estimated_usage(77, chars) == Usage(77, expected, estimated=True)


@steady
@given(st.integers(0, 10**18))
def test_nano_dollars_read_back(nano: int) -> None:
    assert to_nano(from_nano(nano)) == nano
    assert nano_text(nano) == f"{from_nano(nano):f}"


def test_caps_round_down_and_floors_up() -> None:
    assert cap_to_nano(d("0.0000000019")) == 1
    assert floor_to_nano(d("0.0000000011")) == 2
    assert cap_to_nano(d("1E+999999")) == cap_to_nano(d("1000000000"))
