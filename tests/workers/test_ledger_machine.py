"""A machine that does to the books whatever can be done to them, beside the rules.

After every step the database and the model of pure rules say the same of each wallet, call and
transfer, and every proof of `fleet ledger check` holds. Long runs:
`LEDGER_MACHINE_EXAMPLES=2000 python -m pytest tests/workers/test_ledger_machine.py`.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.db import APP_ROLE, Connection, Statement, connect
from shared.domain.attempts import CallState
from shared.domain.closing import closing_item
from shared.domain.ledger import (
    CLEARING_ACCOUNTS,
    GRANTS_ACCOUNT,
    TOPUPS_ACCOUNT,
    ZERO,
    Caps,
    CorrectionOutcome,
    SettleOutcome,
    Transfer,
    TransferKind,
    correct,
)
from tests.workers.ledger_cases import Agent, ending, hold, new_agent, results
from tests.workers.ledger_model import BooksModel, Call, Purse
from tests.workers.letter_cases import burial
from workers.ledger_proofs import PROOFS

EXAMPLES = int(os.environ.get("LEDGER_MACHINE_EXAMPLES", "10"))
STEPS = 40
# all proofs in one question: asked a few hundred times, it must be planned only once
EVERY_PROOF = " UNION ALL ".join(
    f"SELECT '{proof.name}' AS name, id, detail FROM ({proof.sql}) subject "
    f"WHERE wrong IS NOT FALSE AND {not proof.informs}"
    for proof in PROOFS
)
IN_AND_OUT = {
    TransferKind.TOPUP: TOPUPS_ACCOUNT,
    TransferKind.GRANT: GRANTS_ACCOUNT,
    TransferKind.REFUND: CLEARING_ACCOUNTS["stripe"],
}
T = TypeVar("T")

amounts = st.decimals("0.000000001", 4, places=9)
caps = st.none() | st.decimals("0.5", 8, places=2)
which = st.integers(0, 30)
# an attempt beside the newest one: overtaken, the same, or the next
tries = st.sampled_from([0, 0, 0, 0, 1, -1])
SELDOM = st.sampled_from([False, False, False, True])


class World:
    """The database, and a loop to ask it in: the machine itself knows no waiting."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.db: Connection = self.wait(connect(url, APP_ROLE, "test"))
        self.wait(self.db.execute("SET plan_cache_mode = force_generic_plan"))
        self.proofs = self.wait(self.db.prepare(EVERY_PROOF))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self.wait(self.db.close())
        self._loop.close()


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    opened = World(database_url)
    yield opened
    opened.close()


