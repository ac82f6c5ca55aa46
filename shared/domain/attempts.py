"""Which attempt may do what to a call: the fence that makes a second run harmless.

Every claim of a call has a number of its own, higher than all before it. A call is `held` from
its first hold on, and over once it is `settled` or `refused`. A call that cannot be finished is
`dead`: nothing is held for it, its request lies in a dead letter, and it stays as it is until the
letter is replayed, discarded or expired. Only then, and only with a higher number than any
before, may somebody open or end it; so one replay can charge once, however often it is run.
"""

from dataclasses import dataclass
from enum import StrEnum

from shared.domain.ledger import BuryOutcome, OpenOutcome, SettleOutcome


class CallState(StrEnum):
    """`inferences.state`."""

    HELD = "held"
    SETTLED = "settled"
    REFUSED = "refused"
    DEAD = "dead"


class LetterState(StrEnum):
    """`dead_letters.state`; `DEAD` waits for an operator, the others have had one or expired."""

    DEAD = "dead"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    EXPIRED = "expired"


OVER = frozenset({CallState.SETTLED, CallState.REFUSED})


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a call: its state, its newest attempt, and whether its letter waits."""

    state: CallState
    attempt: int
    waits: bool = False


def may_open(known: Standing | None, attempt: int) -> OpenOutcome | None:
    """The answer to an attempt that wants to hold money; None: the wallet and the caps decide."""
    if known is None:
        return None
    if known.state in OVER:
        return OpenOutcome.SETTLED
    if known.state is CallState.HELD:
        return OpenOutcome.EXISTS
    return OpenOutcome.FENCED if known.waits or attempt <= known.attempt else None


def may_settle(known: Standing | None, attempt: int, refused: bool) -> SettleOutcome:
    """The answer to an attempt that wants to end a call."""
    if known is None:
        return SettleOutcome.SETTLED if refused else SettleOutcome.UNKNOWN
    if known.state in OVER:
        return SettleOutcome.EXISTS
    if attempt < known.attempt:
        return SettleOutcome.FENCED
    if known.state is CallState.DEAD and (known.waits or attempt == known.attempt):
        return SettleOutcome.FENCED
    return SettleOutcome.SETTLED


def may_bury(known: Standing | None, attempt: int) -> BuryOutcome:
    """The answer to an attempt that gives a call up."""
    if known is None:
        return BuryOutcome.BURIED
    if known.state in OVER:
        return BuryOutcome.SETTLED
    if known.state is CallState.HELD:
        return BuryOutcome.FENCED if attempt < known.attempt else BuryOutcome.BURIED
    if known.waits:
        return BuryOutcome.EXISTS
    return BuryOutcome.BURIED if attempt > known.attempt else BuryOutcome.FENCED
