"""The books as the pure rules keep them, step by step beside the database's own."""

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from uuid import UUID

from shared.domain.attempts import CallState, Standing, may_bury, may_open, may_settle
from shared.domain.ledger import (
    GRANTS_ACCOUNT,
    LOSSES_ACCOUNT,
    MARGIN_ACCOUNT,
    PROVIDER_COST_ACCOUNT,
    ZERO,
    Account,
    AccountKind,
    Budget,
    BuryOutcome,
    Caps,
    OpenOutcome,
    SettleOutcome,
    Transfer,
    TransferKind,
    Wallet,
    admit,
    balances,
    release,
    settle,
)
from tests.workers.ledger_cases import Agent

USES_A_GRANT = (GRANTS_ACCOUNT, PROVIDER_COST_ACCOUNT, MARGIN_ACCOUNT)


@dataclass(slots=True)
class Purse:
    """An agent, its caps, and its wallet as the rules see it."""

    agent: Agent
    caps: Caps
    wallet: Wallet = field(default_factory=lambda: Wallet(ZERO))


@dataclass(slots=True)
class Call:
    purse: Purse
    state: CallState
    attempt: int = 1
    waits: bool = False
    hold: Decimal = ZERO
    hold_state: str | None = None
    settled: Decimal | None = None

    @property
    def standing(self) -> Standing:
        return Standing(self.state, self.attempt, self.waits)

    def figures(self) -> tuple[object, ...]:
        """What the row of the call says of it."""
        return (self.state, self.attempt, self.hold, self.hold_state, self.settled)


@dataclass(slots=True)
class BooksModel:
    """One tenant's books. Every method says what the database must answer."""

    purses: list[Purse]
    tenant_cap: Decimal | None = None
    calls: dict[str, Call] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)

    def budget(self, day: date) -> Budget | None:
        if self.tenant_cap is None:
            return None
        spent = sum((each.wallet.spent_on(day) for each in self.purses), ZERO)
        return Budget(self.tenant_cap, spent, sum((p.wallet.held for p in self.purses), ZERO))

    def open(
        self, purse: Purse, inference: str, attempt: int, amount: Decimal, day: date
    ) -> OpenOutcome:
        known = self.calls.get(inference)
        answer = may_open(known.standing if known else None, attempt)
        if answer is OpenOutcome.EXISTS and known is not None:
            known.attempt = max(known.attempt, attempt)
        if answer is not None:
            return answer
        admitted = admit(purse.wallet, amount, purse.caps, day, budget=self.budget(day))
        purse.wallet = admitted.wallet
        if admitted.outcome is OpenOutcome.OPENED:
            self.calls[inference] = Call(
                purse, CallState.HELD, attempt, hold=amount, hold_state="pending"
            )
        return admitted.outcome

    def extend(self, inference: str, attempt: int, extra: Decimal, day: date) -> str:
        call = self.calls[inference]
        if call.state is not CallState.HELD or attempt < call.attempt:
            return "FENCED"
        wallet, caps = call.purse.wallet, call.purse.caps
        admitted = admit(wallet, extra, caps, day, call.hold, self.budget(day))
        call.purse.wallet = admitted.wallet
        if admitted.outcome is not OpenOutcome.OPENED:
            return admitted.outcome
        call.hold += extra
        return "EXTENDED"

    def settle(
        self, inference: str, attempt: int, charge: Decimal, day: date, refused: bool = False
    ) -> SettleOutcome:
        call = self.calls[inference]
        answer = may_settle(call.standing, attempt, refused)
        if answer is not SettleOutcome.SETTLED:
            return answer
        hold = call.hold if call.state is CallState.HELD else ZERO
        cost = ZERO if refused else charge
        done = settle(call.purse.wallet, hold, cost, day)
        call.purse.wallet = done.wallet
        call.state = CallState.REFUSED if refused else CallState.SETTLED
        call.attempt, call.settled = attempt, done.charged
        call.hold_state = "posted" if cost else "voided"
        wallet = call.purse.agent.wallet_id
        self._moved(TransferKind.USAGE, wallet, PROVIDER_COST_ACCOUNT, done.charged, inference)
        written_off = (LOSSES_ACCOUNT, PROVIDER_COST_ACCOUNT, done.written_off)
        self._moved(TransferKind.WRITEOFF, *written_off, inference)
        return answer

    def bury(self, inference: str, attempt: int) -> BuryOutcome:
        call = self.calls[inference]
        answer = may_bury(call.standing, attempt)
        if answer is BuryOutcome.BURIED:
            if call.state is CallState.HELD:
                call.purse.wallet = release(call.purse.wallet, call.hold)
                call.hold_state = "voided"
            call.state, call.waits = CallState.DEAD, True
        if answer in (BuryOutcome.BURIED, BuryOutcome.EXISTS):
            call.attempt = max(call.attempt, attempt)
        return answer

    def move(self, purse: Purse, change: Decimal, kind: TransferKind, other: UUID) -> str:
        """Money into a wallet, or out of it if `change` is negative."""
        if purse.wallet.available + change < 0:
            return "INSUFFICIENT_FUNDS"
        wallet = purse.agent.wallet_id
        accounts = (other, wallet) if change > 0 else (wallet, other)
        self._moved(kind, *accounts, abs(change))
        self._pay(wallet, change)
        return "CREATED"

    def owed(self, purse: Purse) -> Decimal:
        """What is left of a grant, and not held by a call."""
        wallet, left = purse.agent.wallet_id, ZERO
        for each in self.transfers:
            if each.credit_account == wallet and each.debit_account in USES_A_GRANT:
                left += each.amount
            if each.debit_account == wallet and each.credit_account in USES_A_GRANT:
                left -= each.amount
        return min(max(left, ZERO), purse.wallet.available)

    def account(self, account: UUID) -> Account:
        for purse in self.purses:
            if purse.agent.wallet_id == account:
                wallet = purse.wallet
                return Account(account, AccountKind.WALLET, wallet.balance, wallet.held)
        return Account(account, AccountKind.MARGIN)

    def corrected(self, original: Transfer) -> Decimal:
        """What was taken back of it so far."""
        back = (each.amount for each in self.transfers if each.corrects == original.id)
        return sum(back, ZERO)

    def take_back(self, back: Transfer) -> None:
        self.transfers.append(back)
        self._pay(back.debit_account, -back.amount)
        self._pay(back.credit_account, back.amount)

    def folded(self, purse: Purse) -> Decimal:
        return balances(self.transfers).get(purse.agent.wallet_id, ZERO)

    def _moved(
        self, kind: TransferKind, debit: UUID, credit: UUID, amount: Decimal, inference: str = ""
    ) -> None:
        if amount:
            call = UUID(inference) if inference else None
            # the database mints the ids of these; `named` tells them afterwards
            self.transfers.append(Transfer(UUID(int=0), debit, credit, amount, kind, call))

    def _pay(self, account: UUID, change: Decimal) -> None:
        for purse in self.purses:
            if purse.agent.wallet_id == account:
                was = purse.wallet
                purse.wallet = Wallet(
                    was.balance + change, was.held, was.spent_today, was.spent_day
                )
