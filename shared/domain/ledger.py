"""Money: accounts, transfers, and the rules of holds and settlements.

Amounts are `Decimal` US dollars with nine places, rounded where they are made (pricing.py). A
`Transfer` moves a positive amount out of its debit account into its credit account; a hold is
money of a wallet that is promised to one inference and not yet moved. Nothing is ever edited: a
mistake is corrected by another transfer, which goes its way back.

The rules here and in attempts.py are the specification of the SQL functions `open_inferences`,
`enlarge_hold`, `settle_inferences`, `bury_inferences` and `correct_transfer`, which apply them
under the lock of the wallet; a property test runs both and compares. A day is a day in UTC.
"""

from collections.abc import Iterable, Mapping
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
MARGIN_ACCOUNT = UUID("00000000-0000-0000-0000-000000000005")
CLEARING_ACCOUNTS: Mapping[str, UUID] = {
    "cdp": UUID("00000000-0000-0000-0000-000000000006"),
    "stripe": UUID("00000000-0000-0000-0000-000000000007"),
    "xendit": UUID("00000000-0000-0000-0000-000000000008"),
}
# as a trial balance names them
SYSTEM_ACCOUNT_NAMES: Mapping[UUID, str] = {
    PROVIDER_COST_ACCOUNT: "paid to providers",
    GRANTS_ACCOUNT: "grants",
    TOPUPS_ACCOUNT: "top-ups by operators",
    LOSSES_ACCOUNT: "losses",
    MARGIN_ACCOUNT: "margin",
    **{account: f"{rail} clearing" for rail, account in CLEARING_ACCOUNTS.items()},
}


class AccountKind(StrEnum):
    """A wallet is an agent's. What providers cost goes into one account, what is kept of a charge
    into another; a rail's clearing account holds what the rail has taken in and not yet paid out.
    """

    WALLET = "wallet"
    PROVIDER_COST = "provider_cost"
    GRANTS = "grants"
    TOPUPS = "topups"
    LOSSES = "losses"
    MARGIN = "margin"
    CLEARING = "clearing"


# A system account is known by its id alone; every other id is a wallet's.
SYSTEM_ACCOUNTS: Mapping[UUID, AccountKind] = {
    PROVIDER_COST_ACCOUNT: AccountKind.PROVIDER_COST,
    GRANTS_ACCOUNT: AccountKind.GRANTS,
    TOPUPS_ACCOUNT: AccountKind.TOPUPS,
    LOSSES_ACCOUNT: AccountKind.LOSSES,
    MARGIN_ACCOUNT: AccountKind.MARGIN,
    **dict.fromkeys(CLEARING_ACCOUNTS.values(), AccountKind.CLEARING),
}


class TransferKind(StrEnum):
    USAGE = "usage"
    GRANT = "grant"
    GRANT_RETURN = "grant_return"
    TOPUP = "topup"
    WRITEOFF = "writeoff"
    MARGIN = "margin"
    REFUND = "refund"
    CORRECTION = "correction"


# Which kind of transfer may go from which kind of account into which. A correction is not among
# them: it goes the way back of the transfer that it corrects, whatever that was.
ROUTES: Mapping[TransferKind, frozenset[tuple[AccountKind, AccountKind]]] = {
    TransferKind.USAGE: frozenset({(AccountKind.WALLET, AccountKind.PROVIDER_COST)}),
    TransferKind.WRITEOFF: frozenset({(AccountKind.LOSSES, AccountKind.PROVIDER_COST)}),
    TransferKind.GRANT: frozenset({(AccountKind.GRANTS, AccountKind.WALLET)}),
    TransferKind.GRANT_RETURN: frozenset({(AccountKind.WALLET, AccountKind.GRANTS)}),
    TransferKind.TOPUP: frozenset(
        {(AccountKind.TOPUPS, AccountKind.WALLET), (AccountKind.CLEARING, AccountKind.WALLET)}
    ),
    TransferKind.MARGIN: frozenset({(AccountKind.WALLET, AccountKind.MARGIN)}),
    TransferKind.REFUND: frozenset(
        {
            (AccountKind.PROVIDER_COST, AccountKind.WALLET),
            (AccountKind.MARGIN, AccountKind.WALLET),
            (AccountKind.WALLET, AccountKind.CLEARING),
        }
    ),
}


def kind_of(account: UUID) -> AccountKind:
    return SYSTEM_ACCOUNTS.get(account, AccountKind.WALLET)


def fits(kind: TransferKind, debit_account: UUID, credit_account: UUID) -> bool:
    """Whether a transfer of this kind may go from the one account into the other."""
    if kind is TransferKind.CORRECTION:
        return True
    return (kind_of(debit_account), kind_of(credit_account)) in ROUTES[kind]


class TransferOutcome(StrEnum):
    """What `transfer_funds` answers; refusals are values, not errors."""

    CREATED = "CREATED"
    EXISTS = "EXISTS"
    EXISTS_WITH_DIFFERENT_AMOUNT = "EXISTS_WITH_DIFFERENT_AMOUNT"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    ACCOUNT_UNKNOWN = "ACCOUNT_UNKNOWN"


