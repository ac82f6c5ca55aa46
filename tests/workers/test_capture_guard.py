"""The guard of captures finds what was planted, looks at each call once, and not at too much."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import orjson
import pytest
import pytest_asyncio

from shared.db import Connection
from shared.ids import mint_id
from tests.workers.ledger_cases import new_agent
from workers import capture_guard
from workers.capture_guard import Looked, look_on
from workers.settings import books_worker

NOW = timedelta(0)
_ENDED = """
INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, state, settled_at)
VALUES ($1, $2::uuid, $3::uuid, $4, 'native', 'm', 'refused', now() - $5::interval)
"""
MANY = 30_000
_MANY = f"""
INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, state, settled_at)
SELECT new_id(), $1::uuid, $2::uuid, false, 'native', 'm', 'refused',
       now() - ({MANY} - n) * interval '1 second' FROM generate_series(1, {MANY}) n
"""
_CAPTURED = """
INSERT INTO routing_outcomes (inference_id, tenant_id, agent_id, task_type, decision_rule,
  policy_version, ruleset_hash, min_quality, outcome_status, fallback_chain, decision)
VALUES ($1, $2::uuid, $3::uuid, 'chat', 'r', 'p', 'h', 0.5, 'rejected_floor', '[]', '{}')
"""


@pytest_asyncio.fixture(loop_scope="session")
async def books(superuser_url: str) -> AsyncIterator[Connection]:
    """As a superuser, to plant what no settlement writes; nothing of it stays."""
    connection = await asyncpg.connect(superuser_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("UPDATE capture_guard SET checked_until = now() - interval '10 min'")
    yield connection
    await transaction.rollback()
    await connection.close()


async def ended(
    books: Connection, *, routed: bool, captured: bool, ago: timedelta = timedelta(minutes=2)
) -> str:
    """A call that ended so long ago, with or without its capture."""
    agent, inference_id = await new_agent(books, funds="0"), mint_id()
    who = (inference_id, agent.tenant_id, agent.agent_id)
    await books.execute(_ENDED, *who, routed, ago)
    if captured:
        await books.execute(_CAPTURED, *who)
    return str(inference_id)


async def test_each_kind_is_found_once_and_what_is_right_is_not(
    books: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    for routed, captured in ((True, True), (False, False)):
        await ended(books, routed=routed, captured=captured)
    assert await look_on(books, NOW) == Looked(2, 0, 0)
    await books.execute("UPDATE capture_guard SET checked_until = now() - interval '10 min'")
    missing = await ended(books, routed=True, captured=False)
    extra = await ended(books, routed=False, captured=True)
    assert await look_on(books, NOW) == Looked(4, 1, 1)
    named = [each for record in caplog.records for each in record.__dict__["inference_ids"]]
    assert sorted(named) == sorted([missing, extra])
    assert await look_on(books, NOW) == Looked(0, 0, 0)
    row = await books.fetchrow("SELECT * FROM capture_guard")
    assert row is not None
    assert (row["checked"], row["uncaptured"], row["overcaptured"]) == (6, 1, 1)


async def test_what_may_not_be_committed_yet_waits(books: Connection) -> None:
    await ended(books, routed=True, captured=False, ago=timedelta(seconds=10))
    assert (await look_on(books)).uncaptured == 0
    assert (await look_on(books, NOW)).uncaptured == 1


async def test_a_round_looks_at_so_many_minutes_and_the_next_goes_on(
    books: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long silence the guard does not read a year of calls in one transaction."""
    await ended(books, routed=True, captured=False, ago=timedelta(minutes=3))
    monkeypatch.setattr(capture_guard, "MOST_STEPS", 4)
    found = [(await look_on(books, NOW)).uncaptured for _ in range(3)]
    assert found == [0, 1, 0]


async def test_a_day_without_calls_is_behind_it_in_a_round(books: Connection) -> None:
    """As on a new fleet, where the guard begins a day before the database was made."""
    await books.execute("UPDATE capture_guard SET checked_until = now() - interval '1 day'")
    await ended(books, routed=True, captured=False, ago=timedelta(hours=5))
    assert await look_on(books, NOW) == Looked(1, 1, 0)
    assert await books.fetchval("SELECT now() - checked_until FROM capture_guard") == NOW


async def test_two_guards_do_not_look_at_the_same(books: Connection, superuser_url: str) -> None:
    await look_on(books, NOW)
    other = await asyncpg.connect(superuser_url)
    async with other.transaction():
        assert await look_on(other, NOW) == Looked()
    await other.close()


async def test_it_reads_by_the_time_of_the_end(books: Connection) -> None:
    """What it costs follows from the calls of a minute, not from all there ever were."""
    agent = await new_agent(books, funds="0")
    await books.execute(_MANY, agent.tenant_id, agent.agent_id)
    await books.execute("SELECT brin_summarize_new_values('inferences_settled_at_idx')")
    await books.execute("ANALYZE inferences")
    minute = "now() - interval '2 hours'", "now() - interval '119 min'"
    look = capture_guard._LOOK.replace("$1", minute[0]).replace("$2", minute[1])
    # many tenants: no index that begins with the tenant is of use
    await books.execute("DROP INDEX inferences_tenant_id_idx, inferences_agent_id_idx")
    told = orjson.loads(await books.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {look}"))
    (scan,) = [node for node in nodes(told[0]["Plan"]) if node.get("Relation Name") == "inferences"]
    assert scan["Node Type"] == "Bitmap Heap Scan"
    assert scan["Actual Rows"] == 60
    assert scan["Rows Removed by Index Recheck"] < MANY / 5


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_the_books_worker_runs_it(make_settings: object) -> None:
    names = [job.name for job in books_worker(make_settings()).cron_jobs]  # type: ignore[operator]
    assert "cron:guard_captures" in names
    assert "cron:forget_old_quotes" in names
