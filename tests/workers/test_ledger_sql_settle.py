"""Settlements as the database makes them: what is left behind, fences, repetition."""

from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest

from shared.db import Connection
from shared.domain.ledger import (
    LOSSES_ACCOUNT,
    PROVIDER_COST_ACCOUNT,
)
from tests.workers.ledger_cases import (
    call,
    chain_of,
    ending,
    hold,
    new_agent,
    outcome,
    results,
    wallet_of,
    written,
)


async def test_a_settlement_leaves_everything_that_a_call_must_leave(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="10")
    item = hold(agent, "2")
    inference = item["inference_id"]
    await call(ledger_db, "open_inferences", item)
    before = await written(ledger_db)
    (row,) = await call(ledger_db, "settle_inferences", ending(agent, inference, "0.75"))
    assert (row["result"], row["charged"], row["balance"]) == (
        "SETTLED",
        Decimal("0.75"),
        Decimal("9.25"),
    )
    after = await written(ledger_db)
    assert {name: after[name] - before[name] for name in after} == {
        "inferences": 0,
        "audit_events": 2,
        "transfers": 1,
        "routing_outcomes": 1,
        "receipts": 1,
    }
    wallet = await wallet_of(ledger_db, agent)
    assert (wallet["balance"], wallet["held"], wallet["spent_today"]) == (
        Decimal("9.25"),
        0,
        Decimal("0.75"),
    )
    moved = await ledger_db.fetchrow(
        "SELECT * FROM transfers WHERE inference_id = $1", UUID(inference)
    )
    assert moved is not None
    assert (moved["debit_account"], moved["credit_account"]) == (
        agent.wallet_id,
        PROVIDER_COST_ACCOUNT,
    )
    assert (moved["kind"], moved["amount"]) == ("usage", Decimal("0.75"))
    assert moved["debit_balance_after"] == Decimal("9.25")
    stored = await ledger_db.fetchrow("SELECT * FROM inferences WHERE id = $1", UUID(inference))
    assert stored is not None
    assert (stored["state"], stored["hold_state"]) == ("settled", "posted")
    captured = await ledger_db.fetchrow(
        "SELECT * FROM routing_outcomes WHERE inference_id = $1", UUID(inference)
    )
    assert captured is not None
    assert (captured["outcome_status"], captured["cost_actual"]) == ("succeeded", Decimal("0.75"))
    assert str(captured["agent_id"]) == agent.agent_id
    assert (await chain_of(ledger_db, agent)).valid


