"""The killswitch's tables come to a database with calls under way, go, and come again."""

import asyncio

import migrations
from shared.db import Connection, connect
from shared.embedded import OWNER_ROLE
from tests.workers.ledger_cases import Agent, ending, hold, new_agent, results
from tests.workers.threshold_cases import counted, guard, slide, spending, switches, told


async def one_settled_and_one_held(db: Connection, agent: Agent) -> None:
    done, running = hold(agent, "1"), hold(agent, "1")
    assert await results(db, "open_inferences", done, running) == ["OPENED"] * 2
    ended = ending(agent, done["inference_id"], "0.5")
    assert await results(db, "settle_inferences", ended) == ["SETTLED"]


async def test_what_was_spent_before_counts_at_once(empty_database: str) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database, "0020")
    db = await connect(empty_database, OWNER_ROLE, "test")
    agent = await new_agent(db, "100")
    for n in (1, 2):
        await one_settled_and_one_held(db, agent)
        await asyncio.to_thread(migrations.upgrade, empty_database, "0021")
        spent = 3 * n / 2
        assert await counted(db, agent.tenant_id) == spent
        for _ in range(3):
            assert await spending(db, agent.tenant_id) == spent
            await slide(db, 3600)
        # also of an older worker, whose prepared statement names no thresholds
        limit = guard(str(spent + 0.25))
        assert await told(db, limit, hold(agent, "0.5")) == ["KILLSWITCH"]
        assert await results(db, "open_inferences", hold(agent, "0.5")) == ["KILLSWITCH"]
        switch = (await switches(db, agent.tenant_id))[-1]
        assert switch["spent_usd"] == spent
        await asyncio.to_thread(migrations.downgrade, empty_database, "0020")
        # released before anything was spent, so that all of it counts still
        await db.execute(
            "UPDATE killswitches SET released_at = '-infinity', released_by = 'x'"
            " WHERE released_at IS NULL"
        )
    await db.close()
