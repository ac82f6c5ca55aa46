"""64 tasks on one wallet at its limit: holds, extensions, settlements, cancels, all at once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from shared.config import Settings
from shared.db import Committer, Connection, Database
from shared.domain.books import Scope
from tests.workers.ledger_cases import Agent, ending, hold, new_agent, wallet_of
from tests.workers.letter_cases import burial
from workers.ledger_check import prove

TASKS, LIVES, WORKERS = 64, 5, 3
PER_CALL = Decimal("0.9")
LIMITS = """
SELECT a.balance - a.held AS available, a.balance, a.held, a.spent_today,
       (SELECT max(i.hold_usd) FROM inferences i WHERE i.agent_id = a.agent_id
         AND i.state = 'held') AS largest
  FROM accounts a WHERE a.id = $1"""


@dataclass(slots=True)
class Worker:
    """One worker's committers, as the fleet has them."""

    opener: Committer
    settler: Committer
    db: Database


@dataclass(slots=True)
class Tally:
    """What the tasks were told, to be compared with the books."""

    charged: Decimal = Decimal(0)
    results: Counter[str] = field(default_factory=Counter)


@pytest_asyncio.fixture(loop_scope="session")
async def workers(settings: Settings) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(WORKERS):
            db = Database(settings)
            stack.push_async_callback(db.aclose)
            pair = (Committer(db, "open_inferences"), Committer(db, "settle_inferences"))
            for committer in pair:
                await committer.start()
                stack.push_async_callback(committer.aclose)
            opened.append(Worker(*pair, db))
        yield opened


async def one_life(worker: Worker, agent: Agent, dice: random.Random, tally: Tally) -> None:
    """Hold, perhaps extend, then end in one of the ways a call ends, perhaps by two at once."""
    item = hold(agent, dice.choice(["0.1", "0.35", "0.8", "0.000000001", "1"]))
    inference = item["inference_id"]
    told = (await worker.opener.submit(item))["result"]
    tally.results[told] += 1
    if told != "OPENED":
        return
    for _ in range(dice.randrange(3)):
        extra = Decimal(dice.choice(["0.05", "0.3"]))
        statement = "SELECT extend_hold(cast(:id AS uuid), 1, :extra)"
        [[answer]] = await worker.db.run(statement, id=inference, extra=extra)
        tally.results[f"extended: {answer}"] += 1
    if dice.random() < 0.1:
        assert await worker.db.bury(burial(agent, inference, 1)) == "BURIED"
        return
    charge = dice.choice(["0", "0.07", "0.3", "1.7"])
    ends = [ending(agent, inference, charge) for _ in range(dice.choice([1, 1, 2]))]
    rows = await asyncio.gather(*(worker.settler.submit(end) for end in ends))
    assert sorted(row["result"] for row in rows) == ["EXISTS", "SETTLED"][-len(rows) :]
    tally.charged += next(row["charged"] for row in rows if row["result"] == "SETTLED")


async def watch(db: Connection, agent: Agent, daily: Decimal | None, done: asyncio.Event) -> int:
    """Look at the wallet all the time; how often it was looked at."""
    looks = 0
    while not done.is_set():
        row = await db.fetchrow(LIMITS, agent.wallet_id)
        assert row is not None
        assert row["available"] >= 0
        assert row["largest"] is None or row["largest"] <= PER_CALL
        assert daily is None or row["held"] + row["spent_today"] <= daily
        looks += 1
    return looks


@pytest.mark.parametrize(
    ("funds", "daily", "refusal"),
    [("20", None, "INSUFFICIENT_FUNDS"), ("400", "15.5", "DAILY_CAP")],
)
async def test_a_wallet_at_its_limit(
    ledger_db: Connection, workers: list[Worker], funds: str, daily: str | None, refusal: str
) -> None:
    agent = await new_agent(ledger_db, funds, f"{PER_CALL}", daily)
    tally, done, seed = Tally(), asyncio.Event(), uuid4().int
    print(f"seed {seed}")  # noqa: T201 - shown where it failed
    cap = None if daily is None else Decimal(daily)
    watching = asyncio.create_task(watch(ledger_db, agent, cap, done))

    async def task(n: int) -> None:
        dice = random.Random(seed + n)
        for _ in range(LIVES):
            await one_life(workers[n % WORKERS], agent, dice, tally)

    try:
        await asyncio.gather(*(task(n) for n in range(TASKS)))
    finally:
        done.set()
    assert await watching > 3
    wallet = await wallet_of(ledger_db, agent)
    assert tally.results["OPENED"] > 20
    assert tally.results[refusal] + tally.results[f"extended: {refusal}"] > 0
    assert tally.results["PER_CALL_CAP"] > 0
    assert wallet["balance"] == Decimal(funds) - tally.charged
    assert wallet["spent_today"] == tally.charged
    assert wallet["held"] == 0
    assert cap is None or tally.charged <= cap
    proved = await prove(ledger_db, Scope(UUID(agent.tenant_id)))
    assert {each.proof.name: each.offences for each in proved if each.wrong} == {}
    settled = {each.proof.name: each.amount for each in proved}["settled_is_what_was_charged"]
    assert settled == tally.charged
