"""A tenant's cap over all of its agents; leases; holds as finance sees them; whom a call is for."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from shared.db import APP_ROLE, Connection, connect
from tests.workers.ledger_cases import (
    call,
    cap_tenant,
    chain_of,
    ending,
    hold,
    new_agent,
    results,
    wallet_of,
)

CROWD = 24


async def test_all_agents_of_a_tenant_have_one_cap(ledger_db: Connection) -> None:
    one = await new_agent(ledger_db, daily="4")
    two = await new_agent(ledger_db, tenant_of=one)
    free = await new_agent(ledger_db)
    before = await cap_tenant(ledger_db, one, "5")
    assert (before["before"], before["cap"], before["agents"]) == (None, 5, 2)
    item, other = hold(one, "3"), hold(two, "2")
    answers = await results(ledger_db, "open_inferences", item, hold(free, "9"), hold(one, "1.1"))
    assert answers == ["OPENED", "OPENED", "DAILY_CAP"]
    (row,) = await call(ledger_db, "open_inferences", hold(two, "2.1"))
    assert (row["result"], row["cap"]) == ("TENANT_CAP", 5)
    assert (row["tenant_spent"], row["tenant_held"], row["held"]) == (0, 3, 0)
    assert await results(ledger_db, "open_inferences", other) == ["OPENED"]

    # what was held and is not spent is free again, for whichever of them
    await call(ledger_db, "settle_inferences", ending(one, item["inference_id"], "1"))
    (row,) = await call(ledger_db, "open_inferences", hold(two, "2.1"))
    assert (row["result"], row["tenant_spent"], row["tenant_held"]) == ("TENANT_CAP", 1, 2)
    grown = await enlarge(ledger_db, other["inference_id"], "2.1")
    assert (grown["result"], grown["cap"], grown["tenant_held"]) == ("TENANT_CAP", 5, 2)
    assert (await enlarge(ledger_db, other["inference_id"], "2"))["result"] == "EXTENDED"

    lifted = await cap_tenant(ledger_db, one, None)
    assert (lifted["before"], lifted["spent"], lifted["held"]) == (5, 1, 4)
    assert await results(ledger_db, "open_inferences", hold(two, "3")) == ["OPENED"]


async def enlarge(
    db: Connection, inference: str, extra: str, ttl_s: int | None = None, attempt: int = 1
) -> asyncpg.Record:
    row = await db.fetchrow(
        "SELECT * FROM enlarge_hold($1, $2, $3, $4)",
        UUID(inference),
        attempt,
        Decimal(extra),
        ttl_s,
    )
    assert row is not None
    return row


async def test_yesterdays_spending_is_not_todays(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    await ledger_db.execute(
        """UPDATE accounts SET spent_today = 5,
                  spent_day = (clock_timestamp() AT TIME ZONE 'UTC')::date - 1 WHERE id = $1""",
        agent.wallet_id,
    )
    await cap_tenant(ledger_db, agent, "5")
    assert await results(ledger_db, "open_inferences", hold(agent, "5")) == ["OPENED"]


async def test_an_unknown_tenant_is_not_capped(ledger_db: Connection) -> None:
    assert await ledger_db.fetchrow("SELECT * FROM set_tenant_cap($1, 5)", uuid4()) is None
    agent = await new_agent(ledger_db)
    with pytest.raises(asyncpg.CheckViolationError):
        await cap_tenant(ledger_db, agent, "-1")


async def test_a_crowd_of_agents_never_passes_the_tenants_cap(
    database_url: str, ledger_db: Connection
) -> None:
    """Calls of many agents of one tenant, held and enlarged at once, and the cap set meanwhile."""
    first = await new_agent(ledger_db)
    agents = [first, *[await new_agent(ledger_db, tenant_of=first) for _ in range(7)]]

    answers: Counter[str] = Counter()

    async def live(connection: Connection, n: int) -> None:
        for turn in range(4):
            agent, other = agents[(n + turn) % 8], agents[(n * 3 + turn) % 8]
            items = {agent.agent_id: hold(agent, "0.5"), other.agent_id: hold(other, "0.5")}
            told = await results(connection, "open_inferences", *items.values())
            answers.update(told)
            mine = [i for i, r in zip(items.values(), told, strict=True) if r == "OPENED"]
            for item in mine:
                await enlarge(connection, item["inference_id"], "0.25")
            done = [
                ending(next(a for a in agents if a.agent_id == i["agent_id"]), i["inference_id"], c)
                for i, c in zip(mine, ("0.4", "0"), strict=False)
            ]
            if done:
                assert set(await results(connection, "settle_inferences", *done)) == {"SETTLED"}

    async def cap(connection: Connection) -> None:
        await cap_tenant(connection, first, "9")

    async with AsyncExitStack() as stack:
        crowd = []
        for _ in range(CROWD + 1):
            crowd.append(await connect(database_url, APP_ROLE, "test"))
            stack.push_async_callback(crowd[-1].close)
        await cap_tenant(ledger_db, first, "8")
        await asyncio.gather(*(live(each, n) for n, each in enumerate(crowd[1:])), cap(crowd[0]))
    total: Any = await ledger_db.fetchrow(
        "SELECT sum(spent_today) AS spent, sum(held) AS held FROM accounts WHERE tenant_id = $1",
        UUID(first.tenant_id),
    )
    assert (total["held"], total["spent"] <= 9) == (0, True)
    assert answers.keys() == {"OPENED", "TENANT_CAP"}
    for agent in agents:
        assert (await chain_of(ledger_db, agent)).valid


async def waits(db: Connection, other: Connection) -> bool:
    """Whether the other connection waits for a lock."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"
    return bool(await db.fetchval(waiting, other.get_server_pid()))


