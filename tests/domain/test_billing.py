"""What a call costs, however it ended; and the rules of accounts, corrections and drain proofs."""

from dataclasses import replace
from datetime import date
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.billing import NOTHING, RULE, Basis, Work, bill, owed
from shared.domain.inference import Usage
from shared.domain.ledger import (
    PROVIDER_COST_ACCOUNT,
    ROUTES,
    Account,
    AccountKind,
    Budget,
    Caps,
    CorrectionOutcome,
    DrainProof,
    OpenOutcome,
    Transfer,
    TransferKind,
    Wallet,
    admit,
    correct,
    drain_proof,
    settle,
)
from shared.domain.pricing import Prices

TODAY = date(2026, 1, 2)
PRICES = Prices(Decimal(2), Decimal(10))
COUNTED = Usage(100, 50, 7)
AT_START = Usage(90, 1, 7)

money = st.decimals(0, 10, places=9)


@pytest.mark.parametrize(
    ("work", "usage", "basis"),
    [
        (Work(40, 400, True, True, COUNTED, AT_START), COUNTED, Basis.PROVIDER_USAGE),
        (Work(40, 400, True, True), Usage(40, 100, estimated=True), Basis.ESTIMATE),
        (Work(40, 0, False, True), Usage(40, 0, estimated=True), Basis.ESTIMATE),
        (Work(40, 401, True), Usage(40, 101, estimated=True), Basis.ESTIMATE),
        (
            Work(40, 400, True, at_start=AT_START),
            Usage(90, 100, 7, estimated=True),
            Basis.ESTIMATE,
        ),
        (
            Work(40, 400, True, at_start=Usage(90, 150)),
            Usage(90, 150, estimated=True),
            Basis.ESTIMATE,
        ),
        (Work(40, 400, True, False, COUNTED), COUNTED, Basis.PROVIDER_USAGE),
        (Work(40, at_start=AT_START), AT_START, Basis.PROVIDER_USAGE),
        (Work(40), NOTHING, Basis.NONE),
    ],
    ids=[
        "answered and counted",
        "answered, no count",
        "answered with no word, no count",
        "broke off",
        "broke off, input counted at its start",
        "broke off, more output counted than seen",
        "failed with a count",
        "stopped before its first word",
        "stopped before anything was counted",
    ],
)
def test_the_published_table(work: Work, usage: Usage, basis: Basis) -> None:
    assert owed(work) == usage
    made = bill(owed(work), PRICES)
    assert (made.basis, made.rule) == (basis, RULE)
    assert (made.amount == 0) is (basis is Basis.NONE)


def test_a_call_that_reached_no_provider_costs_nothing() -> None:
    assert bill(COUNTED, None).amount == 0
    assert bill(COUNTED, None).basis is Basis.NONE


# -- a tenant's budget --------------------------------------------------------------------------


@given(money, money, money, money)
def test_a_budget_is_kept_and_counts_what_is_held(
    cap: Decimal, spent: Decimal, held: Decimal, amount: Decimal
) -> None:
    answer = admit(Wallet(Decimal(99)), amount, Caps(), TODAY, budget=Budget(cap, spent, held))
    fits = spent + held + amount <= cap
    assert answer.outcome is (OpenOutcome.OPENED if fits else OpenOutcome.TENANT_CAP)
    assert answer.budget == Budget(cap, spent, held + amount if fits else held)
    assert answer.cap == (None if fits else cap)


def test_an_agents_own_caps_are_told_first_and_funds_last() -> None:
    none = Budget(Decimal(0))
    poor, limit = Wallet(Decimal(0)), Caps(daily=Decimal(1))
    assert admit(poor, Decimal(2), limit, TODAY, budget=none).outcome is OpenOutcome.DAILY_CAP
    assert admit(poor, Decimal(1), limit, TODAY, budget=none).outcome is OpenOutcome.TENANT_CAP


# -- drain proof --------------------------------------------------------------------------------


@given(money, st.lists(st.tuples(money, money), max_size=4), money, st.none() | money, money)
def test_what_is_proved_comes_true_whatever_calls_in_flight_cost(
    spent: Decimal,
    calls: list[tuple[Decimal, Decimal]],
    daily: Decimal,
    per_call: Decimal | None,
    asked: Decimal,
) -> None:
    """Every call in flight ends, for any cost, and another one asks for money in between."""
    caps, holds = Caps(per_call, daily), [hold for hold, _ in calls]
    wallet = Wallet(Decimal(1000), sum(holds, Decimal(0)), spent, TODAY)
    proof = drain_proof(wallet, max(holds, default=Decimal(0)), caps, TODAY)
    if proof is not DrainProof.PROVED:
        worst = spent + wallet.held
        assert worst > daily or (per_call is not None and max(holds) > per_call)
        return
    for hold, cost in calls:
        wallet = settle(wallet, hold, cost, TODAY).wallet
        answer = admit(wallet, asked, caps, TODAY)
        if answer.outcome is OpenOutcome.OPENED:
            wallet = settle(answer.wallet, asked, asked, TODAY).wallet
    assert wallet.spent_today <= daily


def test_without_a_daily_cap_nothing_is_proved() -> None:
    caps = Caps(per_call=Decimal(1))
    assert drain_proof(Wallet(Decimal(9)), Decimal(0), caps, TODAY) is DrainProof.NO_DAILY_CAP


# -- corrections --------------------------------------------------------------------------------

USAGE = Transfer(uuid4(), uuid4(), PROVIDER_COST_ACCOUNT, Decimal(3), TransferKind.USAGE, uuid4())
COST = Account(PROVIDER_COST_ACCOUNT, AccountKind.PROVIDER_COST)


@given(st.lists(st.decimals("0.000000001", 3, places=9), max_size=6))
def test_corrections_together_never_take_back_more_than_there_was(wishes: list[Decimal]) -> None:
    taken = Decimal(0)
    for wish in wishes:
        done = correct(uuid4(), USAGE, taken, wish, COST)
        if done.outcome is CorrectionOutcome.CREATED:
            taken += wish
            assert done.transfer is not None
            assert done.transfer.debit_account == USAGE.credit_account
            assert done.transfer.credit_account == USAGE.debit_account
            assert done.transfer.corrects == USAGE.id
        else:
            assert taken + wish > USAGE.amount
        assert done.remaining == USAGE.amount - taken
    assert taken <= USAGE.amount


def test_only_a_wallet_can_be_too_poor_to_give_back() -> None:
    wallet = Account(UUID(int=99), AccountKind.WALLET, balance=Decimal(3), held=Decimal(1))
    topup = replace(USAGE, credit_account=wallet.id, kind=TransferKind.TOPUP)
    refused = correct(uuid4(), topup, Decimal(0), None, wallet)
    assert refused.outcome is CorrectionOutcome.INSUFFICIENT_FUNDS
    assert correct(uuid4(), topup, Decimal(0), Decimal(2), wallet).remaining == 1
    assert correct(uuid4(), USAGE, Decimal(0), None, COST).amount == 3


def test_every_kind_but_a_correction_has_its_routes() -> None:
    assert set(ROUTES) == set(TransferKind) - {TransferKind.CORRECTION}
