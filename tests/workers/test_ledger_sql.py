"""Holds as the database makes and extends them: the rules, batches, fences, repetition."""

from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest

from shared.db import Connection
from tests.workers.ledger_cases import (
    Agent,
    call,
    chain_of,
    ending,
    hold,
    new_agent,
    results,
    wallet_of,
    written,
)


async def extend(ledger_db: Connection, inference: str, attempt: int, extra: str) -> str:
    answer: str = await ledger_db.fetchval(
        "SELECT extend_hold($1, $2, $3)", UUID(inference), attempt, Decimal(extra)
    )
    return answer


# -- open ---------------------------------------------------------------------------------------


async def test_a_hold_takes_from_what_is_available_and_writes_its_event(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db, funds="10")
    before = await written(ledger_db)
    item = hold(agent, "3.5")
    (row,) = await call(ledger_db, "open_inferences", item)
    assert (row["result"], row["attempt"], row["cap"]) == ("OPENED", 1, None)
    assert (row["balance"], row["held"], row["spent_today"]) == (10, Decimal("3.5"), 0)
    after = await written(ledger_db)
    assert {name: after[name] - before[name] for name in after} == {
        "inferences": 1,
        "audit_events": 1,
        "transfers": 0,
        "routing_outcomes": 0,
        "receipts": 0,
    }
    stored = await ledger_db.fetchrow(
        "SELECT * FROM inferences WHERE id = $1", UUID(item["inference_id"])
    )
    assert stored is not None
    assert (stored["state"], stored["hold_state"]) == ("held", "pending")
    assert stored["hold_usd"] == Decimal("3.5")
    assert (stored["hold_expires_at"] - stored["created_at"]).total_seconds() == 60


@pytest.mark.parametrize(
    ("funds", "per_call", "daily", "amount", "result", "cap"),
    [
        ("10", "1", "1", "2", "PER_CALL_CAP", 1),
        ("0", None, "1", "2", "DAILY_CAP", 1),
        ("0", "5", "5", "2", "INSUFFICIENT_FUNDS", None),
        ("1.999999999", None, None, "2", "INSUFFICIENT_FUNDS", None),
    ],
)
async def test_a_refusal_says_why_and_writes_nothing(
    ledger_db: Connection,
    funds: str,
    per_call: str | None,
    daily: str | None,
    amount: str,
    result: str,
    cap: int | None,
) -> None:
    agent = await new_agent(ledger_db, funds, per_call, daily)
    before = await written(ledger_db)
    (row,) = await call(ledger_db, "open_inferences", hold(agent, amount))
    assert (row["result"], row["cap"]) == (result, cap)
    assert (row["balance"], row["held"]) == (Decimal(funds), 0)
    assert await written(ledger_db) == before


async def test_exactly_the_money_and_exactly_the_caps_are_allowed(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="2", per_call="2", daily="2")
    assert await results(ledger_db, "open_inferences", hold(agent, "2")) == ["OPENED"]


@pytest.mark.parametrize("fault", ["unknown", "inactive", "other tenant"])
async def test_only_an_active_agent_of_the_tenant_may_hold(
    ledger_db: Connection, fault: str
) -> None:
    agent = await new_agent(ledger_db)
    changes = {}
    if fault == "unknown":
        changes = {"agent_id": str(uuid4())}
    elif fault == "other tenant":
        changes = {"tenant_id": (await new_agent(ledger_db)).tenant_id}
    else:
        await ledger_db.execute(
            "UPDATE agents SET status = 'suspended' WHERE id = $1", UUID(agent.agent_id)
        )
    assert await results(ledger_db, "open_inferences", hold(agent, "1", **changes)) == [
        "AGENT_UNKNOWN"
    ]
    assert (await wallet_of(ledger_db, agent))["held"] == 0