async def test_who_holds_money_while_a_cap_is_set_is_counted(
    database_url: str, ledger_db: Connection
) -> None:
    """A hold that has not been committed yet keeps the cap waiting, and is seen by it then."""
    agent = await new_agent(ledger_db)
    holding, setting = [await connect(database_url, APP_ROLE, "test") for _ in range(2)]
    try:
        async with holding.transaction():
            await call(holding, "open_inferences", hold(agent, "6"))
            capping = asyncio.create_task(cap_tenant(setting, agent, "5"))
            async with asyncio.timeout(20):
                while not (await waits(ledger_db, setting) or capping.done()):
                    await asyncio.sleep(0.01)
        assert (await capping)["held"] == 6
    finally:
        await holding.close()
        await setting.close()
    assert await results(ledger_db, "open_inferences", hold(agent, "0.1")) == ["TENANT_CAP"]


@pytest.mark.parametrize("kind", ["open", "enlarge"])
async def test_agents_of_a_capped_tenant_see_what_the_others_have_just_taken(
    database_url: str, ledger_db: Connection, kind: str
) -> None:
    """The second one waits until the first has committed, and is counted after it."""
    one = await new_agent(ledger_db)
    two = await new_agent(ledger_db, tenant_of=one)
    await cap_tenant(ledger_db, one, "5")
    small = hold(two, "0.5")
    await call(ledger_db, "open_inferences", small)
    first, second = [await connect(database_url, APP_ROLE, "test") for _ in range(2)]

    async def ask() -> str:
        if kind == "enlarge":
            return str((await enlarge(second, small["inference_id"], "3"))["result"])
        return (await results(second, "open_inferences", hold(two, "3")))[0]

    try:
        async with first.transaction():
            await call(first, "open_inferences", hold(one, "3"))
            asking = asyncio.create_task(ask())
            async with asyncio.timeout(20):
                while not (await waits(ledger_db, second) or asking.done()):
                    await asyncio.sleep(0.01)
        assert await asking == "TENANT_CAP"
    finally:
        await first.close()
        await second.close()


async def test_agents_of_a_tenant_without_a_cap_do_not_wait_for_each_other(
    database_url: str, ledger_db: Connection
) -> None:
    one = await new_agent(ledger_db)
    two = await new_agent(ledger_db, tenant_of=one)
    other = await connect(database_url, APP_ROLE, "test")
    try:
        async with other.transaction():
            await call(other, "open_inferences", hold(one, "1"))
            await ledger_db.execute("SET lock_timeout = '5s'")
            assert await results(ledger_db, "open_inferences", hold(two, "1")) == ["OPENED"]
    finally:
        await ledger_db.execute("RESET lock_timeout")
        await other.close()


# -- leases -------------------------------------------------------------------------------------

LEASE = """SELECT extract(epoch FROM hold_expires_at - clock_timestamp())::int FROM inferences
            WHERE id = $1"""


