"""Money: accounts, transfers, and the rules of holds and settlements.

Amounts are `Decimal` US dollars with nine places, rounded where they are made (pricing.py). A
`Transfer` moves a positive amount out of its debit account into its credit account; a hold is
money of a wallet that is promised to one inference and not yet moved. Nothing is ever edited: a
mistake is corrected by another transfer.

The rules here and in attempts.py are the specification of the SQL functions `open_inferences`,
`settle_inferences` and `bury_inferences`, which apply them under the lock of the wallet; a
property test runs both and compares.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

ZERO = Decimal(0)

# The accounts of the system itself. They exist once, in every database, under these ids.
PROVIDER_COST_ACCOUNT = UUID("00000000-0000-0000-0000-000000000001")
GRANTS_ACCOUNT = UUID("00000000-0000-0000-0000-000000000002")
TOPUPS_ACCOUNT = UUID("00000000-0000-0000-0000-000000000003")
LOSSES_ACCOUNT = UUID("00000000-0000-0000-0000-000000000004")


class AccountKind(StrEnum):
    WALLET = "wallet"
    PROVIDER_COST = "provider_cost"
    GRANTS = "grants"
    TOPUPS = "topups"
    LOSSES = "losses"


class TransferKind(StrEnum):
    USAGE = "usage"
    GRANT = "grant"
    GRANT_RETURN = "grant_return"
    TOPUP = "topup"
    WRITEOFF = "writeoff"


class TransferOutcome(StrEnum):
    """What `transfer_funds` answers; refusals are values, not errors."""

    CREATED = "CREATED"
    EXISTS = "EXISTS"
    EXISTS_WITH_DIFFERENT_AMOUNT = "EXISTS_WITH_DIFFERENT_AMOUNT"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    ACCOUNT_UNKNOWN = "ACCOUNT_UNKNOWN"


class OpenOutcome(StrEnum):
    """What `open_inferences` answers for one call."""

    OPENED = "OPENED"
    EXISTS = "EXISTS"
    SETTLED = "SETTLED"
    FENCED = "FENCED"
    AGENT_UNKNOWN = "AGENT_UNKNOWN"
    PER_CALL_CAP = "PER_CALL_CAP"
    DAILY_CAP = "DAILY_CAP"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"


class ExtendOutcome(StrEnum):
    EXTENDED = "EXTENDED"
    PER_CALL_CAP = "PER_CALL_CAP"
    DAILY_CAP = "DAILY_CAP"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    FENCED = "FENCED"


class SettleOutcome(StrEnum):
    """What `settle_inferences` answers for one call."""

    SETTLED = "SETTLED"
    EXISTS = "EXISTS"
    FENCED = "FENCED"
    UNKNOWN = "UNKNOWN"


class BuryOutcome(StrEnum):
    """What `bury_inferences` answers for one call."""

    BURIED = "BURIED"
    EXISTS = "EXISTS"
    SETTLED = "SETTLED"
    FENCED = "FENCED"


@dataclass(frozen=True, slots=True)
class Account:
    """One account; the balance of a system account is the fold of its transfers."""

    id: UUID
    kind: AccountKind
    balance: Decimal = ZERO
    held: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Transfer:
    """`amount` leaves `debit_account` and enters `credit_account`; never zero or negative."""

    id: UUID
    debit_account: UUID
    credit_account: UUID
    amount: Decimal
    kind: TransferKind
    inference_id: UUID | None = None
    pending_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One account's view of a transfer; `amount` is negative where money left the account."""

    transfer_id: UUID
    account_id: UUID
    amount: Decimal
    kind: TransferKind


def entries(transfer: Transfer) -> tuple[LedgerEntry, LedgerEntry]:
    """The two entries of a transfer; they sum to zero."""
    return (
        LedgerEntry(transfer.id, transfer.debit_account, -transfer.amount, transfer.kind),
        LedgerEntry(transfer.id, transfer.credit_account, transfer.amount, transfer.kind),
    )


def balances(transfers: Iterable[Transfer]) -> dict[UUID, Decimal]:
    """Every account's balance, folded from nothing but the transfers."""
    totals: dict[UUID, Decimal] = {}
    for transfer in transfers:
        for entry in entries(transfer):
            totals[entry.account_id] = totals.get(entry.account_id, ZERO) + entry.amount
    return totals


@dataclass(frozen=True, slots=True)
class Wallet:
    """What a decision about money needs to know. `spent_today` belongs to `spent_day` (UTC)."""

    balance: Decimal
    held: Decimal = ZERO
    spent_today: Decimal = ZERO
    spent_day: date | None = None

    @property
    def available(self) -> Decimal:
        return self.balance - self.held

    def spent_on(self, day: date) -> Decimal:
        return self.spent_today if self.spent_day == day else ZERO


@dataclass(frozen=True, slots=True)
class Caps:
    """The agent's spend policy in dollars; None is no cap."""

    per_call: Decimal | None = None
    daily: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer, the wallet afterwards, and the cap at fault if there was one."""

    outcome: OpenOutcome
    wallet: Wallet
    cap: Decimal | None = None


def admit(
    wallet: Wallet, amount: Decimal, caps: Caps, day: date, hold: Decimal = ZERO
) -> Admission:
    """Whether `amount` may be held, caps first, then funds; a refusal changes nothing.

    `hold` is what this very call holds already, when a running call asks for more.
    What is held counts against the daily cap as if it were spent, so that calls in flight
    can never pass it together.
    """
    if caps.per_call is not None and hold + amount > caps.per_call:
        return Admission(OpenOutcome.PER_CALL_CAP, wallet, caps.per_call)
    if caps.daily is not None and wallet.spent_on(day) + wallet.held + amount > caps.daily:
        return Admission(OpenOutcome.DAILY_CAP, wallet, caps.daily)
    if wallet.available < amount:
        return Admission(OpenOutcome.INSUFFICIENT_FUNDS, wallet)
    return Admission(OpenOutcome.OPENED, replace(wallet, held=wallet.held + amount))


@dataclass(frozen=True, slots=True)
class Settlement:
    """`charged` left the wallet; `written_off` is cost that it could not cover."""

    wallet: Wallet
    charged: Decimal
    written_off: Decimal = ZERO


def settle(wallet: Wallet, hold: Decimal, charge: Decimal, day: date) -> Settlement:
    """Release the hold and take the charge, never more than was held; the rest is written off.

    Who needs more extends the hold first, so that caps and other calls' holds are respected.
    """
    charged = min(charge, hold)
    after = Wallet(
        balance=wallet.balance - charged,
        held=wallet.held - hold,
        spent_today=wallet.spent_on(day) + charged,
        spent_day=day,
    )
    return Settlement(after, charged, charge - charged)


def release(wallet: Wallet, hold: Decimal) -> Wallet:
    """The wallet without a hold that was voided: nothing was charged."""
    return replace(wallet, held=wallet.held - hold)
