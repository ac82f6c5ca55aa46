"""What is known at most never falls behind; no count is lost, or made twice, whatever changes."""

import asyncio
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.db import APP_ROLE, Connection, Database, connect
from shared.domain.spending import ALL
from shared.killswitch import engage, release
from tests.workers.ledger_cases import Agent, hold, new_agent, results
from tests.workers.letter_cases import burial
from tests.workers.threshold_cases import (
    choose,
    counted,
    enlarged,
    guard,
    settle,
    slide,
    spending,
    switches,
    told,
    turn,
)


async def settled(db: Connection, agent: Agent, guarded: str, usd: str) -> None:
    item = hold(agent, usd)
    assert await told(db, guarded, item) == ["OPENED"]
    await settle(db, agent, item, usd)


# -- what is known at most ------------------------------------------------------------------------


async def test_what_was_held_while_there_was_no_threshold_counts(
    ledger_db: Connection, unstopped: Database
) -> None:
    """An operator takes a threshold off, and sets it again."""
    agent = await new_agent(ledger_db, "100")
    await choose(ledger_db, agent.tenant_id, "3")
    assert await told(ledger_db, guard(), hold(agent, "1")) == ["OPENED"]
    await choose(ledger_db, agent.tenant_id, None)
    assert await told(ledger_db, guard(), hold(agent, "1.5")) == ["OPENED"]
    await choose(ledger_db, agent.tenant_id, "3")
    assert await told(ledger_db, guard(), hold(agent, "1")) == ["KILLSWITCH"]
    assert await counted(ledger_db, agent.tenant_id) == Decimal("2.5")


@pytest.mark.parametrize("meanwhile", [guard(), "{}"])
async def test_what_was_enlarged_or_held_under_other_settings_counts(
    ledger_db: Connection, unstopped: Database, meanwhile: str
) -> None:
    agent, limit = await new_agent(ledger_db, "100"), guard("3", "1000")
    item = hold(agent, "1")
    assert await told(ledger_db, limit, item) == ["OPENED"]
    assert await told(ledger_db, meanwhile, hold(agent, "0.5")) == ["OPENED"]
    assert await told(ledger_db, limit, hold(agent, "0.5")) == ["OPENED"]
    assert await enlarged(ledger_db, meanwhile, item, "0.5") == "EXTENDED"
    assert await told(ledger_db, limit, hold(agent, "1")) == ["KILLSWITCH"]
    assert await counted(ledger_db, agent.tenant_id) == Decimal("2.5")


