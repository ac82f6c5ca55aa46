"""`fleet learning report`: from recorded calls to plain words, and to JSON."""

import asyncio
from uuid import UUID

import orjson
import pytest_asyncio

from shared.catalog import load_catalog, seed_catalog
from shared.db import APP_ROLE, connect
from tests.bench.learning import Kind, a_day
from tests.test_cli import fleet
from tests.workers.ledger_cases import call, ending, hold, new_agent, outcome

# The hash that holds calls out goes by their ids, so these are the same in each run.
KINDS = (Kind("code", 1, worst=0.2, others=1.0),)
CALLS = 400


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def recorded(database_url: str, owner_url: str) -> str:
    """A day's calls with their rewards, as the system itself would have written them."""
    catalog = load_catalog()
    await seed_catalog(owner_url)
    db = await connect(database_url, APP_ROLE, "test")
    await db.execute(
        "INSERT INTO catalog_snapshots (hash, models) VALUES ($1, $2::jsonb)"
        " ON CONFLICT DO NOTHING",
        catalog.hash,
        orjson.dumps(catalog.to_json()).decode(),
    )
    agent = await new_agent(db, "1000")
    for number, told in enumerate(a_day(catalog, 3, CALLS, KINDS)):
        inference = str(UUID(int=number + 1))
        decision = {"terms": told.terms, "catalog_hash": told.catalog_hash, "outcomes": []}
        how = {**outcome("0"), "chosen_model_slug": told.chosen, "decision": decision}
        await call(db, "open_inferences", hold(agent, "1", inference))
        await call(db, "settle_inferences", ending(agent, inference, "0", outcome=how))
        await db.execute(
            """INSERT INTO routing_rewards (inference_id, tenant_id, task_type, band, model, finish,
                                            code, json, tools, checked, reward, ended_at)
               VALUES ($1, $2, 'code', 'balanced', $3, 'by_itself', 'passed', 'none', 'none', true,
                       $4, now())""",
            UUID(inference),
            UUID(agent.tenant_id),
            told.model,
            told.reward,
        )
    await db.close()
    return database_url


async def test_it_says_what_the_records_say(recorded: str, redis_url: str) -> None:
    told = {"DATABASE_URL": recorded, "REDIS_URL": redis_url, "EMPIRICAL_MIN_SUPPORT": "10"}
    text = await asyncio.to_thread(fleet, "learning", "report", **told)
    answer = await asyncio.to_thread(fleet, "learning", "report", "--json", **told)
    few = await asyncio.to_thread(fleet, "learning", "report", "--calls", "15", **told)

    assert text.exit_code == 0, text.stderr
    said = orjson.loads(answer.stdout)
    assert said["calls"]["fit"] + said["calls"]["held_out"] == CALLS
    (cell,) = said["cells"]
    assert (cell["from"], cell["method"]) == ("gemini-3-1-pro", "drawn at random")
    assert text.stdout.startswith("**Supported.**" if said["supported"] else "**Not supported")
    assert "| code | balanced | gemini-3-1-pro |" in text.stdout
    assert few.stdout.startswith("**Not supported: too few.**")
