"""What a call costs. Money is counted in whole nano-dollars inside and is Decimal at the edges.

Rounding is stated here and nowhere else: the token classes of one call are summed
exactly and the sum is rounded once, half up, to nine decimals of a dollar.
"""

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

from shared.domain.inference import Usage

NANO = 1_000_000_000
_MILLION = 1_000_000
_NINE_PLACES = Decimal("0.000000001")
_MONEY_CEILING = Decimal(1_000_000_000)  # no amount or cap of this system reaches it

# A hold is the projected cost plus this part (a quarter) of its input side. The margin covers
# an estimate that came out low, and cache writes, which vendors bill at 1.25 times the input.
HOLD_MARGIN_DIVISOR = 4

CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens by class. A class without a price of its own costs as input."""

    price_in: Decimal
    price_out: Decimal
    price_cache_read: Decimal | None = None
    price_cache_write: Decimal | None = None
    nano_in: int = field(init=False, repr=False, compare=False)
    nano_out: int = field(init=False, repr=False, compare=False)
    nano_cache_read: int = field(init=False, repr=False, compare=False)
    nano_cache_write: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        read = self.price_in if self.price_cache_read is None else self.price_cache_read
        write = self.price_in if self.price_cache_write is None else self.price_cache_write
        object.__setattr__(self, "nano_in", to_nano(self.price_in))
        object.__setattr__(self, "nano_out", to_nano(self.price_out))
        object.__setattr__(self, "nano_cache_read", to_nano(read))
        object.__setattr__(self, "nano_cache_write", to_nano(write))


def to_nano(amount: Decimal) -> int:
    """Dollars as whole nano-dollars, half up."""
    return int(_bounded(amount).scaleb(9).to_integral_value(ROUND_HALF_UP))


def cap_to_nano(cap: Decimal) -> int:
    """The largest whole number of nano-dollars that is not over `cap`."""
    return int(_bounded(cap).scaleb(9).to_integral_value(ROUND_FLOOR))


def floor_to_nano(floor: Decimal) -> int:
    """The smallest whole number of billionths that is not under `floor`."""
    return int(_bounded(floor).scaleb(9).to_integral_value(ROUND_CEILING))


def from_nano(nano: int) -> Decimal:
    """Whole nano-dollars as dollars with nine places."""
    return Decimal(nano).scaleb(-9).quantize(_NINE_PLACES)


def nano_text(nano: int) -> str:
    """Whole nano-dollars (not negative) as text with nine places: `1500` is `0.000001500`."""
    return f"{nano // NANO}.{nano % NANO:09d}"


def per_million(nano_dollars_times_tokens: int) -> int:
    """Price per million times tokens, as nano-dollars, half up."""
    return (nano_dollars_times_tokens + _MILLION // 2) // _MILLION


def cost(usage: Usage, prices: Prices) -> Decimal:
    """USD for what was used, nine places, half up."""
    return from_nano(
        per_million(
            usage.input_tokens * prices.nano_in
            + usage.output_tokens * prices.nano_out
            + usage.cache_read_tokens * prices.nano_cache_read
            + usage.cache_write_tokens * prices.nano_cache_write
        )
    )


def projected_nano(prices: Prices, input_tokens: int, output_tokens: int) -> int:
    """`projected_cost` in nano-dollars."""
    return per_million(input_tokens * prices.nano_in + output_tokens * prices.nano_out)


def projected_cost(prices: Prices, input_tokens: int, output_tokens: int) -> Decimal:
    """USD for the estimated input and the reserved output, nine places, half up."""
    return from_nano(projected_nano(prices, input_tokens, output_tokens))


def hold_amount(prices: Prices, input_tokens: int, output_tokens: int) -> Decimal:
    """USD to reserve before the provider is called: projected cost plus a quarter of its input.

    Never below `projected_cost` of the same numbers.
    """
    exact = input_tokens * prices.nano_in + output_tokens * prices.nano_out
    margin = input_tokens * prices.nano_in
    return from_nano(
        (exact * HOLD_MARGIN_DIVISOR + margin + _MILLION * HOLD_MARGIN_DIVISOR // 2)
        // (_MILLION * HOLD_MARGIN_DIVISOR)
    )


def estimated_usage(input_estimate: int, chars_written: int) -> Usage:
    """Usage of a call whose provider named none: the estimate and four characters a token."""
    return Usage(
        input_tokens=max(input_estimate, 0),
        output_tokens=-(-max(chars_written, 0) // CHARS_PER_TOKEN),
        estimated=True,
    )


def _bounded(amount: Decimal) -> Decimal:
    """Amounts beyond any of ours are cut, so that no client's exponent makes a giant integer."""
    return min(max(amount, -_MONEY_CEILING), _MONEY_CEILING)