class Machine(RuleBasedStateMachine):
    """Two agents of one tenant; `world` is set by the test."""

    world: World

    @initialize(first=st.tuples(caps, caps), second=st.tuples(caps, caps), tenant=caps)
    def begin(self, first: Any, second: Any, tenant: Decimal | None) -> None:
        agents = self.world.wait(two_agents(self.db, first, second, tenant))
        both = zip(agents, (first, second), strict=True)
        self.model = BooksModel([Purse(agent, Caps(*limits)) for agent, limits in both], tenant)
        for purse in self.model.purses:
            self.moved(purse, Decimal(5), TransferKind.TOPUP, TOPUPS_ACCOUNT)

    @property
    def db(self) -> Connection:
        return self.world.db

    def ask(self, statement: str, *values: Any) -> Any:
        return self.world.wait(self.db.fetchval(statement, *values))

    def result(self, function: str, item: dict[str, Any]) -> str:
        return self.world.wait(results(self.db, function, item))[0]

    def today(self) -> date:
        return datetime.now(UTC).date()

    def purse(self, n: int) -> Purse:
        return self.model.purses[n % len(self.model.purses)]

    def call(self, n: int, state: CallState | None = CallState.HELD) -> tuple[str, Call]:
        """Four times out of five one that is in the state, if any is; else any."""
        found = [each for each in self.model.calls.items() if n % 5 and each[1].state is state]
        found = found or list(self.model.calls.items())
        return found[n % len(found)]

    def some_calls(self) -> bool:
        return bool(self.model.calls)

    def some_transfers(self) -> bool:
        return bool(self.model.transfers)

    # -- money in and out ---------------------------------------------------------------------

    @rule(n=which, kind=st.sampled_from(list(IN_AND_OUT)), amount=amounts)
    def move(self, n: int, kind: TransferKind, amount: Decimal) -> None:
        """A top-up, a grant, or money paid back through a rail."""
        purse, other = self.purse(n), IN_AND_OUT[kind]
        self.moved(purse, -amount if kind is TransferKind.REFUND else amount, kind, other)
        if kind is TransferKind.GRANT:
            self.mark(purse, "9 days")

    @rule(n=which)
    def end_grant(self, n: int) -> None:
        purse = self.purse(n)
        if not any(each.kind == TransferKind.GRANT for each in self.model.transfers):
            return
        self.mark(purse, "-1 second")
        self.ask("SELECT count(*) FROM expire_grants()")
        if owed := self.model.owed(purse):
            self.model.move(purse, -owed, TransferKind.GRANT_RETURN, GRANTS_ACCOUNT)

    def mark(self, purse: Purse, ends: str) -> None:
        self.ask(
            "UPDATE accounts SET grant_inferences_left = 9, grant_expires_at = now() + $2::text"
            "::interval WHERE id = $1 AND EXISTS (SELECT FROM transfers WHERE kind = 'grant' AND"
            " credit_account = $1)",
            purse.agent.wallet_id,
            ends,
        )

    def moved(self, purse: Purse, change: Decimal, kind: TransferKind, other: UUID) -> None:
        wallet = purse.agent.wallet_id
        accounts = (other, wallet) if change > 0 else (wallet, other)
        moving = "SELECT result FROM transfer_funds($1, $2, $3, $4, $5)"
        told = (uuid4(), *accounts, abs(change), kind)
        assert self.ask(moving, *told) == self.model.move(purse, change, kind, other)

    @precondition(some_transfers)
    @rule(n=which, amount=st.none() | amounts, again=st.booleans())
    def take_back(self, n: int, amount: Decimal | None, again: bool) -> None:
        original = self.named(self.model.transfers[n % len(self.model.transfers)])
        payer = self.model.account(original.credit_account)
        gone = self.model.corrected(original)
        expected = correct(uuid4(), original, gone, amount, payer)
        taking = "SELECT result FROM correct_transfer($1, $2, $3)"
        told = (expected.transfer.id if expected.transfer else uuid4(), original.id, amount)
        assert self.ask(taking, *told) == expected.outcome
        if expected.transfer is not None:
            self.model.take_back(expected.transfer)
            if again:
                assert self.ask(taking, *told) == CorrectionOutcome.EXISTS

    def named(self, transfer: Transfer) -> Transfer:
        """The same with the id that the database gave it."""
        if transfer.corrects is not None:
            return transfer
        known = """SELECT id FROM transfers WHERE corrects IS NULL AND (debit_account,
                     credit_account, amount, kind) = ($1, $2, $3, $4)
                     AND inference_id IS NOT DISTINCT FROM $5 ORDER BY id LIMIT 1"""
        accounts = (transfer.debit_account, transfer.credit_account)
        found = self.ask(known, *accounts, transfer.amount, transfer.kind, transfer.inference_id)
        return replace(transfer, id=found)

    # -- calls ----------------------------------------------------------------------------------

    @rule(n=which, amount=amounts)
    def hold(self, n: int, amount: Decimal) -> None:
        self.opened(self.purse(n), str(uuid4()), 1, amount)

    @precondition(some_calls)
    @rule(n=which, later=tries, amount=amounts)
    def hold_again(self, n: int, later: int, amount: Decimal) -> None:
        inference, call = self.call(n, CallState.DEAD)
        self.opened(call.purse, inference, call.attempt + later, amount)

    def opened(self, purse: Purse, inference: str, attempt: int, amount: Decimal) -> None:
        item = hold(purse.agent, f"{amount:f}", inference, attempt=attempt)
        expected = self.model.open(purse, inference, attempt, amount, self.today())
        assert self.result("open_inferences", item) == expected

    @precondition(some_calls)
    @rule(n=which, later=tries, extra=amounts)
    def extend(self, n: int, later: int, extra: Decimal) -> None:
        inference, call = self.call(n)
        told = (UUID(inference), call.attempt + later, extra)
        expected = self.model.extend(inference, call.attempt + later, extra, self.today())
        assert self.ask("SELECT extend_hold($1, $2, $3)", *told) == expected

    @precondition(some_calls)
    @rule(n=which, later=tries, charge=st.just(ZERO) | amounts, refused=SELDOM)
    def settle(self, n: int, later: int, charge: Decimal, refused: bool) -> None:
        inference, call = self.call(n)
        attempt = call.attempt + later
        changes = {"refused": refused} | ({"receipt": None} if refused else {})
        item = ending(call.purse.agent, inference, f"{charge:f}", attempt=attempt, **changes)
        if refused:
            item["outcome"] |= {"outcome_status": "rejected_cap", "cost_actual": None}
        expected = self.model.settle(inference, attempt, charge, self.today(), refused)
        assert self.result("settle_inferences", item) == expected

    @precondition(some_calls)
    @rule(n=which)
    def expire(self, n: int) -> None:
        """As the sweep does to a call whose hold has run out."""
        inference, call = self.call(n)
        if call.state is CallState.HELD:
            assert self.closed(inference, call) is SettleOutcome.SETTLED

    @precondition(some_calls)
    @rule(n=which, later=tries)
    def bury(self, n: int, later: int) -> None:
        inference, call = self.call(n)
        attempt = call.attempt + later
        item = burial(call.purse.agent, inference, attempt)
        expected = self.model.bury(inference, attempt)
        assert self.result("bury_inferences", item) == expected

    @precondition(some_calls)
    @rule(n=which, discard=SELDOM)
    def resolve(self, n: int, discard: bool) -> None:
        """An operator replays a letter, or ends its call for good."""
        inference, call = self.call(n, CallState.DEAD)
        if call.state is not CallState.DEAD or not call.waits:
            return
        self.ask(
            "UPDATE dead_letters SET state = $2, resolved_at = now(), envelope = NULL"
            " WHERE inference_id = $1",
            UUID(inference),
            "discarded" if discard else "replayed",
        )
        call.waits = False
        if discard:
            assert self.closed(inference, call) is SettleOutcome.SETTLED

    def closed(self, inference: str, call: Call) -> SettleOutcome:
        row = self.world.wait(
            self.db.fetchrow("SELECT * FROM inferences WHERE id = $1", UUID(inference))
        )
        assert row is not None
        item = closing_item(dict(row), {}, "expired", "deadline_exceeded")
        expected = self.model.settle(inference, call.attempt + 1, ZERO, self.today())
        assert self.result("settle_inferences", item) == expected
        return expected

    # -- after every step -----------------------------------------------------------------------

    @invariant()
    def the_books_are_the_model(self) -> None:
        tenant = UUID(self.model.purses[0].agent.tenant_id)
        broken = self.world.wait(compare(self.db, self.world.proofs, self.model, tenant))
        assert broken == []


