"""No call passes a threshold, and none begins once the killswitch is engaged, however many come."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from shared.db import APP_ROLE, Connection, Database, connect
from shared.domain.spending import ALL, Thresholds, passed_by
from tests.workers.ledger_cases import Agent, hold, new_agent
from tests.workers.threshold_cases import (
    counted,
    enlarged,
    guard,
    settle,
    slide,
    switches,
    told,
    turn,
    under_way,
)

CROWD = 24


# -- the window ----------------------------------------------------------------------------------


async def test_however_it_is_moved_along_the_window_counts_what_is_in_it(
    ledger_db: Connection, database_url: str, unstopped: Database
) -> None:
    """Settlements commit late, looks come or do not, the window is another one after a restart."""
    seed = uuid4().int
    print(f"seed {seed}")  # noqa: T201 - shown where it failed
    dice = random.Random(seed)
    agents = [await new_agent(ledger_db, "1000") for _ in range(3)]
    names = [agent.tenant_id for agent in agents]
    slow = await connect(database_url, APP_ROLE, "test")
    late: Any = None
    waiting: Agent | None = None
    for _ in range(60):
        agent = dice.choice([each for each in agents if each is not waiting])
        item = hold(agent, "1")
        assert await told(ledger_db, guard("900", "2000"), item) == ["OPENED"]
        if late is None and dice.random() < 0.2:
            late, waiting = slow.transaction(), agent
            await late.start()
            await settle(slow, agent, item, "0.7")
        elif dice.random() < 0.8:
            await settle(ledger_db, agent, item, dice.choice(["0", "0.3", "1"]))
        if late is not None and dice.random() < 0.3:
            await late.commit()
            late, waiting = None, None
        if dice.random() < 0.5:
            await slide(ledger_db, 3600)
        if dice.random() < 0.1 and late is None:
            await turn(unstopped, agent.tenant_id, engaged=True)
            await turn(unstopped, agent.tenant_id, engaged=False)
        rows = await ledger_db.fetch("SELECT * FROM killswitch_spending(NULL, 3600)")
        known = {row["scope"]: row["spent_usd"] for row in rows}
        for scope in (ALL, *names):
            assert known.get(scope, 0) == await counted(ledger_db, scope)
    if late is not None:
        await late.commit()
    await slow.close()
    own = [UUID(name) for name in names]
    for _ in range(3):
        await slide(ledger_db, 3600)
        rows = await ledger_db.fetch("SELECT * FROM killswitch_spending($1, 3600)", own)
        known = {row["scope"]: row["spent_usd"] for row in rows}
        assert known == {name: await counted(ledger_db, name) for name in names}


async def test_what_leaves_the_window_counts_no_more(
    ledger_db: Connection, unstopped: Database
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    assert await told(ledger_db, guard("1", window_s=1), item) == ["OPENED"]
    await settle(ledger_db, agent, item, "1")
    await slide(ledger_db, 1)
    await ledger_db.execute("SELECT pg_sleep(1.1)")
    # nobody has moved it along: what has left is taken off where it is looked at
    assert await told(ledger_db, guard("1", window_s=1), hold(agent, "0.4")) == ["OPENED"]
    for window_s in (1, 3600, 2, 3600):
        await slide(ledger_db, window_s)
        rows = await ledger_db.fetch("SELECT * FROM killswitch_spending(NULL, $1)", window_s)
        known = {row["scope"]: row["spent_usd"] for row in rows}
        assert known[agent.tenant_id] == await counted(ledger_db, agent.tenant_id, window_s)
        assert known[ALL] == await counted(ledger_db, ALL, window_s)


async def test_the_rule_says_what_the_database_says(
    ledger_db: Connection, unstopped: Database
) -> None:
    dice = random.Random(7)
    agents = [await new_agent(ledger_db) for _ in range(3)]
    limits = Thresholds(system=Decimal(8), tenant=Decimal(3))
    for _ in range(40):
        agent, asked = dice.choice(agents), dice.choice(["0", "0.2", "0.5", "2"])
        spent = {s: await counted(ledger_db, s) for s in (ALL, agent.tenant_id)}
        expected = passed_by(agent.tenant_id, Decimal(asked), spent, limits)
        item = hold(agent, asked)
        (answer,) = await told(ledger_db, guard("3", "8"), item)
        assert answer == ("OPENED" if expected is None else "KILLSWITCH")
        if expected is not None:
            newest = (await switches(ledger_db, expected.scope))[-1]
            assert newest["released_at"] is None
            assert newest["spent_usd"] == expected.spent_usd
            await turn(unstopped, expected.scope, engaged=False)
        elif dice.random() < 0.6:
            await settle(ledger_db, agent, item, dice.choice(["0", asked]))


# -- many at once --------------------------------------------------------------------------------


async def test_a_crowd_never_passes_a_threshold_together(
    database_url: str, ledger_db: Connection, unstopped: Database
) -> None:
    """Calls of many tenants, held, enlarged and settled at once, while the window moves along."""
    agents = [await new_agent(ledger_db, "1000") for _ in range(6)]
    limit, answers = guard("9", "30"), Counter[str]()
    over = asyncio.Event()

    async def live(connection: Connection, n: int) -> None:
        dice = random.Random(n)
        for _ in range(12):
            agent, other = dice.sample(agents, 2)
            items = [hold(agent, "0.5"), hold(other, "0.25")]
            for each, item, answer in zip(
                (agent, other), items, await told(connection, limit, *items), strict=True
            ):
                answers[answer] += 1
                if answer == "OPENED":
                    answers[await enlarged(connection, limit, item, "0.125")] += 1
                    await settle(connection, each, item, dice.choice(["0.1", "0.4"]))

    async def look(connection: Connection) -> int:
        looks = 0
        while not over.is_set():
            await slide(connection, 3600)
            assert await counted(connection, ALL) <= 30
            for agent in agents:
                assert await counted(connection, agent.tenant_id) <= 9
            looks += 1
        return looks

    async with AsyncExitStack() as stack:
        crowd = await _crowd(stack, database_url, CROWD + 1)
        looking = asyncio.create_task(look(crowd[0]))
        try:
            await asyncio.gather(*(live(each, n) for n, each in enumerate(crowd[1:])))
        finally:
            over.set()
        assert await looking > 3
    assert answers["OPENED"] > 50
    assert answers["KILLSWITCH"] > 50
    assert answers.keys() == {"OPENED", "KILLSWITCH", "EXTENDED"}
    (all_of_them,) = [
        s
        for s in await switches(ledger_db, ALL)
        if s["engaged_by"] == "threshold" and s["released_at"] is None
    ]
    begun = "SELECT count(*) FROM inferences WHERE created_at > $1"
    assert await ledger_db.fetchval(begun, all_of_them["engaged_at"]) == 0


async def test_a_call_is_under_way_when_it_is_engaged_or_it_never_begins(
    database_url: str, ledger_db: Connection, unstopped: Database
) -> None:
    """However calls and an operator come together: who holds money then is in the statement."""
    agents: Sequence[Agent] = [await new_agent(ledger_db, "1000") for _ in range(4)]
    for scope in (ALL, agents[0].tenant_id):
        started, stopped = asyncio.Event(), Counter[str]()
        held: set[str] = set()

        async def live(
            connection: Connection,
            n: int,
            scope: str = scope,
            started: asyncio.Event = started,
            stopped: Counter[str] = stopped,
            held: set[str] = held,
        ) -> None:
            mine = [agents[0]] if scope != ALL else agents
            while not stopped["KILLSWITCH"]:
                item = hold(mine[n % len(mine)], "0.001")
                answer = (await told(connection, guard(), item))[0]
                stopped[answer] += 1
                if answer == "OPENED":
                    held.add(item["inference_id"])
                    started.set()

        async with AsyncExitStack() as stack:
            crowd = await _crowd(stack, database_url, CROWD)
            living = asyncio.gather(*(live(each, n) for n, each in enumerate(crowd)))
            await started.wait()
            assert await turn(unstopped, scope, engaged=True)
            await living
        newest = (await switches(ledger_db, scope))[-1]
        assert held <= await under_way(ledger_db, newest["id"])
        begun = "SELECT count(*) FROM inferences WHERE created_at > $1"
        assert await ledger_db.fetchval(begun, newest["engaged_at"]) == 0
        assert await turn(unstopped, scope, engaged=False)


async def _crowd(stack: AsyncExitStack, url: str, size: int) -> list[Connection]:
    crowd = []
    for _ in range(size):
        crowd.append(await connect(url, APP_ROLE, "test"))
        stack.push_async_callback(crowd[-1].close)
    return crowd
