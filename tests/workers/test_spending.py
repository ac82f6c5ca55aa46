"""The killswitch engages by itself where spending passes a threshold, and says what it did."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import text

from shared.closing_statement import CSV_HEADER, find_switch, read_statement, statement_pages
from shared.config import Settings
from shared.control import CONTROL_CHANNEL
from shared.db import Connection, Database, connect
from shared.domain.spending import ALL, Passed
from shared.domain.spreadsheet import csv_line
from shared.killswitch import KillswitchThresholdRow, engage, engaged_switches, release
from shared.spending import hear_spending
from tests.ingress.call_cases import leave
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent, results
from workers.spending import IDLE_LOOKS, THRESHOLD, SpendWatch

Watch = Callable[..., SpendWatch]
FREE_SO_FAR = text(
    "INSERT INTO killswitch_thresholds (scope, threshold_usd, set_by)"
    " SELECT id::text, NULL, 'test' FROM tenants"
)
STOPPED: dict[str, Any] = {"refused": True, "code": "cost_killswitch_engaged"}


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Database]:
    """Who was there before the test has no threshold, and after it nothing is engaged."""
    opened = Database(settings)
    async with opened.everyone() as session:
        await session.execute(FREE_SO_FAR)
        await session.commit()
    yield opened
    async with opened.everyone() as session:
        for row in await engaged_switches(session):
            await release(session, row.scope, "", "test")
        for threshold in await session.run_sync(lambda s: s.query(KillswitchThresholdRow).all()):
            await session.delete(threshold)
        await session.commit()
    await opened.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def watch(db: Database, redis: Redis, make_settings: Callable[..., Settings]) -> Watch:
    return lambda **changes: SpendWatch(db, redis, make_settings(**changes))


async def let_in(db: Database, scope: str) -> None:
    async with db.everyone() as session:
        assert await release(session, scope, "looked at", "somebody")
        await session.commit()


async def set_threshold(db: Database, scope: str, usd: str | None) -> None:
    amount = None if usd is None else Decimal(usd)
    async with db.everyone() as session:
        session.add(KillswitchThresholdRow(scope=scope, threshold_usd=amount, set_by="somebody"))
        await session.commit()


async def test_settled_and_held_together_pass_it(
    ledger_db: Connection, watch: Watch, db: Database, redis: Redis
) -> None:
    agent, quiet = await new_agent(ledger_db), await new_agent(ledger_db)
    watching = watch(killswitch_tenant_usd="2")
    pubsub: Any = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(CONTROL_CHANNEL)
    await leave(ledger_db, agent, "0.9", routed=False)
    await leave(ledger_db, quiet, "1")
    assert await watching.look() == []
    item = hold(agent, "1.1")
    await call(ledger_db, "open_inferences", item)
    assert await watching.look() == []  # two dollars of two
    await leave(ledger_db, agent, "0.000000001")
    assert await watching.look() == [Passed(agent.tenant_id, Decimal("2.000000001"), Decimal("2"))]
    async with db.everyone() as session:
        (row,) = await engaged_switches(session)
    assert (row.scope, row.engaged_by) == (agent.tenant_id, THRESHOLD)
    assert (row.spent_usd, row.threshold_usd) == (Decimal("2.000000001"), Decimal(2))
    heard = await _order(pubsub)
    assert heard == {"type": "killswitch", "scope": agent.tenant_id, "engaged": True}
    assert await watching.look() == []  # it is engaged already
    await pubsub.aclose()
    await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "0"))


async def _order(pubsub: Any) -> Any:
    async with asyncio.timeout(10):
        while (message := await pubsub.get_message(timeout=1)) is None:
            pass
    return orjson.loads(message["data"])


async def test_a_call_that_settles_is_not_counted_twice(
    ledger_db: Connection, watch: Watch
) -> None:
    """Its hold goes as its cost comes, and a look sees both at one moment."""
    agent = await new_agent(ledger_db)
    watching = watch(killswitch_tenant_usd="1.5")
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    assert await watching.look() == []
    await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "0.9"))
    for _ in range(3):
        assert await watching.look() == []
    await leave(ledger_db, agent, "0.7")
    assert [over.spent_usd for over in await watching.look()] == [Decimal("1.6")]


async def test_after_a_release_the_same_spending_does_not_count_again(
    ledger_db: Connection, watch: Watch, db: Database
) -> None:
    """Neither what was settled, nor what calls from before it still hold or settle after it."""
    agent = await new_agent(ledger_db)
    watching = watch(killswitch_tenant_usd="1")
    running = hold(agent, "0.9")
    await call(ledger_db, "open_inferences", running)
    await leave(ledger_db, agent, "0.5")
    assert len(await watching.look()) == 1
    await let_in(db, agent.tenant_id)
    assert await watching.look() == []
    await call(ledger_db, "settle_inferences", ending(agent, running["inference_id"], "0.9"))
    for _ in range(2):
        assert await watching.look() == []
    assert await watch(killswitch_tenant_usd="1").look() == []  # nor to a worker that starts anew
    await leave(ledger_db, agent, "0.8")
    assert await watching.look() == []
    await leave(ledger_db, agent, "0.3")
    assert [over.spent_usd for over in await watching.look()] == [Decimal("1.1")]


async def test_the_whole_system_has_a_threshold_and_metrics(
    ledger_db: Connection, watch: Watch, redis: Redis, db: Database
) -> None:
    async with db.everyone() as session:
        seen = watch(killswitch_system_usd="100000")
        await seen.look()
        before = await hear_spending(redis)
        await session.rollback()
    assert before is not None
    for _ in range(2):
        await leave(ledger_db, await new_agent(ledger_db), "0.4")
    limit = before.spent_usd + Decimal("0.7")
    (over,) = await watch(killswitch_system_usd=f"{limit:f}", killswitch_tenant_usd="4").look()
    assert (over.scope, over.spent_usd) == (ALL, before.spent_usd + Decimal("0.8"))
    told = await hear_spending(redis)
    assert told is not None
    assert (told.spent_usd, told.threshold_usd) == (over.spent_usd, limit)
    assert 0 < told.closest_tenant < 1


async def test_an_operators_threshold_wins(
    ledger_db: Connection, watch: Watch, db: Database
) -> None:
    tight, free = await new_agent(ledger_db), await new_agent(ledger_db)
    for agent in (tight, free):
        await leave(ledger_db, agent, "1")
        await leave(ledger_db, agent, "1")
    await set_threshold(db, tight.tenant_id, "0.5")
    await set_threshold(db, free.tenant_id, None)
    engaged = {over.scope for over in await watch(killswitch_tenant_usd="1.9").look()}
    assert tight.tenant_id in engaged
    assert free.tenant_id not in engaged


async def test_what_left_the_window_does_not_count(
    ledger_db: Connection, watch: Watch, owner_url: str
) -> None:
    agent = await new_agent(ledger_db)
    await leave(ledger_db, agent, "1")
    # the window ends before the present second does, so that it holds nothing that was settled
    await ledger_db.execute("SELECT pg_sleep(2.1)")
    watching = watch(killswitch_tenant_usd="0.5", killswitch_window_s=1)
    assert [over.scope for over in await watching.look()] == []
    assert agent.tenant_id in [o.scope for o in await watch(killswitch_tenant_usd="0.5").look()]


async def test_one_that_was_engaged_and_not_told_is_told_by_the_next_worker(
    ledger_db: Connection, watch: Watch, redis: Redis
) -> None:
    agent = await new_agent(ledger_db)
    await leave(ledger_db, agent, "1")
    await watch(killswitch_tenant_usd="0.5").look()
    pubsub: Any = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(CONTROL_CHANNEL)
    await watch().look()  # it knows no threshold any more
    scopes = set()
    while agent.tenant_id not in scopes:
        scopes.add((await _order(pubsub))["scope"])
    await pubsub.aclose()


async def test_one_that_is_released_and_engaged_again_at_once_is_told_again(
    ledger_db: Connection, watch: Watch, db: Database, redis: Redis
) -> None:
    """Between two looks; whoever read at the release knows nothing of the second one."""
    agent = await new_agent(ledger_db)
    watching = watch()
    pubsub: Any = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(CONTROL_CHANNEL)
    for _ in range(2):
        async with db.everyone() as session:
            await release(session, agent.tenant_id, "", "somebody")
            assert await engage(session, agent.tenant_id, "", "somebody")
            await session.commit()
        await watching.look()
        told = {"type": "killswitch", "scope": agent.tenant_id, "engaged": True}
        assert await _order(pubsub) == told
    await pubsub.aclose()


async def test_what_was_released_meanwhile_is_not_engaged_by_an_older_look(
    ledger_db: Connection,
    make_settings: Callable[..., Settings],
    db: Database,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = await new_agent(ledger_db)
    watching = SpendWatch(db, redis, make_settings(killswitch_tenant_usd="0.5"))
    await leave(ledger_db, agent, "0.9", routed=False)

    real = watching._engage

    asked = []

    async def late(scope: str) -> Any:
        asked.append(scope)
        async with db.everyone() as session:
            await engage(session, agent.tenant_id, "", "somebody")
            await release(session, agent.tenant_id, "", "somebody")
            await session.commit()
        return await real(scope)

    monkeypatch.setattr(watching, "_engage", late)
    assert await watching.look() == []
    assert asked == [agent.tenant_id]


async def test_without_thresholds_the_window_is_moved_along_too(
    ledger_db: Connection, watch: Watch
) -> None:
    """So the first hold under a first threshold need not read a whole window."""
    watching = watch()
    before = await ledger_db.fetchval("SELECT clock_timestamp()")
    for _ in range(2 * IDLE_LOOKS + 1):
        await watching.look()
    counted = await ledger_db.fetchval("SELECT counted_to FROM killswitch_window")
    assert counted > before


async def test_the_closing_statement_says_what_was_stopped_and_what_it_cost(
    ledger_db: Connection, watch: Watch, db: Database, owner_url: str
) -> None:
    """A call that began after it, as older versions let some in, is told as one."""
    owner = await connect(owner_url, None, "test")
    agent, other = await new_agent(ledger_db), await new_agent(ledger_db)
    running, long, early = hold(agent, "0.5"), hold(agent, "0.25"), hold(agent, "0.1")
    await call(ledger_db, "open_inferences", running, long, early, hold(other, "0.5"))
    before = await leave(ledger_db, agent, "0.4")
    watching = watch(killswitch_tenant_usd="1")
    assert len(await watching.look()) == 1
    stopped = [await leave(ledger_db, agent, "0", "rejected_cap", **STOPPED) for _ in range(3)]
    stopped.append(await leave(ledger_db, agent, "0", "rejected_cap", routed=False, **STOPPED))
    by_a_cap = await leave(ledger_db, agent, "0", "rejected_cap", refused=True, code="spend_policy")
    await leave(ledger_db, other, "0", "rejected_cap", **STOPPED)
    assert await results(ledger_db, "open_inferences", hold(agent, "0.1")) == ["KILLSWITCH"]
    late = early["inference_id"]
    await owner.execute("UPDATE inferences SET created_at = now() WHERE id = $1", UUID(late))
    await call(ledger_db, "settle_inferences", ending(agent, late, "0.1"))
    await call(ledger_db, "settle_inferences", ending(agent, running["inference_id"], "0.3"))
    statement = await _statement(db)
    assert statement["scope"] == agent.tenant_id
    assert statement["engaged_by"] == THRESHOLD
    assert (statement["spent_usd"], statement["threshold_usd"]) == ("1.250000000", "1.000000000")
    assert statement["released_at"] is None
    assert statement["stopped"] == {"calls": 4, "inference_ids": stopped}
    assert by_a_cap not in str(statement)
    assert before not in str(statement)
    way = statement["under_way"]
    assert (way["calls"], way["running"], way["let_in_late"]) == (3, 1, 1)
    assert (way["cost_usd"], way["held_usd"]) == ("0.400000000", "0.250000000")
    assert {each["inference_id"]: each["call"] for each in way["inferences"]} == {
        running["inference_id"]: "in_flight",
        long["inference_id"]: "in_flight",
        late: "let_in_late",
    }
    await let_in(db, agent.tenant_id)
    # what still ran at the release is told with what it cost in the end
    await call(ledger_db, "settle_inferences", ending(agent, long["inference_id"], "0.2"))
    await leave(ledger_db, agent, "0.6")
    statement = await _statement(db)
    way = statement["under_way"]
    assert (statement["released_by"], way["calls"], way["running"]) == ("somebody", 3, 0)
    assert way["cost_usd"] == "0.600000000"
    rows = await _table(db)
    assert [row["call"] for row in rows].count("stopped") == 4
    assert sum(Decimal(row["cost_usd"]) for row in rows) == Decimal("0.6")
    await owner.close()


async def _statement(db: Database) -> Any:
    async with db.everyone() as session:
        found = await find_switch(session, None)
        assert found is not None
        return await read_statement(session, found)


async def _table(db: Database) -> list[dict[str, str]]:
    async with db.everyone() as session:
        found = await find_switch(session, None)
    assert found is not None
    lines = [csv_line(CSV_HEADER)]
    async for page in statement_pages(db, found):
        lines += [csv_line(row) for row in page]
    return list(csv.DictReader(io.StringIO("".join(lines), newline="")))


async def test_a_statement_of_everybody_names_all_tenants(
    ledger_db: Connection, watch: Watch, db: Database
) -> None:
    agents: list[Agent] = [await new_agent(ledger_db) for _ in range(2)]
    for agent in agents:
        await leave(ledger_db, agent, "1")
    (over,) = await watch(killswitch_system_usd="1.5").look()
    assert over.scope == ALL
    stopped = [await leave(ledger_db, agent, "0", "rejected_cap", **STOPPED) for agent in agents]
    statement = await _statement(db)
    assert statement["stopped"]["inference_ids"] == stopped
    tenants = {row["tenant_id"] for row in await _table(db) if row["call"] == "stopped"}
    assert tenants == {str(UUID(agent.tenant_id)) for agent in agents}
