"""The rules of money, as properties: nothing appears, nothing vanishes, no limit is passed."""

from datetime import date
from decimal import ROUND_DOWN, Decimal
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.ledger import (
    GRANTS_ACCOUNT,
    LOSSES_ACCOUNT,
    PROVIDER_COST_ACCOUNT,
    TOPUPS_ACCOUNT,
    Caps,
    OpenOutcome,
    Transfer,
    TransferKind,
    Wallet,
    admit,
    balances,
    entries,
    settle,
)

TODAY = date(2026, 1, 2)
YESTERDAY = date(2026, 1, 1)

amounts = st.decimals(0, 100, places=9, allow_nan=False, allow_infinity=False)
accounts = st.sampled_from([UUID(int=n) for n in range(1, 9)])


@st.composite
def wallets(draw: st.DrawFn) -> Wallet:
    held = draw(amounts)
    spent_day = draw(st.sampled_from([None, YESTERDAY, TODAY]))
    return Wallet(held + draw(amounts), held, draw(amounts), spent_day)


caps = st.builds(Caps, st.none() | amounts, st.none() | amounts)


@st.composite
def transfers(draw: st.DrawFn) -> Transfer:
    debit, credit = draw(st.lists(accounts, min_size=2, max_size=2, unique=True))
    amount = draw(amounts.filter(lambda value: value > 0))
    return Transfer(uuid4(), debit, credit, amount, draw(st.sampled_from(list(TransferKind))))


def test_the_system_accounts_have_fixed_ids() -> None:
    ids = [PROVIDER_COST_ACCOUNT, GRANTS_ACCOUNT, TOPUPS_ACCOUNT, LOSSES_ACCOUNT]
    assert [str(each) for each in ids] == [
        f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3, 4)
    ]


@given(st.lists(transfers(), max_size=20))
def test_transfers_sum_to_zero_singly_and_together(moved: list[Transfer]) -> None:
    for transfer in moved:
        assert sum(entry.amount for entry in entries(transfer)) == 0
    assert sum(balances(moved).values()) == 0


@given(st.lists(transfers(), max_size=20))
def test_a_balance_is_what_came_in_less_what_went_out(moved: list[Transfer]) -> None:
    for account, balance in balances(moved).items():
        came = sum(t.amount for t in moved if t.credit_account == account)
        went = sum(t.amount for t in moved if t.debit_account == account)
        assert balance == came - went


@given(wallets(), amounts, caps)
def test_an_admitted_hold_is_within_funds_and_caps(
    wallet: Wallet, amount: Decimal, cap: Caps
) -> None:
    answer = admit(wallet, amount, cap, TODAY)
    if answer.outcome is not OpenOutcome.OPENED:
        assert answer.wallet == wallet
        return
    assert answer.wallet.held == wallet.held + amount
    assert answer.wallet.balance == wallet.balance
    assert answer.wallet.available >= 0
    assert cap.per_call is None or amount <= cap.per_call
    assert cap.daily is None or wallet.spent_on(TODAY) + answer.wallet.held <= cap.daily


@given(wallets(), amounts, caps)
def test_a_refusal_is_for_a_reason(wallet: Wallet, amount: Decimal, cap: Caps) -> None:
    answer = admit(wallet, amount, cap, TODAY)
    match answer.outcome:
        case OpenOutcome.PER_CALL_CAP:
            assert answer.cap == cap.per_call
            assert cap.per_call is not None
            assert amount > cap.per_call
        case OpenOutcome.DAILY_CAP:
            assert answer.cap == cap.daily
            assert cap.daily is not None
            assert wallet.spent_on(TODAY) + wallet.held + amount > cap.daily
        case OpenOutcome.INSUFFICIENT_FUNDS:
            assert wallet.balance - wallet.held < amount
        case other:
            assert other is OpenOutcome.OPENED


def test_caps_are_checked_before_funds_and_the_call_before_the_day() -> None:
    poor = Wallet(Decimal(0))
    both, daily = Caps(Decimal(1), Decimal(1)), Caps(None, Decimal(1))
    assert admit(poor, Decimal(2), both, TODAY).outcome is OpenOutcome.PER_CALL_CAP
    assert admit(poor, Decimal(2), daily, TODAY).outcome is OpenOutcome.DAILY_CAP
    assert admit(poor, Decimal(2), Caps(), TODAY).outcome is OpenOutcome.INSUFFICIENT_FUNDS


def test_exactly_the_cap_and_exactly_the_money_are_allowed() -> None:
    wallet = Wallet(Decimal(3), Decimal(1), Decimal(2), TODAY)
    exact = Caps(per_call=Decimal(2), daily=Decimal(5))
    assert admit(wallet, Decimal(2), exact, TODAY).outcome is OpenOutcome.OPENED


def test_a_new_day_starts_with_nothing_spent() -> None:
    wallet = Wallet(Decimal(9), spent_today=Decimal(5), spent_day=YESTERDAY)
    limit = Caps(daily=Decimal(5))
    assert admit(wallet, Decimal(5), limit, TODAY).outcome is OpenOutcome.OPENED
    assert admit(wallet, Decimal(5), limit, YESTERDAY).outcome is OpenOutcome.DAILY_CAP


def test_an_extension_counts_what_the_call_holds_already() -> None:
    wallet, limit = Wallet(Decimal(9), Decimal(2)), Caps(per_call=Decimal(3))
    assert admit(wallet, Decimal(1), limit, TODAY, hold=Decimal(2)).outcome is OpenOutcome.OPENED
    refused = admit(wallet, Decimal("1.1"), limit, TODAY, hold=Decimal(2))
    assert refused.outcome is OpenOutcome.PER_CALL_CAP


@given(wallets(), st.decimals(0, 1, places=9), amounts)
def test_a_settlement_accounts_for_every_cent(
    wallet: Wallet, share: Decimal, charge: Decimal
) -> None:
    hold = (wallet.held * share).quantize(Decimal(1).scaleb(-9), ROUND_DOWN)
    done = settle(wallet, hold, charge, TODAY)
    assert done.charged + done.written_off == charge
    assert done.charged >= 0
    assert done.written_off >= 0
    assert done.wallet.balance == wallet.balance - done.charged
    assert done.wallet.held == wallet.held - hold
    assert done.wallet.available >= 0
    assert done.wallet.spent_today == wallet.spent_on(TODAY) + done.charged
    if charge <= hold:
        assert done.written_off == 0