async def test_settling_again_changes_nothing_and_says_who_did(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    await call(ledger_db, "open_inferences", item)
    done = ending(agent, item["inference_id"], "1", attempt=3)
    late = ending(agent, item["inference_id"], "2", attempt=9)
    assert await results(ledger_db, "settle_inferences", done) == ["SETTLED"]
    before, wallet = await written(ledger_db), await wallet_of(ledger_db, agent)
    for repeated in (done, late):
        (row,) = await call(ledger_db, "settle_inferences", repeated)
        assert (row["result"], row["attempt"], row["charged"]) == ("EXISTS", 3, 1)
    assert await written(ledger_db) == before
    assert await wallet_of(ledger_db, agent) == wallet


async def test_the_same_call_twice_in_one_batch_is_settled_once(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    await call(ledger_db, "open_inferences", item)
    done = ending(agent, item["inference_id"], "1")
    await call(ledger_db, "settle_inferences", done, done)
    assert (await wallet_of(ledger_db, agent))["balance"] == 9
    assert (await chain_of(ledger_db, agent)).event_count == 3


async def test_a_charge_of_nothing_voids_the_hold(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    await call(ledger_db, "open_inferences", item)
    failed = ending(
        agent, item["inference_id"], "0", outcome=outcome("0", "failed_provider"), receipt=None
    )
    assert await results(ledger_db, "settle_inferences", failed) == ["SETTLED"]
    assert (await wallet_of(ledger_db, agent))["balance"] == 10
    stored = await ledger_db.fetchval(
        "SELECT hold_state FROM inferences WHERE id = $1", UUID(item["inference_id"])
    )
    assert stored == "voided"


async def test_a_charge_over_the_hold_takes_the_hold_and_writes_off_the_rest(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db, funds="3")
    item, other = hold(agent, "1"), hold(agent, "0.5")
    await call(ledger_db, "open_inferences", item, other)
    (row,) = await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "4"))
    assert (row["charged"], row["balance"]) == (Decimal(1), Decimal(2))
    moved = await ledger_db.fetch(
        "SELECT debit_account, amount FROM transfers WHERE inference_id = $1 ORDER BY kind",
        UUID(item["inference_id"]),
    )
    assert [tuple(row) for row in moved] == [
        (agent.wallet_id, Decimal(1)),
        (LOSSES_ACCOUNT, Decimal(3)),
    ]
    # the other call's hold was not touched
    assert await results(
        ledger_db, "settle_inferences", ending(agent, other["inference_id"], "0.5")
    ) == ["SETTLED"]
    assert (await wallet_of(ledger_db, agent))["balance"] == Decimal("1.5")


async def test_a_refused_call_leaves_its_capture_and_no_money(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    inference = str(uuid4())
    refused = ending(
        agent, inference, "0", refused=True, outcome=outcome("0", "rejected_floor"), receipt=None
    )
    assert await results(ledger_db, "settle_inferences", refused) == ["SETTLED"]
    assert await results(ledger_db, "settle_inferences", refused) == ["EXISTS"]
    stored = await ledger_db.fetchrow("SELECT * FROM inferences WHERE id = $1", UUID(inference))
    assert stored is not None
    assert (stored["state"], stored["hold_usd"], stored["hold_state"]) == ("refused", 0, None)
    assert (await wallet_of(ledger_db, agent))["balance"] == 10
    late = hold(agent, "1", inference)
    assert await results(ledger_db, "open_inferences", late) == ["SETTLED"]


async def test_a_refusal_after_an_earlier_attempt_gives_its_hold_back(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    await call(ledger_db, "open_inferences", item)
    refused = ending(
        agent,
        item["inference_id"],
        "0",
        attempt=2,
        refused=True,
        outcome=outcome("0", "rejected_not_enrolled"),
        receipt=None,
    )
    assert await results(ledger_db, "settle_inferences", refused) == ["SETTLED"]
    wallet = await wallet_of(ledger_db, agent)
    assert (wallet["balance"], wallet["held"]) == (10, 0)


async def test_what_was_never_opened_is_unknown(ledger_db: Connection) -> None:
    agent, other = await new_agent(ledger_db), await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    before = await written(ledger_db)
    answers = await results(ledger_db, "settle_inferences", ending(agent, str(uuid4()), "1"))
    stolen = await results(ledger_db, "settle_inferences", ending(other, item["inference_id"], "1"))
    assert answers + stolen == ["UNKNOWN", "UNKNOWN"]
    assert await written(ledger_db) == before


async def test_one_batch_settles_many_agents_with_every_result(ledger_db: Connection) -> None:
    one, two = await new_agent(ledger_db), await new_agent(ledger_db, funds="5")
    items = [
        hold(one, "1"),
        hold(two, "2", routed=False),
        hold(one, "1"),
        hold(two, "2"),
        hold(two, "0.5"),
    ]
    await call(ledger_db, "open_inferences", *items)
    ids = [item["inference_id"] for item in items]
    await call(ledger_db, "open_inferences", {**items[3], "attempt": 2})
    await call(ledger_db, "settle_inferences", ending(one, ids[2], "0.5"))
    answers = await results(
        ledger_db,
        "settle_inferences",
        ending(one, ids[0], "0.25"),
        ending(two, ids[1], "1.5", routed=False),
        ending(one, ids[2], "0.5"),
        ending(two, ids[3], "2"),
        ending(two, str(uuid4()), "2"),
        ending(two, ids[4], "0"),
        ending(one, str(uuid4()), "0", refused=True),
    )
    assert answers == ["SETTLED", "SETTLED", "EXISTS", "FENCED", "UNKNOWN", "SETTLED", "SETTLED"]
    wallets = [await wallet_of(ledger_db, agent) for agent in (one, two)]
    assert [(row["balance"], row["held"]) for row in wallets] == [
        (Decimal("9.25"), 0),
        (Decimal("3.5"), 2),
    ]
    for agent in (one, two):
        assert (await chain_of(ledger_db, agent)).valid
    await call(ledger_db, "settle_inferences", ending(two, ids[3], "2", attempt=2))


@pytest.mark.parametrize(
    "fault",
    [
        {"charge": "-1"},
        {"outcome": None},
        {"routed": False},
        {"outcome": {**outcome("1"), "outcome_status": "fine"}},
    ],
    ids=["negative", "uncaptured", "captured passthrough", "bad status"],
)
async def test_a_settlement_that_breaks_a_promise_changes_nothing(
    ledger_db: Connection, fault: dict[str, object]
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    before = await written(ledger_db)
    bad = {**ending(agent, item["inference_id"], "1"), **fault}
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await call(ledger_db, "settle_inferences", bad)
    assert await written(ledger_db) == before
    assert (await wallet_of(ledger_db, agent))["held"] == 1
    await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "1"))
