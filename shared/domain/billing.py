"""What a call costs that was answered, broke off, was cancelled, or was refused: one rule.

It is published in docs/billing.md and named on every receipt. Of the models that were asked for a
call only the last one is charged; of it,

- an answer that came to its end: what the provider counted; where it named no count, the estimate;
- one that ended after its first word, whoever ended it: the input as the provider counted it when
  it took the call, else as estimated; the output as it counted it so far or, if that is more, as
  estimated by what was written;
- one that ended before its first word: what the provider counted when it took the call, if it did.

A call that reached no provider costs nothing. The estimate is that of the routing decision for the
input and a token for every four characters written for the output.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum

from shared.domain.inference import Usage
from shared.domain.ledger import ZERO
from shared.domain.pricing import Prices, cost, estimated_usage

RULE = "partial-work-v1"
NOTHING = Usage()


class Basis(StrEnum):
    """On whose count a call was charged; an answer whose output was estimated is an estimate."""

    PROVIDER_USAGE = "provider_usage"
    ESTIMATE = "estimate"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Work:
    """What is known of the work that a provider did for one call.

    `spoke` says whether the model began to write, `written` how many characters that were at most;
    `ended` whether the answer came to its end. `counted` is what the provider counted at the end
    or as it failed, None where it did not; `at_start` what it counted when it took the call.
    """

    input_estimate: int
    written: int = 0
    spoke: bool = False
    ended: bool = False
    counted: Usage | None = None
    at_start: Usage = NOTHING


@dataclass(frozen=True, slots=True)
class Bill:
    """`amount` in US dollars, nine places, by `rule`."""

    amount: Decimal
    basis: Basis
    rule: str = RULE


def owed(work: Work) -> Usage:
    """The tokens that are charged for."""
    if work.counted is not None:
        return work.counted
    if not (work.spoke or work.ended):
        return work.at_start
    if work.at_start.total_input:
        return at_least_written(work.at_start, work.written)
    return estimated_usage(work.input_estimate, work.written)


def at_least_written(counted: Usage, written: int) -> Usage:
    """What a provider counted of an answer that it did not count to the end.

    The output is what it had counted so far or, if that is more, a token for every four characters.
    """
    output = estimated_usage(0, written).output_tokens
    return replace(counted, output_tokens=max(counted.output_tokens, output), estimated=True)


def bill(usage: Usage, prices: Prices | None) -> Bill:
    """The bill for the tokens that are owed; `prices` None: no provider was reached."""
    if prices is None or usage == NOTHING:
        return Bill(ZERO, Basis.NONE)
    basis = Basis.ESTIMATE if usage.estimated else Basis.PROVIDER_USAGE
    return Bill(cost(usage, prices), basis)