async def test_items_of_one_batch_see_what_the_items_before_them_took(
    ledger_db: Connection,
) -> None:
    """Three agents, mixed up, with every result but one in one batch."""
    rich, poor, capped = (
        await new_agent(ledger_db, funds="10"),
        await new_agent(ledger_db, funds="1"),
        await new_agent(ledger_db, funds="10", per_call="3", daily="4"),
    )
    running = hold(rich, "1")
    await call(ledger_db, "open_inferences", running)
    answers = await results(
        ledger_db,
        "open_inferences",
        hold(rich, "6"),
        hold(poor, "0.6"),
        hold(capped, "3"),
        hold(rich, "4"),  # 10 - 1 - 6 = 3 are left
        hold(poor, "0.6"),
        hold(capped, "3.1"),
        hold(capped, "2"),  # 3 + 2 > 4
        hold(capped, "1"),
        {**running, "attempt": 2},
        hold(rich, "3"),
        hold(poor, "0.4"),
        hold(Agent(rich.tenant_id, poor.agent_id, poor.wallet_id), "0.1"),
    )
    assert answers == [
        "OPENED",
        "OPENED",
        "OPENED",
        "INSUFFICIENT_FUNDS",
        "INSUFFICIENT_FUNDS",
        "PER_CALL_CAP",
        "DAILY_CAP",
        "OPENED",
        "EXISTS",
        "OPENED",
        "OPENED",
        "AGENT_UNKNOWN",
    ]
    held = [(await wallet_of(ledger_db, agent))["held"] for agent in (rich, poor, capped)]
    assert held == [10, 1, 4]
    assert (await chain_of(ledger_db, rich)).event_count == 3


async def test_a_second_attempt_keeps_the_hold_and_fences_the_first(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    inference = item["inference_id"]
    await call(ledger_db, "open_inferences", item)
    (row,) = await call(ledger_db, "open_inferences", {**item, "attempt": 2, "amount": "5"})
    assert (row["result"], row["attempt"], row["held"]) == ("EXISTS", 2, 2)
    (late,) = await call(ledger_db, "open_inferences", item)
    assert (late["result"], late["attempt"]) == ("EXISTS", 2)

    assert await extend(ledger_db, inference, 1, "1") == "FENCED"
    assert await results(ledger_db, "settle_inferences", ending(agent, inference, "1")) == [
        "FENCED"
    ]
    assert (await wallet_of(ledger_db, agent))["held"] == 2
    mine = ending(agent, inference, "1", attempt=2)
    assert await results(ledger_db, "settle_inferences", mine) == ["SETTLED"]
    (over,) = await call(ledger_db, "open_inferences", {**item, "attempt": 3})
    assert over["result"] == "SETTLED"
    assert (await wallet_of(ledger_db, agent))["held"] == 0


async def test_the_same_call_twice_in_one_batch_holds_once(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    await call(ledger_db, "open_inferences", item, item)
    assert (await wallet_of(ledger_db, agent))["held"] == 2


# -- extend -------------------------------------------------------------------------------------


async def test_a_hold_grows_within_funds_and_caps(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="10", per_call="4", daily="5")
    item = hold(agent, "1")
    other = hold(agent, "1.5")
    await call(ledger_db, "open_inferences", item, other)
    assert await extend(ledger_db, item["inference_id"], 1, "3.1") == "PER_CALL_CAP"
    assert await extend(ledger_db, item["inference_id"], 1, "2.6") == "DAILY_CAP"
    assert await extend(ledger_db, item["inference_id"], 1, "2.5") == "EXTENDED"
    assert (await wallet_of(ledger_db, agent))["held"] == 5
    stored = await ledger_db.fetchval(
        "SELECT hold_usd FROM inferences WHERE id = $1", UUID(item["inference_id"])
    )
    assert stored == Decimal("3.5")


async def test_a_hold_never_grows_over_the_balance(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="2")
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    assert await extend(ledger_db, item["inference_id"], 1, "1.000000001") == "INSUFFICIENT_FUNDS"
    assert await extend(ledger_db, item["inference_id"], 1, "1") == "EXTENDED"


async def test_nobody_extends_what_is_over_or_never_was(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "1"))
    assert await extend(ledger_db, item["inference_id"], 1, "1") == "FENCED"
    assert await extend(ledger_db, str(uuid4()), 1, "1") == "FENCED"
    with pytest.raises(asyncpg.CheckViolationError):
        await extend(ledger_db, item["inference_id"], 1, "-1")
