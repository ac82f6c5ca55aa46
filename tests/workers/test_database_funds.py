"""Grants, top-ups and what becomes of a grant that is over; audit events outside a call."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from ainfera import verify_chain as sdk_verify_chain
from ainfera.audit import AuditEvent as SdkEvent

from shared.db import Connection
from shared.domain.audit import draft
from shared.domain.ledger import GRANTS_ACCOUNT, TOPUPS_ACCOUNT
from tests.workers.ledger_cases import Agent, call, chain_of, ending, hold, new_agent, wallet_of


async def move(
    db: Connection, transfer: UUID, debit: UUID, credit: UUID, amount: str, kind: str
) -> tuple[str, Any]:
    row = await db.fetchrow(
        "SELECT * FROM transfer_funds($1, $2, $3, $4, $5, 'why')",
        transfer,
        debit,
        credit,
        Decimal(amount),
        kind,
    )
    assert row is not None
    return row["result"], row["balance"]


async def granted(db: Connection, amount: str, calls: int, ends: datetime) -> Agent:
    agent = await new_agent(db, funds="0")
    await move(db, uuid4(), GRANTS_ACCOUNT, agent.wallet_id, amount, "grant")
    await db.execute(
        "UPDATE accounts SET grant_inferences_left = $2, grant_expires_at = $3 WHERE id = $1",
        agent.wallet_id,
        calls,
        ends,
    )
    return agent


async def spend(db: Connection, agent: Agent, charge: str) -> None:
    item = hold(agent, charge)
    await call(db, "open_inferences", item)
    await call(db, "settle_inferences", ending(agent, item["inference_id"], charge))


async def returned(db: Connection, agent: Agent) -> list[Decimal]:
    rows = await db.fetch("SELECT * FROM expire_grants()")
    return [row["returned"] for row in rows if str(row["agent_id"]) == agent.agent_id]


FUTURE = datetime.now(UTC) + timedelta(days=30)
PAST = datetime.now(UTC) - timedelta(days=1)


async def test_money_in_is_one_transfer_however_often_it_is_told(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="0")
    one, two = uuid4(), agent.wallet_id
    assert await move(ledger_db, one, TOPUPS_ACCOUNT, two, "2.5", "topup") == ("CREATED", 2.5)
    assert await move(ledger_db, one, TOPUPS_ACCOUNT, two, "2.5", "topup") == ("EXISTS", 2.5)
    other = await move(ledger_db, one, TOPUPS_ACCOUNT, two, "9", "topup")
    assert other == ("EXISTS_WITH_DIFFERENT_AMOUNT", 2.5)
    entry = await ledger_db.fetchrow("SELECT * FROM ledger_entries WHERE account_id = $1", two)
    assert entry is not None
    assert (entry["amount"], entry["balance_after"], entry["memo"]) == (2.5, 2.5, "why")


async def test_held_money_is_not_moved_away(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="3")
    await call(ledger_db, "open_inferences", hold(agent, "2"))
    back = (agent.wallet_id, GRANTS_ACCOUNT)
    assert await move(ledger_db, uuid4(), *back, "1.1", "grant_return") == ("INSUFFICIENT_FUNDS", 3)
    assert await move(ledger_db, uuid4(), *back, "1", "grant_return") == ("CREATED", 2)


async def test_an_unknown_account_is_a_value_and_a_bad_amount_an_error(
    ledger_db: Connection,
) -> None:
    answer, _ = await move(ledger_db, uuid4(), TOPUPS_ACCOUNT, uuid4(), "1", "topup")
    assert answer == "ACCOUNT_UNKNOWN"
    agent = await new_agent(ledger_db)
    for amount in ("0", "-1"):
        with pytest.raises(asyncpg.CheckViolationError):
            await move(ledger_db, uuid4(), TOPUPS_ACCOUNT, agent.wallet_id, amount, "topup")


async def test_a_running_grant_is_left_alone(ledger_db: Connection) -> None:
    agent = await granted(ledger_db, "5", 100, FUTURE)
    assert await returned(ledger_db, agent) == []
    assert (await wallet_of(ledger_db, agent))["balance"] == 5


async def test_a_grant_past_its_day_gives_back_what_is_left_of_it_and_no_more(
    ledger_db: Connection,
) -> None:
    agent = await granted(ledger_db, "5", 100, PAST)
    await move(ledger_db, uuid4(), TOPUPS_ACCOUNT, agent.wallet_id, "10", "topup")
    await spend(ledger_db, agent, "2")
    assert await returned(ledger_db, agent) == [3]
    wallet = await wallet_of(ledger_db, agent)
    assert (wallet["balance"], wallet["grant_inferences_left"]) == (10, 0)
    assert await returned(ledger_db, agent) == []


async def test_a_grant_of_so_many_calls_ends_with_the_last_of_them(ledger_db: Connection) -> None:
    agent = await granted(ledger_db, "5", 2, FUTURE)
    await spend(ledger_db, agent, "1")
    assert await returned(ledger_db, agent) == []
    await spend(ledger_db, agent, "1")
    assert await returned(ledger_db, agent) == [3]
    assert (await wallet_of(ledger_db, agent))["balance"] == 0


async def test_what_a_running_call_holds_is_taken_back_when_it_has_ended(
    ledger_db: Connection,
) -> None:
    agent = await granted(ledger_db, "5", 100, PAST)
    item = hold(agent, "4")
    await call(ledger_db, "open_inferences", item)
    assert await returned(ledger_db, agent) == [1]
    assert await returned(ledger_db, agent) == []
    await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "1"))
    assert await returned(ledger_db, agent) == [3]
    assert (await wallet_of(ledger_db, agent))["balance"] == 0


async def test_a_grant_that_was_spent_gives_nothing_back(ledger_db: Connection) -> None:
    agent = await granted(ledger_db, "1", 100, PAST)
    await spend(ledger_db, agent, "1")
    await move(ledger_db, uuid4(), TOPUPS_ACCOUNT, agent.wallet_id, "4", "topup")
    await spend(ledger_db, agent, "1")
    assert await returned(ledger_db, agent) == []
    assert (await wallet_of(ledger_db, agent))["grant_expires_at"] is None


async def test_events_outside_a_call_join_the_same_chain(ledger_db: Connection) -> None:
    """Several of several agents in one call, in order; the SDK verifies what was stored."""
    one, two = await new_agent(ledger_db), await new_agent(ledger_db)
    batch = [
        {
            "agent_id": agent.agent_id,
            "tenant_id": agent.tenant_id,
            "event": draft(kind, agent.agent_id, {"zebra": n, "a": 'ü "quoted" \\ \u2028'}).wire(),
        }
        for n, (agent, kind) in enumerate(
            [(one, "agent.registered"), (two, "agent.registered"), (one, "spend_policy.changed")]
        )
    ]
    await ledger_db.execute("SELECT append_audit($1::jsonb)", orjson.dumps(batch).decode())
    await spend(ledger_db, one, "1")
    for agent, count in ((one, 5), (two, 1)):
        chain = await chain_of(ledger_db, agent)
        assert (chain.valid, chain.event_count) == (True, count)
    rows = await ledger_db.fetch(
        "SELECT * FROM audit_events WHERE agent_id = $1 ORDER BY seq", UUID(one.agent_id)
    )
    told = [
        SdkEvent.model_validate(
            {
                **row,
                "id": str(row["id"]),
                "agent_id": str(row["agent_id"]),
                "payload": orjson.loads(row["payload"]),
            }
        )
        for row in rows
    ]
    assert sdk_verify_chain(told)
    assert [event.payload["created_at"] for event in told] == [
        event.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") for event in told
    ]
    assert [event.event_type for event in told][:2] == ["agent.registered", "spend_policy.changed"]


async def test_an_empty_batch_appends_nothing(ledger_db: Connection) -> None:
    before = await ledger_db.fetchval("SELECT count(*) FROM audit_events")
    await ledger_db.execute("SELECT append_audit('[]')")
    assert await ledger_db.fetchval("SELECT count(*) FROM audit_events") == before
