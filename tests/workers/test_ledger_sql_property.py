"""The SQL functions and the pure rules give the same answers, alone and in a crowd."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.db import APP_ROLE, Connection, connect
from shared.domain.audit import draft
from shared.domain.ledger import (
    Account,
    AccountKind,
    Budget,
    Caps,
    CorrectionOutcome,
    OpenOutcome,
    Transfer,
    TransferKind,
    Wallet,
    admit,
    correct,
    settle,
)
from tests.workers.ledger_cases import (
    Agent,
    call,
    cap_tenant,
    chain_of,
    ending,
    hold,
    new_agent,
    results,
    wallet_of,
)

ZERO = Decimal(0)
TODAY = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date"
CROWD = 64

amounts = st.decimals("0.000000001", 3, places=9)
limits = st.none() | st.decimals("0.5", 8, places=3)
# which agent, and how much; which of the calls so far, and how much
opens = st.lists(st.tuples(st.integers(0, 1), amounts), min_size=1, max_size=5)
ends = st.lists(st.tuples(st.integers(0, 30), st.just(ZERO) | amounts), min_size=1, max_size=5)
steps = st.lists(
    st.tuples(st.just("open"), opens)
    | st.tuples(st.just("settle"), ends)
    | st.tuples(st.just("extend"), st.lists(st.tuples(st.integers(0, 30), amounts), max_size=2))
    | st.tuples(st.just("correct"), st.lists(st.tuples(st.integers(0, 30), amounts), max_size=3)),
    max_size=8,
)


@dataclass(slots=True)
class Model:
    """One agent as the pure rules see it; `holds` are its running calls.

    `moved` are its transfers, each with what was taken back of it; `cap` is the whole tenant's.
    """

    agent: Agent
    wallet: Wallet
    caps: Caps
    cap: Decimal | None
    holds: dict[str, Decimal] = field(default_factory=dict)
    moved: list[tuple[Transfer, Decimal]] = field(default_factory=list)


def budget_of(models: list[Model], today: date) -> Budget | None:
    if models[0].cap is None:
        return None
    spent = sum((model.wallet.spent_on(today) for model in models), ZERO)
    held = sum((model.wallet.held for model in models), ZERO)
    return Budget(models[0].cap, spent, held)


def plain(value: Decimal) -> str:
    return f"{value:f}"


async def opened(db: Connection, models: list[Model], batch: list[tuple[int, Decimal]]) -> None:
    items = [hold(models[which].agent, plain(amount)) for which, amount in batch]
    rows = await call(db, "open_inferences", *items)
    today = await db.fetchval(TODAY)
    # a batch goes from wallet to wallet, and within each in the order of its items
    told = zip(batch, items, rows, strict=True)
    for (which, amount), item, row in sorted(told, key=lambda t: models[t[0][0]].agent.wallet_id):
        model, budget = models[which], budget_of(models, today)
        expected = admit(model.wallet, amount, model.caps, today, budget=budget)
        model.wallet = expected.wallet
        assert (row["result"], row["cap"]) == (expected.outcome, expected.cap)
        assert (row["balance"], row["held"]) == (model.wallet.balance, model.wallet.held)
        assert row["spent_today"] == model.wallet.spent_on(today)
        if expected.outcome is OpenOutcome.TENANT_CAP:
            assert budget == Budget(row["cap"], row["tenant_spent"], row["tenant_held"])
        if expected.outcome is OpenOutcome.OPENED:
            model.holds[item["inference_id"]] = amount


async def settled(db: Connection, models: list[Model], batch: list[tuple[int, Decimal]]) -> None:
    running = [(model, inference) for model in models for inference in model.holds]
    chosen = {running[n % len(running)][1]: (running[n % len(running)][0], charge)
              for n, charge in batch if running}  # fmt: skip
    items = [ending(model.agent, key, plain(charge)) for key, (model, charge) in chosen.items()]
    rows = await call(db, "settle_inferences", *items)
    today: date = await db.fetchval(TODAY)
    for item, row in zip(items, rows, strict=True):
        model, charge = chosen[item["inference_id"]]
        expected = settle(model.wallet, model.holds.pop(item["inference_id"]), charge, today)
        model.wallet = expected.wallet
        assert (row["result"], row["charged"]) == ("SETTLED", expected.charged)
        assert row["balance"] == model.wallet.balance
        await note_usage(db, model, item["inference_id"])


async def note_usage(db: Connection, model: Model, inference: str) -> None:
    row = await db.fetchrow(
        "SELECT * FROM transfers WHERE inference_id = $1 AND kind = 'usage'", UUID(inference)
    )
    if row is not None:
        usage = Transfer(
            row["id"],
            row["debit_account"],
            row["credit_account"],
            row["amount"],
            TransferKind.USAGE,
            row["inference_id"],
        )
        model.moved.append((usage, ZERO))


async def corrected(db: Connection, models: list[Model], batch: list[tuple[int, Decimal]]) -> None:
    """Transfers are taken back in part, corrections among them."""
    for n, amount in batch:
        places = [(model, place) for model in models for place in range(len(model.moved))]
        if not places:
            return
        model, place = places[n % len(places)]
        original, before = model.moved[place]
        kind = AccountKind.WALLET
        if original.credit_account != model.agent.wallet_id:
            kind = AccountKind.PROVIDER_COST
        payer = Account(original.credit_account, kind, model.wallet.balance, model.wallet.held)
        expected = correct(uuid4(), original, before, amount, payer)
        row = await db.fetchrow(
            "SELECT * FROM correct_transfer($1, $2, $3)",
            uuid4() if expected.transfer is None else expected.transfer.id,
            original.id,
            amount,
        )
        assert row is not None
        assert (row["result"], row["remaining"]) == (expected.outcome, expected.remaining)
        if expected.outcome is CorrectionOutcome.CREATED and expected.transfer is not None:
            back = amount if expected.transfer.credit_account == model.agent.wallet_id else -amount
            model.wallet = replace(model.wallet, balance=model.wallet.balance + back)
            model.moved[place] = (original, before + amount)
            model.moved.append((expected.transfer, ZERO))
        assert row["balance"] == model.wallet.balance


async def extended(db: Connection, models: list[Model], batch: list[tuple[int, Decimal]]) -> None:
    running = [(model, inference) for model in models for inference in model.holds]
    for n, extra in batch if running else []:
        model, inference = running[n % len(running)]
        answer = await db.fetchval("SELECT extend_hold($1, 1, $2)", UUID(inference), extra)
        held = model.holds[inference]
        today = await db.fetchval(TODAY)
        budget = budget_of(models, today)
        expected = admit(model.wallet, extra, model.caps, today, held, budget)
        model.wallet = expected.wallet
        if expected.outcome is OpenOutcome.OPENED:
            assert answer == "EXTENDED"
            model.holds[inference] = held + extra
        else:
            assert answer == expected.outcome


STEPS = {"open": opened, "settle": settled, "extend": extended, "correct": corrected}


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    limits=st.lists(st.tuples(limits, limits), min_size=2, max_size=2), whole=limits, story=steps
)
async def test_the_database_and_the_rule_agree(
    ledger_db: Connection,
    limits: list[tuple[Decimal | None, Decimal | None]],
    whole: Decimal | None,
    story: list[tuple[str, list[tuple[int, Decimal]]]],
) -> None:
    models: list[Model] = []
    for per_call, daily in limits:
        told = [None if limit is None else plain(limit) for limit in (per_call, daily)]
        first = models[0].agent if models else None
        agent = await new_agent(ledger_db, "6", told[0], told[1], tenant_of=first)
        models.append(Model(agent, Wallet(Decimal(6)), Caps(per_call, daily), whole))
    await cap_tenant(ledger_db, models[0].agent, None if whole is None else plain(whole))
    for step, batch in story:
        await STEPS[step](ledger_db, models, batch)
    for model in models:
        row = await wallet_of(ledger_db, model.agent)
        assert (row["balance"], row["held"]) == (model.wallet.balance, model.wallet.held)


# -- a crowd ------------------------------------------------------------------------------------


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(CROWD):
            connection = await connect(url, APP_ROLE, "test")
            stack.push_async_callback(connection.close)
            connections.append(connection)
        yield connections


@pytest.mark.parametrize(
    ("funds", "daily", "admitted", "refusal"),
    [("40", None, 40, "INSUFFICIENT_FUNDS"), ("100", "30", 30, "DAILY_CAP")],
)
async def test_a_crowd_never_passes_the_balance_or_the_cap(
    database_url: str,
    ledger_db: Connection,
    funds: str,
    daily: str | None,
    admitted: int,
    refusal: str,
) -> None:
    """64 connections ask for 1 USD each, at once: exactly as many get it as there is room for."""
    agent = await new_agent(ledger_db, funds, daily=daily)
    items = [hold(agent, "1") for _ in range(CROWD)]
    async with crowd(database_url) as connections:
        answers = await asyncio.gather(
            *(
                results(connection, "open_inferences", item)
                for connection, item in zip(connections, items, strict=True)
            )
        )
    assert answers.count(["OPENED"]) == admitted
    assert answers.count([refusal]) == CROWD - admitted
    assert (await wallet_of(ledger_db, agent))["held"] == admitted
    chain = await chain_of(ledger_db, agent)
    assert (chain.valid, chain.event_count) == (True, admitted)


async def test_a_crowd_of_lives_ends_in_balanced_books(
    database_url: str, ledger_db: Connection
) -> None:
    """Opens, extensions and settlements of few agents in mixed batches: no deadlock, no leak."""
    agents = [await new_agent(ledger_db, "3", daily="5") for _ in range(5)]

    async def life(connection: Connection, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(4):
            asked = [(agent, hold(agent, "0.2")) for agent in dice.sample(agents, 3)]
            told = await results(connection, "open_inferences", *(item for _, item in asked))
            mine = [
                (agent, item["inference_id"])
                for (agent, item), result in zip(asked, told, strict=True)
                if result == "OPENED"
            ]
            dice.shuffle(mine)
            for _, inference in mine[:1]:
                await connection.fetchval("SELECT extend_hold($1, 1, 0.1)", UUID(inference))
            charges = [
                ending(agent, inference, dice.choice(["0", "0.05", "0.35"]))
                for agent, inference in mine
            ]
            answers = await results(connection, "settle_inferences", *charges)
            assert set(answers) <= {"SETTLED"}

    async with crowd(database_url) as connections:
        await asyncio.gather(*(life(each, seed) for seed, each in enumerate(connections)))
    for agent in agents:
        row = await wallet_of(ledger_db, agent)
        assert row["held"] == 0
        assert row["balance"] == 3 - row["spent_today"]
        assert row["spent_today"] <= 5
        assert (await chain_of(ledger_db, agent)).valid


async def test_settling_one_call_from_everywhere_settles_it_once(
    database_url: str, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    done = ending(agent, item["inference_id"], "0.5")
    async with crowd(database_url) as connections:
        answers = await asyncio.gather(
            *(results(each, "settle_inferences", done) for each in connections)
        )
    assert answers.count(["SETTLED"]) == 1
    assert answers.count(["EXISTS"]) == CROWD - 1
    assert (await wallet_of(ledger_db, agent))["balance"] == Decimal("9.5")


async def test_a_crowd_of_witnesses_writes_one_chain(
    database_url: str, ledger_db: Connection
) -> None:
    """Events outside of calls, from the very first one on, are not serialised by a wallet."""
    agents = [await new_agent(ledger_db) for _ in range(3)]

    async def witness(connection: Connection, n: int) -> None:
        batch = [
            {
                "agent_id": agent.agent_id,
                "tenant_id": agent.tenant_id,
                "event": draft("key.revoked", agent.agent_id, {"witness": n}).wire(),
            }
            for agent in random.Random(n).sample(agents, 3)
        ]
        await connection.execute("SELECT append_audit($1::jsonb)", orjson.dumps(batch).decode())

    async with crowd(database_url) as connections:
        await asyncio.gather(*(witness(each, n) for n, each in enumerate(connections)))
    for agent in agents:
        chain = await chain_of(ledger_db, agent)
        assert (chain.valid, chain.event_count) == (True, CROWD)