async def two_agents(
    db: Connection, first: Any, second: Any, tenant_cap: Decimal | None
) -> list[Agent]:
    """Two agents of one tenant, without money."""
    agents = []
    for per_call, daily in (first, second):
        limits = [None if limit is None else f"{limit:f}" for limit in (per_call, daily)]
        agents.append(await new_agent(db, "0", *limits))
    one, other = agents
    moved = replace(other, tenant_id=one.tenant_id)
    for table, key in (("agents", moved.agent_id), ("accounts", moved.wallet_id)):
        await db.execute(
            f"UPDATE {table} SET tenant_id = $1 WHERE id = $2", UUID(one.tenant_id), UUID(str(key))
        )
    await db.execute("SELECT set_tenant_cap($1, $2)", UUID(one.tenant_id), tenant_cap)
    return [one, moved]


async def compare(
    db: Connection, proofs: Statement, model: BooksModel, tenant: UUID
) -> list[asyncpg.Record]:
    """Every wallet, call and transfer of the tenant is as the rules have it; what is unproved."""
    wallets = {row["id"]: row for row in await db.fetch(WALLETS, tenant)}
    for purse in model.purses:
        row, wallet = wallets[purse.agent.wallet_id], purse.wallet
        assert (row["balance"], row["held"]) == (wallet.balance, wallet.held)
        assert row["balance"] == model.folded(purse)
        assert (row["spent_today"], row["spent_day"]) == (wallet.spent_today, wallet.spent_day)
        assert wallet.available >= 0
    rows = {str(row["id"]): tuple(row)[1:] for row in await db.fetch(CALLS, tenant)}
    assert rows == {inference: call.figures() for inference, call in model.calls.items()}
    expected = sorted(figures(transfer) for transfer in model.transfers)
    assert sorted(map(tuple, await db.fetch(TRANSFERS, tenant))) == expected
    return await proofs.fetch(tenant, None)


def figures(transfer: Transfer) -> tuple[str, ...]:
    accounts = (str(transfer.debit_account), str(transfer.credit_account))
    of_call = str(transfer.inference_id or "")
    return (*accounts, f"{transfer.amount:.9f}", transfer.kind.value, of_call)


WALLETS = "SELECT * FROM accounts WHERE tenant_id = $1"
CALLS = """SELECT id, state, attempt, hold_usd, hold_state, settled_usd FROM inferences
            WHERE tenant_id = $1"""
TRANSFERS = """SELECT debit_account::text, credit_account::text, amount::text, kind,
                      coalesce(inference_id::text, '') FROM transfers WHERE tenant_id = $1"""


def test_the_books_are_the_rules(world: World) -> None:
    bound = type("Bound", (Machine,), {"world": world})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=(Phase.reuse, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
