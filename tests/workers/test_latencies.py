"""How long models take: measured from answers in Postgres, read into memory, used by decisions."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest_asyncio
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import Connection, Database, connect
from shared.domain.candidate import Catalog
from shared.domain.evidence import Evidence
from shared.kept import KeptCalls
from shared.latencies import KNOWN_FOR_S, Latencies
from shared.queue import InferenceQueue
from tests.domain.routing_cases import asked, decided, model
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent
from workers.latencies import measure_latencies
from workers.ledger import Ledger
from workers.sweep import BooksDeps

LEAST = 20


@pytest_asyncio.fixture(loop_scope="session")
async def books(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    demanding = settings.model_copy(update={"latency_min_samples": LEAST})
    db = Database(demanding)
    redis = Redis.from_url(settings.redis_url)
    kept, queue = KeptCalls(db, demanding), InferenceQueue(redis)
    yield {"deps": BooksDeps(demanding, db, Ledger(db), kept, queue, redis)}
    await redis.aclose()
    await db.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def owner(owner_url: str) -> AsyncIterator[Connection]:
    connection = await connect(owner_url, None, "test")
    yield connection
    await connection.close()


async def a_model(owner: Connection) -> str:
    """A catalogued model of no other test's."""
    slug = f"timed-{uuid4()}"
    await owner.execute(
        """INSERT INTO models (slug, brand, provider, provider_model_id, display_name,
                               context_window, max_output_tokens, active)
           VALUES ($1, 'timed', 'timed', $1, $1, 1000, 1000, false)""",
        slug,
    )
    return slug


async def answers(
    db: Connection,
    agent: Agent,
    slug: str,
    latencies: Sequence[int],
    simulated: bool = False,
    **changes: Any,
) -> None:
    """As many routed answers of a model, which took so many milliseconds."""
    holds = [hold(agent, "0.001") for _ in latencies]
    await call(db, "open_inferences", *holds)
    items = []
    for item, ms in zip(holds, latencies, strict=True):
        done = ending(agent, item["inference_id"], "0.0001")
        fate = {"chosen_model_slug": slug, "observed_latency_ms": ms, **changes}
        done["outcome"] = {**done["outcome"], **fate}
        done["receipt"] = {**done["receipt"], "simulated": simulated}
        items.append(done)
    assert {row["result"] for row in await call(db, "settle_inferences", *items)} == {"SETTLED"}


async def measured(books: dict[str, Any], slug: str) -> int | None:
    """What a worker would know of the model after a round of measuring."""
    deps: BooksDeps = books["deps"]
    await measure_latencies(books)
    known = Latencies(deps.db, 1000)
    await known.read()
    return known.by_model.get(slug)


@pytest_asyncio.fixture(loop_scope="session")
async def app(settings: Settings) -> AsyncIterator[Connection]:
    connection = await Database(settings).connect_raw()
    yield connection
    await connection.close()


async def test_the_95th_percentile_of_enough_answers(
    books: dict[str, Any], owner: Connection, app: Connection
) -> None:
    slug, agent = await a_model(owner), await new_agent(app, "10")
    await answers(app, agent, slug, range(10, 200, 10))
    assert await measured(books, slug) is None  # nineteen are one too few
    await answers(app, agent, slug, [200])
    assert await measured(books, slug) == 190  # 19 of the 20 took no longer


async def test_only_whole_answers_of_the_chosen_model_count(
    books: dict[str, Any], owner: Connection, app: Connection
) -> None:
    slug, agent = await a_model(owner), await new_agent(app, "10")
    await answers(app, agent, slug, [100] * LEAST)
    await answers(app, agent, slug, [9000] * LEAST, outcome_status="failed_midstream")
    tried = [{"model": slug, "provider": "p", "code": "provider_error", "upstream_status": 500}]
    await answers(app, agent, slug, [9000] * LEAST, fallback_chain=tried)
    assert await measured(books, slug) == 100


async def test_a_simulation_says_nothing_of_the_real_model(
    books: dict[str, Any], owner: Connection, app: Connection
) -> None:
    slug, agent = await a_model(owner), await new_agent(app, "10")
    await answers(app, agent, slug, [700] * LEAST, simulated=True)
    assert await measured(books, slug) == 700
    await answers(app, agent, slug, [5] * LEAST)
    assert await measured(books, slug) == 5


async def test_what_was_not_measured_again_is_unknown(
    books: dict[str, Any], owner: Connection, app: Connection
) -> None:
    slug, agent = await a_model(owner), await new_agent(app, "10")
    await answers(app, agent, slug, [100] * LEAST)
    assert await measured(books, slug) == 100
    await owner.execute(
        """UPDATE model_latencies SET measured_at = now() - make_interval(secs => $1)
            WHERE slug = $2""",
        KNOWN_FOR_S + 1,
        slug,
    )
    known = Latencies(books["deps"].db, 1000)
    await known.read()
    assert slug not in known.by_model


async def test_a_latency_cap_is_compared_with_what_was_measured(
    books: dict[str, Any], owner: Connection, app: Connection
) -> None:
    slug, agent = await a_model(owner), await new_agent(app, "10")
    await answers(app, agent, slug, [100] * LEAST)
    known = {slug: await measured(books, slug) or 0}
    catalog = Catalog.of([model(slug, "1", "1", "0.9")])
    for cap, chosen in ((99, None), (100, slug)):
        decision = decided(asked(latency_cap_ms=cap), catalog, evidence=Evidence(latencies=known))
        assert (decision.chosen and decision.chosen.slug) == chosen
        assert decision.inputs["latencies"] == {slug: 100}


async def test_the_measured_are_read_again_while_their_reader_lives(
    books: dict[str, Any], owner: Connection, app: Connection
) -> None:
    deps: BooksDeps = books["deps"]
    slug, agent = await a_model(owner), await new_agent(app, "10")
    known = Latencies(deps.db, 0.01)
    await known.start()
    try:
        await answers(app, agent, slug, [100] * LEAST)
        await measure_latencies(books)
        async with asyncio.timeout(10):
            while slug not in known.by_model:
                await asyncio.sleep(0.01)
    finally:
        await known.aclose()
    assert known.by_model[slug] == 100