class CorrectionOutcome(StrEnum):
    """What `correct_transfer` answers."""

    CREATED = "CREATED"
    EXISTS = "EXISTS"
    EXISTS_WITH_DIFFERENT_AMOUNT = "EXISTS_WITH_DIFFERENT_AMOUNT"
    TRANSFER_UNKNOWN = "TRANSFER_UNKNOWN"
    EXCEEDS_TRANSFER = "EXCEEDS_TRANSFER"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"


class OpenOutcome(StrEnum):
    """What `open_inferences` answers for one call."""

    OPENED = "OPENED"
    EXISTS = "EXISTS"
    SETTLED = "SETTLED"
    FENCED = "FENCED"
    AGENT_UNKNOWN = "AGENT_UNKNOWN"
    PER_CALL_CAP = "PER_CALL_CAP"
    DAILY_CAP = "DAILY_CAP"
    TENANT_CAP = "TENANT_CAP"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    KILLSWITCH = "KILLSWITCH"


class ExtendOutcome(StrEnum):
    """What `enlarge_hold` answers."""

    EXTENDED = "EXTENDED"
    PER_CALL_CAP = "PER_CALL_CAP"
    DAILY_CAP = "DAILY_CAP"
    TENANT_CAP = "TENANT_CAP"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    KILLSWITCH = "KILLSWITCH"
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
    corrects: UUID | None = None


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
class Budget:
    """A tenant with a daily cap: what all of its agents have spent on the day, and hold now."""

    cap: Decimal
    spent: Decimal = ZERO
    held: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer, the wallet and budget afterwards, and the cap at fault if there was one."""

    outcome: OpenOutcome
    wallet: Wallet
    cap: Decimal | None = None
    budget: Budget | None = None


def admit(
    wallet: Wallet,
    amount: Decimal,
    caps: Caps,
    day: date,
    hold: Decimal = ZERO,
    budget: Budget | None = None,
) -> Admission:
    """Whether `amount` may be held, caps first, then funds; a refusal changes nothing.

    `hold` is what this very call holds already, when a running call asks for more; `budget` the
    tenant's, if it has a cap. What is held counts against a daily cap as if it were spent, so that
    calls in flight can never pass it together.
    """
    if caps.per_call is not None and hold + amount > caps.per_call:
        return Admission(OpenOutcome.PER_CALL_CAP, wallet, caps.per_call, budget)
    if caps.daily is not None and wallet.spent_on(day) + wallet.held + amount > caps.daily:
        return Admission(OpenOutcome.DAILY_CAP, wallet, caps.daily, budget)
    if budget is not None and budget.spent + budget.held + amount > budget.cap:
        return Admission(OpenOutcome.TENANT_CAP, wallet, budget.cap, budget)
    if wallet.available < amount:
        return Admission(OpenOutcome.INSUFFICIENT_FUNDS, wallet, budget=budget)
    if budget is not None:
        budget = replace(budget, held=budget.held + amount)
    held = replace(wallet, held=wallet.held + amount)
    return Admission(OpenOutcome.OPENED, held, budget=budget)


class DrainProof(StrEnum):
    """Whether what an agent spends today can still pass its caps; see `drain_proof`."""

    PROVED = "proved"
    IN_FLIGHT_EXCEEDS_CAP = "in_flight_exceeds_cap"
    NO_DAILY_CAP = "no_daily_cap"


def drain_proof(wallet: Wallet, largest_hold: Decimal, caps: Caps, day: date) -> DrainProof:
    """Whether these caps hold from now on, whatever the calls in flight still cost.

    A call is charged its hold at most, and nothing more is held over a cap. So what is settled
    today and what is held now, together within the daily cap, can never pass it; nor can one call
    pass its own cap while no hold is over it. Only meant under the wallet's lock, with the caps
    being set under the same. `largest_hold` is the largest one of the calls in flight.
    """
    if caps.daily is None:
        return DrainProof.NO_DAILY_CAP
    over_day = wallet.spent_on(day) + wallet.held > caps.daily
    over_call = caps.per_call is not None and largest_hold > caps.per_call
    return DrainProof.IN_FLIGHT_EXCEEDS_CAP if over_day or over_call else DrainProof.PROVED


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


@dataclass(frozen=True, slots=True)
class Correction:
    """`amount` is what was asked for, `remaining` what can still be taken back afterwards."""

    outcome: CorrectionOutcome
    amount: Decimal
    remaining: Decimal
    transfer: Transfer | None = None


def correct(
    id: UUID, original: Transfer, corrected: Decimal, amount: Decimal | None, payer: Account
) -> Correction:
    """Take `original` back, wholly (None: all that is left of it) or in part, its way back.

    `corrected` is what earlier corrections of it took back; `payer` is the account that it went
    into, which pays now. A wallet pays with what is available only; an account of the system
    always can.
    """
    remaining = original.amount - corrected
    wanted = remaining if amount is None else amount
    if wanted > remaining or remaining == 0:
        return Correction(CorrectionOutcome.EXCEEDS_TRANSFER, wanted, remaining)
    if payer.kind is AccountKind.WALLET and payer.balance - payer.held < wanted:
        return Correction(CorrectionOutcome.INSUFFICIENT_FUNDS, wanted, remaining)
    back = Transfer(
        id,
        debit_account=original.credit_account,
        credit_account=original.debit_account,
        amount=wanted,
        kind=TransferKind.CORRECTION,
        inference_id=original.inference_id,
        corrects=original.id,
    )
    return Correction(CorrectionOutcome.CREATED, wanted, remaining - wanted, back)
