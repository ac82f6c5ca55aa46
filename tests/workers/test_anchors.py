"""The anchors' tag after the migration of data, from whatever the rows said before it."""

import asyncio

import migrations
from shared.catalog import seed_catalog
from shared.db import Connection, connect

TAG = "routing_backend_v1_lock"
ANCHORS = {"mistral-large-3", "gemini-3-1-pro", "grok-4", "gpt-5-5", "claude-opus-4-7"}
# what rows may say at the revision before: the old name, none, another's, and on a wrong model
PLANTED = {
    "mistral-large-3": "aamc_v1_lock",
    "gemini-3-1-pro": "aamc_v1_lock",
    "grok-4": None,
    "gpt-5-5": "AAMC_V1_LOCK (2025)",
    "claude-opus-4-7": TAG,
    "not-an-anchor": "aamc_v1_lock",
    "nor-this": TAG,
    "estimated": "operator_estimate",
    "silent": None,
}
_PLANT = """
INSERT INTO models (slug, brand, provider, provider_model_id, display_name, context_window,
                    max_output_tokens, aa_index_source)
VALUES ($1, 'b', 'p', $1, $1, 1, 1, $2)
"""


async def sources(owner: Connection) -> dict[str, str | None]:
    rows = await owner.fetch("SELECT slug, aa_index_source FROM models")
    return {row["slug"]: row["aa_index_source"] for row in rows}


async def test_exactly_the_five_bear_it_and_nothing_has_the_old_name(empty_database: str) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database, "0015")
    owner = await connect(empty_database, None, "test")
    try:
        await owner.executemany(_PLANT, [*PLANTED.items()])
        await asyncio.to_thread(migrations.upgrade, empty_database, "0016")
        after = await sources(owner)
        assert {slug for slug, source in after.items() if source == TAG} == ANCHORS
        assert not any("aamc" in (source or "").lower() for source in after.values())
        others = {"not-an-anchor": None, "nor-this": None, "silent": None}
        assert {slug: after[slug] for slug in others} == others
        assert after["estimated"] == "operator_estimate"

        await asyncio.to_thread(migrations.downgrade, empty_database, "0015")
        assert await sources(owner) == after, "going back changes nothing"
        await asyncio.to_thread(migrations.upgrade, empty_database)
        await seed_catalog(empty_database)
        seeded = await sources(owner)
        assert {slug for slug, source in seeded.items() if source == TAG} == ANCHORS
    finally:
        await owner.close()


async def test_seeding_repairs_a_row_that_came_back(empty_database: str) -> None:
    """A dump of an older system that is restored behind the migration."""
    await asyncio.to_thread(migrations.upgrade, empty_database)
    owner = await connect(empty_database, None, "test")
    try:
        await owner.execute(_PLANT, "grok-4", "aamc_v1_lock")
        await seed_catalog(empty_database)
        assert (await sources(owner))["grok-4"] == TAG
    finally:
        await owner.close()
