"""What the database says to a hold, and why money is not held, as the client is told: what is
settled, held and available, apart."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from shared.domain.inference import Failure
from shared.domain.ledger import ZERO
from shared.errors import (
    AinferaError,
    InsufficientFunds,
    KillswitchEngaged,
    Overloaded,
    SpendPolicyExceeded,
)

CAPS = {
    "PER_CALL_CAP": "the agent's per-call cap",
    "DAILY_CAP": "the agent's daily cap (a day is one in UTC)",
    "TENANT_CAP": "the daily cap of all the tenant's agents together (a day is one in UTC)",
}
OUTGROWN = "The answer outgrew the money held for it and was ended; what was written is settled."


@dataclass(frozen=True, slots=True)
class Held:
    """What the database said to a hold, or to a larger one; money in US dollars.

    `result` is `OPENED`, `EXTENDED`, `EXISTS`, `SETTLED`, `FENCED`, `UNAVAILABLE`, or a refusal:
    `AGENT_UNKNOWN`, `PER_CALL_CAP`, `DAILY_CAP`, `TENANT_CAP`, `INSUFFICIENT_FUNDS`, `KILLSWITCH`.
    `cap` is the cap, or the killswitch's threshold, at fault; the tenant's figures are known where
    it has a cap.
    """

    result: str
    attempt: int
    balance: Decimal = ZERO
    held: Decimal = ZERO
    spent_today: Decimal = ZERO
    cap: Decimal | None = None
    tenant_spent: Decimal | None = None
    tenant_held: Decimal | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], attempt: int) -> "Held":
        return cls(
            result=row["result"],
            attempt=attempt,
            balance=row["balance"],
            held=row["held"],
            spent_today=row["spent_today"],
            cap=row["cap"],
            tenant_spent=row["tenant_spent"],
            tenant_held=row["tenant_held"],
        )


def out_of_funds(held: Held, needed_usd: Decimal) -> InsufficientFunds:
    """The wallet has no more. Settled is its balance, available what nothing is held for."""
    available = held.balance - held.held
    return InsufficientFunds(
        f"The wallet has {available:f} USD available ({held.balance:f} settled, "
        f"{held.held:f} held by calls in flight); this call needs {needed_usd:f} USD. Top it up, "
        "or ask for fewer output tokens.",
        settled_usd=f"{held.balance:f}",
        balance_usd=f"{held.balance:f}",
        held_usd=f"{held.held:f}",
        available_usd=f"{available:f}",
        required_usd=f"{needed_usd:f}",
    )


def over_cap(held: Held, needed_usd: Decimal) -> SpendPolicyExceeded:
    """A cap allows no more. Settled and held are what counts against it, available what is left.

    Against the cap of a single call nothing counts but that call itself.
    """
    cap, spent, in_flight = held.cap or ZERO, held.spent_today, held.held
    if held.result == "TENANT_CAP":
        spent, in_flight = held.tenant_spent or ZERO, held.tenant_held or ZERO
    available = cap if held.result == "PER_CALL_CAP" else max(cap - spent - in_flight, ZERO)
    return SpendPolicyExceeded(
        f"This call may cost {needed_usd:f} USD and would pass {CAPS[held.result]} of {cap:f} USD: "
        f"{spent:f} settled today (UTC), {in_flight:f} held by calls in flight, "
        f"{available:f} available under it.",
        cap=held.result.lower(),
        cap_usd=f"{cap:f}",
        settled_usd=f"{spent:f}",
        spent_today_usd=f"{spent:f}",
        held_usd=f"{in_flight:f}",
        available_usd=f"{available:f}",
        required_usd=f"{needed_usd:f}",
    )


def outgrown(held: Held, extra_usd: Decimal) -> Failure:
    """Why an answer that goes on cannot: its hold may not grow by `extra_usd`."""
    error: AinferaError
    if held.result in CAPS:
        error = over_cap(held, extra_usd)
    elif held.result == "INSUFFICIENT_FUNDS":
        error = out_of_funds(held, extra_usd)
    elif held.result == "KILLSWITCH":
        error = KillswitchEngaged(
            "More would pass a threshold of the cost killswitch, which is engaged now: no new "
            "calls are taken until an operator releases it."
        )
    else:
        error = Overloaded("No more money could be held for it: the database does not answer.")
    failure = error.failure()
    return replace(failure, message=f"{OUTGROWN} {failure.message}")