async def test_a_longer_window_counts_what_a_shorter_one_forgot(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent = await new_agent(ledger_db)
    await settled(ledger_db, agent, guard("2", window_s=1), "1")
    await ledger_db.execute("SELECT pg_sleep(1.1)")
    short = [hold(agent, "1"), hold(agent, "0.5")]
    assert await told(ledger_db, guard("1.5", window_s=1), *short) == ["OPENED", "OPENED"]
    assert await told(ledger_db, guard("2.6"), hold(agent, "0.5")) == ["KILLSWITCH"]
    assert await counted(ledger_db, agent.tenant_id) == Decimal("2.5")


async def test_a_threshold_is_chosen_when_nobody_is_holding(
    ledger_db: Connection, database_url: str, unstopped: Database
) -> None:
    """A hold that has not heard of it would be in nobody's count."""
    one = await new_agent(ledger_db)
    two = await new_agent(ledger_db, tenant_of=one)
    slow, operator = [await connect(database_url, APP_ROLE, "test") for _ in range(2)]
    async with asyncio.timeout(20):
        late = slow.transaction()
        await late.start()
        assert await told(slow, guard(), hold(one, "2")) == ["OPENED"]
        choosing = asyncio.create_task(choose(operator, one.tenant_id, "3"))
        asking = asyncio.create_task(told(ledger_db, guard(), hold(two, "0.5")))
        done, _ = await asyncio.wait([choosing], timeout=0.5)
        assert not done
        await late.commit()
        await choosing
        assert await asking == ["OPENED"]
        assert await told(slow, guard(), hold(two, "1")) == ["KILLSWITCH"]
    await slow.close()
    await operator.close()


# -- releases --------------------------------------------------------------------------------------


async def test_only_what_was_engaged_is_counted_anew(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent, limit = await new_agent(ledger_db), guard("2")
    await settled(ledger_db, agent, limit, "1.5")
    for _ in range(2):
        await slide(ledger_db, 3600)
    assert not await turn(unstopped, agent.tenant_id, engaged=False)
    assert await spending(ledger_db, agent.tenant_id) == Decimal("1.5")
    assert await told(ledger_db, limit, hold(agent, "1")) == ["KILLSWITCH"]


async def test_a_dead_call_that_is_replayed_after_a_release_counts(
    ledger_db: Connection, unstopped: Database
) -> None:
    """Its hold is a new one, whenever the call began."""
    agent, limit = await new_agent(ledger_db), guard("2")
    items = [hold(agent, "1") for _ in range(2)]
    assert await told(ledger_db, limit, *items) == ["OPENED"] * 2
    for item in items:
        buried = burial(agent, item["inference_id"], 1)
        assert await results(ledger_db, "bury_inferences", buried) == ["BURIED"]
        await ledger_db.execute(
            "UPDATE dead_letters SET state = 'replayed', resolved_at = now(), resolved_by = 'x'"
            " WHERE inference_id = $1",
            UUID(item["inference_id"]),
        )
    assert await turn(unstopped, agent.tenant_id, engaged=True)
    assert await turn(unstopped, agent.tenant_id, engaged=False)
    again = [{**item, "attempt": 2} for item in items]
    assert await told(ledger_db, limit, *again) == ["OPENED"] * 2
    assert await spending(ledger_db, agent.tenant_id) == 2
    await settle(ledger_db, agent, {**again[0]}, "1", attempt=2)
    assert await spending(ledger_db, agent.tenant_id) == 2
    for _ in range(2):
        await slide(ledger_db, 3600)
    assert await spending(ledger_db, agent.tenant_id) == 2
    assert await told(ledger_db, limit, hold(agent, "0.1")) == ["KILLSWITCH"]


async def test_who_does_not_count_any_more_engages_nothing(
    ledger_db: Connection, unstopped: Database
) -> None:
    """A call that began before the release grows, where the new count is at its threshold."""
    agent, limit = await new_agent(ledger_db), guard("2", "1000")
    old = hold(agent, "1")
    assert await told(ledger_db, limit, old) == ["OPENED"]
    assert await turn(unstopped, agent.tenant_id, engaged=True)
    assert await turn(unstopped, agent.tenant_id, engaged=False)
    assert await told(ledger_db, limit, hold(agent, "2")) == ["OPENED"]
    assert await enlarged(ledger_db, limit, old, "0.5") == "EXTENDED"
    # for the whole system it does count
    assert await spending(ledger_db, ALL) == Decimal("3.5")
    assert await enlarged(ledger_db, guard("2", "3.5"), old, "0.1") == "KILLSWITCH"
    assert [s["released_at"] is None for s in await switches(ledger_db, agent.tenant_id)] == [False]


async def test_a_release_comes_after_all_that_it_ends(
    ledger_db: Connection, unstopped: Database
) -> None:
    """Also where the releasing transaction began long before."""
    agent, limit = await new_agent(ledger_db), guard("2")
    async with unstopped.everyone() as session:
        await session.execute(text("SELECT now()"))
        item = hold(agent, "2")
        assert await told(ledger_db, limit, item, hold(agent, "1")) == ["OPENED", "KILLSWITCH"]
        await settle(ledger_db, agent, item, "2")
        assert await release(session, agent.tenant_id, "", "somebody")
        await session.commit()
    (row,) = await switches(ledger_db, agent.tenant_id)
    assert row["released_at"] > row["engaged_at"]
    assert await told(ledger_db, limit, hold(agent, "2")) == ["OPENED"]


async def test_an_operator_who_falls_silent_stops_nobody_for_long(
    ledger_db: Connection, unstopped: Database
) -> None:
    """A process may be frozen between its statements, while holds wait for it."""
    agent = await new_agent(ledger_db)
    told_off = text("SELECT current_setting('idle_in_transaction_session_timeout')")
    async with unstopped.everyone() as session:
        for turned in (engage, release):
            await turned(session, agent.tenant_id, "", "somebody")
            assert await session.scalar(told_off) == "5s"
            await session.commit()
            assert await session.scalar(told_off) == "0"
            await session.commit()
    async with ledger_db.transaction():
        await choose(ledger_db, agent.tenant_id, "1")
        assert await ledger_db.fetchval(told_off.text) == "5s"


# -- clocks, numbers of transactions, large amounts ------------------------------------------------


async def test_a_clock_that_goes_back_loses_no_settlement(
    ledger_db: Connection, database_url: str, unstopped: Database
) -> None:
    agent, limit = await new_agent(ledger_db), guard("4")
    slow = await connect(database_url, APP_ROLE, "test")
    await settled(ledger_db, agent, limit, "1")
    ahead = (
        "UPDATE killswitch_window SET counted_from = now() + interval '{0}',"
        " counted_to = now() + interval '{0}', next_to = {1}, next_xid = {2}"
    )
    for statement in (
        ahead.format("1 hour", "NULL", "NULL"),
        ahead.format("-1 minute", "now() + interval '1 hour'", "3"),
        ahead.format("1 minute", "now() + interval '1 hour'", "3"),
    ):
        item = hold(agent, "1")
        assert await told(ledger_db, limit, item) == ["OPENED"]
        late = slow.transaction()
        await late.start()
        await settle(slow, agent, item, "1")
        # as a look left it before the clock was set back
        await ledger_db.execute("UPDATE killswitch_spent SET settled_usd = 0, at_most_usd = NULL")
        await ledger_db.execute(statement)
        await slide(ledger_db, 3600)
        await late.commit()
        for _ in range(3):
            assert await spending(ledger_db, agent.tenant_id) == await counted(
                ledger_db, agent.tenant_id
            )
            assert await spending(ledger_db, ALL) == await counted(ledger_db, ALL)
            await slide(ledger_db, 3600)
    await slow.close()


async def test_numbers_of_transactions_of_another_server_stop_no_count(
    ledger_db: Connection, unstopped: Database
) -> None:
    """The tables were restored where numbers are smaller."""
    await ledger_db.execute(
        "UPDATE killswitch_window SET next_to = now(), next_xid = 4611686018427387904"
    )
    moment = await ledger_db.fetchval("SELECT clock_timestamp()")
    for _ in range(3):
        await slide(ledger_db, 3600)
    assert await ledger_db.fetchval("SELECT counted_to FROM killswitch_window") > moment


async def test_no_sum_is_too_large(ledger_db: Connection, unstopped: Database) -> None:
    rich = [await new_agent(ledger_db, "90000000000") for _ in range(2)]
    limit = guard(system="99999999999")
    for agent in rich:
        await settled(ledger_db, agent, guard(), "90000000000")
    for _ in range(2):
        await slide(ledger_db, 3600)
    assert await spending(ledger_db, ALL) == await counted(ledger_db, ALL) >= 180_000_000_000
    assert await told(ledger_db, limit, hold(await new_agent(ledger_db), "1")) == ["KILLSWITCH"]
    (row,) = [s for s in await switches(ledger_db, ALL) if s["released_at"] is None]
    assert row["spent_usd"] >= 180_000_000_000
    # the figure is in the window of all tests after this one
    await turn(unstopped, ALL, engaged=False)
