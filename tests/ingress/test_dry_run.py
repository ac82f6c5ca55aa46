"""What a dry run says of a policy that counts on observed qualities, before anybody has had it."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingress.deps import Deps
from shared.db import APP_ROLE, connect
from shared.domain.learning import Tally, Terms, estimates, snapshot_hash
from tests.ingress.conftest import SignUp, leave_call
from tests.test_cli import fleet

_KEEP = """
INSERT INTO quality_snapshots (terms, cells, hash) VALUES ($1::jsonb, $2::jsonb, $3)
RETURNING version
"""


async def learn(database_url: str, task_type: str, **good: int) -> int:
    """Keep a snapshot as the books worker does: of a hundred answers of each model so many good."""
    terms = Terms()
    slugs = {model.replace("_", "-"): many for model, many in good.items()}
    tallies = [Tally(task_type, slug, "balanced", 0, 100, n, 100) for slug, n in slugs.items()]
    found = estimates(tallies, terms)
    kept = (orjson.dumps(x).decode() for x in (terms.to_json(), [e.to_json() for e in found]))
    connection = await connect(database_url, APP_ROLE, "test")
    version: int = await connection.fetchval(_KEEP, *kept, snapshot_hash(terms, found))
    await connection.close()
    return version


@pytest.fixture
def documents(tmp_path: Path) -> tuple[str, str]:
    """Two versions that differ in nothing but where qualities come from."""
    paths = []
    for name, source in (("by-prior", "prior"), ("by-answers", "empirical")):
        document = tmp_path / f"{name}.toml"
        document.write_text(f'version = "{name}"\nq_source = "{source}"\n')
        paths.append(str(document))
    return paths[0], paths[1]


async def test_it_tries_the_newest_qualities_and_says_which(
    sign_up: SignUp, deps: Deps, database_url: str, documents: tuple[str, str]
) -> None:
    ours = await sign_up()
    left = await leave_call(database_url, deps, ours)
    query = "SELECT task_type, chosen_model_slug FROM routing_outcomes WHERE inference_id = :id"
    (row,) = await deps.db.run(query, id=left.inference_id)
    task_type, chosen = row.task_type, row.chosen_model_slug
    told = {"DATABASE_URL": deps.settings.database_url, "REDIS_URL": deps.settings.redis_url}

    async def compared(before: str, after: str) -> Any:
        tried = ("policy", "compare", before, after, "--tenant", ours["tenant_id"], "--json")
        done = await asyncio.to_thread(fleet, *tried, **told)
        assert done.exit_code == 0, done.output
        return orjson.loads(done.stdout)

    by_prior, by_answers = documents
    unlearnt = await compared(by_prior, by_answers)
    assert (unlearnt["changed"], unlearnt["quality_snapshot"]) == (0, {"version": 0, "calls": 0})
    assert "nothing has been learnt" in unlearnt["notes"][0]

    await learn(database_url, task_type, **{chosen.replace("-", "_"): 97})
    newest = await learn(database_url, task_type, **{chosen.replace("-", "_"): 20})
    tried = await compared(by_prior, by_answers)
    assert tried["changed"] == 1
    assert tried["moves"][0]["from"] == chosen != tried["moves"][0]["to"]
    assert tried["quality_snapshot"] == {"version": newest, "calls": 1}
    assert f"snapshot {newest}" in tried["notes"][0]
    assert (await compared(by_answers, by_prior))["changed"] == 1

    # where nobody counts on them they are not even read
    unasked = await compared(by_prior, "flat-1")
    assert (unasked["changed"], unasked["quality_snapshot"], unasked["notes"]) == (0, None, [])
