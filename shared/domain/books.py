"""Books that are proved: what a proof is and what it found; and trial balances.

A `Proof` is a question to the tables alone, with no word of the application between: its `sql`
lists all that it looks at, one row each, and says of each row whether it is wrong. Nothing that
is unknown passes for right: a row whose `wrong` is null counts as wrong.

Amounts are `Decimal` US dollars. In a trial balance `debits` is what left an account and `credits`
what entered it; its balance is credits less debits, so a wallet's is what its agent may spend.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from uuid import UUID

from shared.domain.ledger import ZERO


@dataclass(frozen=True, slots=True)
class Scope:
    """What is asked about: one tenant or all, one day (UTC) or all."""

    tenant: UUID | None = None
    day: date | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that is true of books in order.

    `sql` gives rows of (id, amount, wrong, detail): what it looks at, the dollars it is about, or
    null, whether it breaks the proof, and how. It has the tenant as $1 and the day as $2, null
    for all. `informs`: what it finds is worth knowing and no fault.
    """

    name: str
    sentence: str
    subjects: str
    sql: str
    informs: bool = False

    @property
    def daily(self) -> bool:
        """Whether it can be asked of one day; a balance, say, is the sum of all of them."""
        return "$2" in self.sql


@dataclass(frozen=True, slots=True)
class Offence:
    """One row that breaks a proof: its id, and how it does."""

    id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Proved:
    """What became of a proof: so many subjects of so many dollars, so many of them wrong.

    `looked_at` is None where it was not asked; `offences` are the first of those that are wrong.
    """

    proof: Proof
    looked_at: int | None
    amount: Decimal | None = None
    wrong: int = 0
    offences: tuple[Offence, ...] = ()

    @property
    def asked(self) -> bool:
        return self.looked_at is not None

    @property
    def holds(self) -> bool:
        return self.wrong == 0 or self.proof.informs

    def as_json(self) -> dict[str, object]:
        """Amounts as text, as everywhere."""
        return {
            "name": self.proof.name,
            "sentence": self.proof.sentence,
            "subjects": self.proof.subjects,
            "asked": self.asked,
            "holds": self.holds if self.asked else None,
            "informs": self.proof.informs,
            "looked_at": self.looked_at,
            "amount_usd": None if self.amount is None else f"{self.amount:f}",
            "wrong": self.wrong,
            "offences": [{"id": each.id, "detail": each.detail} for each in self.offences],
        }


def in_order(proved: Iterable[Proved]) -> bool:
    return all(each.holds for each in proved)


@dataclass(frozen=True, slots=True)
class TrialLine:
    """An account, or all wallets of a tenant, with what left it and what entered it."""

    kind: str
    account: str
    name: str
    debits: Decimal
    credits: Decimal

    @property
    def balance(self) -> Decimal:
        return self.credits - self.debits

    def cells(self) -> tuple[str, ...]:
        """As a table and a CSV file show it, in the order of `TRIAL_HEADINGS`."""
        amounts = (self.debits, self.credits, self.balance)
        return (self.kind, self.account, self.name, *(f"{each:.9f}" for each in amounts))

    def as_json(self) -> dict[str, str]:
        return dict(zip(TRIAL_HEADINGS, self.cells(), strict=True))


TRIAL_HEADINGS = ("kind", "account", "name", "debits_usd", "credits_usd", "balance_usd")


@dataclass(slots=True)
class TrialTotals:
    """The sums under a trial balance, taken while its lines go by."""

    debits: Decimal = ZERO
    credits: Decimal = ZERO

    def add(self, line: TrialLine) -> None:
        self.debits += line.debits
        self.credits += line.credits

    @property
    def balanced(self) -> bool:
        """False too where an amount is not a number, which equals nothing."""
        return self.debits == self.credits

    def line(self) -> TrialLine:
        return TrialLine("", "", "sum", self.debits, self.credits)