async def test_a_hold_that_grows_is_leased_anew_and_never_for_less(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    inference = UUID(item["inference_id"])
    for ttl_s, least, most in ((3600, 3500, 3600), (10, 3400, 3600), (None, 3400, 3600)):
        assert (await enlarge(ledger_db, str(inference), "0.5", ttl_s))["result"] == "EXTENDED"
        assert least < await ledger_db.fetchval(LEASE, inference) <= most
    assert (await wallet_of(ledger_db, agent))["held"] == Decimal("2.5")


async def test_a_lease_is_renewed_under_caps_that_would_not_allow_the_hold(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db, funds="1")
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    await cap_tenant(ledger_db, agent, "0.5")
    await ledger_db.execute(
        "UPDATE agents SET per_call_cap_usd = 0.1, daily_cap_usd = 0.1 WHERE id = $1",
        UUID(agent.agent_id),
    )
    assert (await enlarge(ledger_db, item["inference_id"], "0", 900))["result"] == "EXTENDED"
    assert await ledger_db.fetchval(LEASE, UUID(item["inference_id"])) > 800
    assert (await enlarge(ledger_db, item["inference_id"], "0.1", 900))["result"] == "PER_CALL_CAP"
    assert (await enlarge(ledger_db, item["inference_id"], "0", 900, 0))["result"] == "FENCED"


async def test_finance_sees_settled_held_and_available_apart(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db, funds="10")
    running, done = hold(agent, "2"), hold(agent, "3")
    await call(ledger_db, "open_inferences", running, done)
    await call(ledger_db, "settle_inferences", ending(agent, done["inference_id"], "1"))
    wallet = await ledger_db.fetchrow(
        "SELECT * FROM wallets WHERE account_id = $1", agent.wallet_id
    )
    assert wallet is not None
    assert (wallet["settled"], wallet["held"], wallet["available"]) == (9, 2, 7)
    pending = await ledger_db.fetch("SELECT * FROM holds WHERE debit_account = $1", agent.wallet_id)
    assert [(str(row["pending_id"]), row["amount"]) for row in pending] == [
        (running["inference_id"], 2)
    ]


# -- durability ---------------------------------------------------------------------------------


KEEP = """SELECT * FROM keep_call(
  $1, gen_random_uuid(), $2, $3, 'native', '/v1/inference', false, true, NULL, '', '', 60, 60)"""
ACT = "INSERT INTO operator_events (actor, act, target) VALUES ('a', 'key.revoke', 'k')"


@pytest.mark.parametrize("kind", ["open", "settle", "enlarge", "move", "keep", "act"])
async def test_what_is_told_is_on_the_disk_whatever_the_server_is_set_to(
    ledger_db: Connection, kind: str
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    async with ledger_db.transaction():
        await ledger_db.execute("SET LOCAL synchronous_commit = off")
        if kind == "open":
            await call(ledger_db, "open_inferences", hold(agent, "1"))
        elif kind == "settle":
            await call(ledger_db, "end_inferences", ending(agent, item["inference_id"], "1"))
        elif kind == "enlarge":
            await enlarge(ledger_db, item["inference_id"], "1")
        elif kind == "keep":
            await ledger_db.execute(KEEP, uuid4(), UUID(agent.tenant_id), UUID(agent.agent_id))
        elif kind == "act":
            await ledger_db.execute(ACT)
        else:
            topups = UUID("00000000-0000-0000-0000-000000000003")
            await ledger_db.execute(
                "SELECT transfer_funds($1, $2, $3, 1, 'topup')", uuid4(), topups, agent.wallet_id
            )
        assert await ledger_db.fetchval("SHOW synchronous_commit") == "on"


async def test_a_server_that_waits_for_its_standby_still_does(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    async with ledger_db.transaction():
        await ledger_db.execute("SET LOCAL synchronous_commit = remote_apply")
        await call(ledger_db, "open_inferences", hold(agent, "1"))
        assert await ledger_db.fetchval("SHOW synchronous_commit") == "remote_apply"


# -- attribution --------------------------------------------------------------------------------


async def test_whom_a_call_is_for_is_kept_once_with_its_hold(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    said = {"session_id": "s", "client_agent_id": "a", "parent_agent_id": "p"}
    full, part = (
        hold(agent, "1", attribution=said),
        hold(agent, "1", attribution={"session_id": "t"}),
    )
    none, refused = hold(agent, "1"), hold(agent, "99", attribution=said)
    await call(ledger_db, "open_inferences", full, part, none, refused)
    await call(ledger_db, "open_inferences", {**full, "attempt": 2})
    rows = await ledger_db.fetch(
        "SELECT * FROM call_attributions WHERE agent_id = $1", UUID(agent.agent_id)
    )
    found = {
        str(row["inference_id"]): (
            row["session_id"],
            row["client_agent_id"],
            row["parent_agent_id"],
            str(row["tenant_id"]),
        )
        for row in rows
    }
    assert found == {
        full["inference_id"]: ("s", "a", "p", agent.tenant_id),
        part["inference_id"]: ("t", None, None, agent.tenant_id),
    }
