"""The books worker's rounds: a call that nobody will finish is closed, once, and costs nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import Connection, Database
from shared.domain.audit import draft
from shared.domain.ledger import GRANTS_ACCOUNT
from shared.kept import KeptCalls
from shared.queue import InferenceQueue
from tests.workers.books_cases import grant
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent, results, wallet_of
from workers import sweep
from workers.ledger import Ledger
from workers.sweep import BooksDeps, expire_grants, release_expired_holds


@pytest_asyncio.fixture(loop_scope="session")
async def books(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    db = Database(settings)
    ledger = Ledger(db)
    await ledger.start()
    redis = Redis.from_url(settings.redis_url)
    kept, queue = KeptCalls(db, settings), InferenceQueue(redis)
    yield {"deps": BooksDeps(settings, db, ledger, kept, queue, redis)}
    await redis.aclose()
    await ledger.aclose()
    await db.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Connection]:
    connection = await Database(settings).connect_raw()
    yield connection
    await connection.close()


def routed_event(agent: Agent, inference: str) -> list[str]:
    data = {
        "inference_id": inference,
        "router": "ainfera-inference",
        "model": "a-model",
        "provider": "a-provider",
        "task_type": "code",
        "cell": "code:a-model:balanced",
        "decision_rule": "cheapest_clearing_floor",
        "policy_version": "flat-1",
        "ruleset_hash": "0123456789abcdef",
        "min_quality": "0.50",
        "cost_projected": "0.5",
    }
    return draft("inference.routed", agent.agent_id, data).wire()


async def test_an_expired_hold_is_voided_and_its_call_captured_once(
    books: dict[str, Any], db: Connection
) -> None:
    agent = await new_agent(db)
    inference = str(uuid4())
    left = hold(agent, "0.5", inference, ttl_s=0, event=routed_event(agent, inference))
    running = hold(agent, "0.25")
    assert await results(db, "open_inferences", left, running) == ["OPENED", "OPENED"]

    assert await release_expired_holds(books) == 1
    assert await release_expired_holds(books) == 0

    wallet = await wallet_of(db, agent)
    assert (wallet["balance"], wallet["held"]) == (Decimal(10), Decimal("0.25"))
    outcome = await db.fetchrow(
        "SELECT * FROM routing_outcomes WHERE inference_id = $1", UUID(inference)
    )
    assert outcome is not None
    assert outcome["outcome_status"] == "expired"
    assert (outcome["task_type"], outcome["chosen_model_slug"]) == ("code", "a-model")
    assert await db.fetchval("SELECT count(*) FROM transfers WHERE kind = 'usage'") == 0
    # whoever comes late with a result finds the call closed
    assert await results(db, "settle_inferences", ending(agent, inference, "0.1")) == ["EXISTS"]


async def test_a_pinned_call_expires_without_a_capture(
    books: dict[str, Any], db: Connection
) -> None:
    agent = await new_agent(db)
    left = hold(agent, "0.5", ttl_s=0, routed=False)
    await call(db, "open_inferences", left)
    assert await release_expired_holds(books) == 1
    assert (await wallet_of(db, agent))["held"] == 0
    captured = "SELECT count(*) FROM routing_outcomes WHERE inference_id = $1"
    assert await db.fetchval(captured, UUID(left["inference_id"])) == 0


async def test_a_round_ends_all_that_it_has_time_for(
    books: dict[str, Any], db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SWEEP_PAGE", 4)
    agents = [await new_agent(db) for _ in range(3)]
    for agent in agents:
        left = [hold(agent, "0.5", ttl_s=0) for _ in range(3)]
        assert await results(db, "open_inferences", *left) == ["OPENED"] * 3
    assert await release_expired_holds(books) == 9
    assert [(await wallet_of(db, agent))["held"] for agent in agents] == [0, 0, 0]


class SlowLedger:
    """Stands in for the ledger: settles nothing before `together` wait for it."""

    def __init__(self, together: int) -> None:
        self.wait_for, self.refused = together, 0
        self._all_here = asyncio.Event()

    async def settle(self, item: dict[str, Any]) -> str:
        self.wait_for -= 1
        if self.wait_for == 0:
            self._all_here.set()
        await self._all_here.wait()
        if not self.refused:
            self.refused = 1
            raise asyncpg.CheckViolationError("of one call")
        return "SETTLED"


async def test_holds_are_released_side_by_side_and_one_holds_up_no_other(
    books: dict[str, Any], db: Connection
) -> None:
    agent = await new_agent(db)
    left = [hold(agent, "0.5", ttl_s=0) for _ in range(8)]
    assert await results(db, "open_inferences", *left) == ["OPENED"] * 8
    slow: Any = SlowLedger(8)
    async with asyncio.timeout(20):
        assert await release_expired_holds({"deps": replace(books["deps"], ledger=slow)}) == 7
    assert await release_expired_holds(books) == 8


async def test_a_round_is_passed_over_while_another_is_under_way(
    books: dict[str, Any], db: Connection
) -> None:
    agent = await new_agent(db)
    await call(db, "open_inferences", hold(agent, "0.5", ttl_s=0))
    transaction = db.transaction()
    await transaction.start()
    await db.fetch("SELECT 1 FROM accounts WHERE id = $1 FOR UPDATE", agent.wallet_id)
    first = asyncio.create_task(release_expired_holds(books))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
    looking = await books["deps"].db.connect_raw()
    async with asyncio.timeout(15):
        while not await looking.fetchval(waiting, db.get_server_pid()):
            await asyncio.sleep(0.01)
        assert await release_expired_holds(books) == 0
    await looking.close()
    await transaction.commit()
    assert await first == 1


async def test_grants_end_until_none_is_due(
    books: dict[str, Any], db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "GRANTS_PAGE", 2)
    agents = [await new_agent(db, funds="0") for _ in range(5)]
    for agent in agents:
        await grant(db, agent, "1", -timedelta(minutes=1))
    assert await expire_grants(books) == 5


async def test_what_a_grant_left_is_taken_back_when_its_time_is_over(
    books: dict[str, Any], db: Connection
) -> None:
    agent = await new_agent(db, funds="0")
    await db.execute(
        "SELECT transfer_funds($1, $2, $3, $4, 'grant')",
        uuid4(),
        GRANTS_ACCOUNT,
        agent.wallet_id,
        Decimal(5),
    )
    await db.execute(
        "UPDATE accounts SET grant_inferences_left = 3, grant_expires_at = now() - interval '1 s'"
        " WHERE id = $1",
        agent.wallet_id,
    )
    assert await expire_grants(books) == 1
    assert await expire_grants(books) == 0
    assert (await wallet_of(db, agent))["balance"] == 0
