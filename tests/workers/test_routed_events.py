"""Who ends a call that nobody finished reads its routing event, and not its agent's whole chain."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest_asyncio

from shared.config import Settings
from shared.db import Connection, Database, connect
from shared.dead_letters import DEAD_CALL, close_letter
from shared.domain.attempts import LetterState
from shared.domain.audit import draft
from shared.kept import KeptCalls
from tests.workers.ledger_cases import Agent, call, hold, new_agent
from tests.workers.letter_cases import burial
from workers.sweep import EXPIRED_HOLDS

LATER = 500
_MANY = """
SELECT chain_events(array_agg(ROW($1::uuid, $2::uuid, $3::text, $4::text, $5::text, $6::text)
                                ::audit_draft))
  FROM generate_series(1, $7)
"""


@pytest_asyncio.fixture(loop_scope="session")
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings)
    yield database
    await database.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def db(database: Database) -> AsyncIterator[Connection]:
    connection = await database.connect_raw()
    yield connection
    await connection.close()


async def more_events(db: Connection, agent: Agent, count: int = LATER) -> None:
    told = draft("inference.routed", agent.agent_id, {"inference_id": str(uuid4())}).wire()
    await db.execute(_MANY, UUID(agent.agent_id), UUID(agent.tenant_id), *told, count)


async def an_hour_ago(db: Connection, inference: str) -> None:
    """As if the call had begun, and died, an hour before all of its agent's other events."""
    for change in (
        "UPDATE inferences SET created_at = created_at - interval '1 hour',"
        " hold_expires_at = hold_expires_at - interval '1 hour' WHERE id = $1",
        "UPDATE dead_letters SET died_at = died_at - interval '1 hour' WHERE inference_id = $1",
    ):
        await db.execute(change, UUID(inference))


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if plan.get("Relation Name") == "audit_events":
        yield plan
    for below in plan.get("Plans", ()):
        yield from scans(below)


async def events_read(db: Connection, query: str, *bound: object) -> int:
    """How many events a query looked at, found or passed over."""
    (answer,) = await db.fetchrow(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *bound) or ("[]",)
    found = list(scans(orjson.loads(answer)[0]["Plan"]))
    assert found
    return sum(
        (each["Actual Rows"] + each.get("Rows Removed by Filter", 0)) * each["Actual Loops"]
        for each in found
    )


async def test_a_call_that_died_before_its_hold_is_not_looked_for_in_what_came_later(
    db: Connection,
) -> None:
    agent = await new_agent(db)
    inference = str(uuid4())
    await call(db, "bury_inferences", burial(agent, inference, 1))
    await an_hour_ago(db, inference)
    await more_events(db, agent)
    query = DEAD_CALL.replace(":id", "$1")
    assert await events_read(db, query, UUID(inference)) < LATER / 10
    found = await db.fetchrow(query, UUID(inference))
    assert found is not None
    assert found["payload"] is None


async def test_a_hold_that_ran_out_is_not_looked_for_in_what_came_later(db: Connection) -> None:
    agent = await new_agent(db)
    left = hold(agent, "0.5", ttl_s=0, event=None)
    await call(db, "open_inferences", left)
    await an_hour_ago(db, left["inference_id"])
    await more_events(db, agent)
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    assert await events_read(db, EXPIRED_HOLDS, long_ago, UUID(int=0), 100) < LATER / 10


async def test_a_moment_is_found_in_a_chain_of_any_length(db: Connection) -> None:
    agent, empty = await new_agent(db), uuid4()
    middle = None
    for _ in range(3):
        await more_events(db, agent, 3)
        middle = middle or await db.fetchval("SELECT clock_timestamp()")
    position = "SELECT chain_position($1, $2::timestamptz)"
    chain = UUID(agent.agent_id)
    before = await db.fetchval(
        "SELECT min(created_at) FROM audit_events WHERE agent_id = $1", chain
    )
    assert await db.fetchval(position, chain, before) == 1
    assert await db.fetchval(position, chain, middle) == 4
    assert await db.fetchval("SELECT chain_position($1, now() + interval '1 day')", chain) == 10
    assert await db.fetchval(position, empty, middle) == 1


async def test_the_wallet_is_free_while_the_event_of_a_dead_call_is_looked_for(
    db: Connection, database: Database, settings: Settings, owner_url: str
) -> None:
    agent = await new_agent(db)
    inference = str(uuid4())
    await call(db, "open_inferences", hold(agent, "1", inference))
    await call(db, "bury_inferences", burial(agent, inference, 1))

    async def discard() -> bool:
        kept = KeptCalls(database, settings)
        async with database.everyone() as s:
            ended = await close_letter(s, kept, UUID(inference), LetterState.DISCARDED, "someone")
            await s.commit()
            return ended

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
    owner = await connect(owner_url, None, "test")
    transaction = owner.transaction()
    await transaction.start()
    # whoever reads the event waits here
    await owner.execute("LOCK TABLE audit_events IN ACCESS EXCLUSIVE MODE")
    ending = asyncio.create_task(discard())
    async with asyncio.timeout(15):
        while not await db.fetchval(waiting, owner.get_server_pid()):
            await asyncio.sleep(0.01)
    free = "SELECT 1 FROM accounts WHERE id = $1 FOR UPDATE NOWAIT"
    assert await db.fetchval(free, agent.wallet_id) == 1
    await transaction.rollback()
    assert await ending
    await owner.close()
