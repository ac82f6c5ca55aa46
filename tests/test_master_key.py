"""A database keeps to the master key that it was first used with."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

import migrations
from shared.config import SettingsError
from shared.keys import agent_key_sealer
from shared.master_key import check_master_key
from tests.conftest import MASTER_KEY
from tests.test_start import SETTINGS, forked, one_line
from tests.workers.ledger_cases import new_agent


def another_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


@pytest_asyncio.fixture(loop_scope="session")
async def fresh_url(empty_database: str) -> AsyncIterator[str]:
    """A migrated database that nothing was sealed in yet, as the application."""
    await asyncio.to_thread(migrations.upgrade, empty_database)
    yield empty_database.replace("ainfera_owner@", "ainfera_app@")


async def test_the_first_key_is_the_databases_key(fresh_url: str) -> None:
    first = another_key()
    for _ in range(2):
        await check_master_key(fresh_url, first)
    with pytest.raises(SettingsError) as refused:
        await check_master_key(fresh_url, another_key())
    told = str(refused.value)
    assert told.startswith("AINFERA_MASTER_KEY is not the key ")
    for hint in ("secrets.env", "FLEET_HOME", "first"):
        assert hint in told
    assert first not in told
    await check_master_key(fresh_url, first)


async def test_of_two_keys_at_once_one_is_taken(fresh_url: str) -> None:
    ended = await asyncio.gather(
        *(check_master_key(fresh_url, another_key()) for _ in range(6)), return_exceptions=True
    )
    assert sum(end is None for end in ended) == 1
    assert all(end is None or isinstance(end, SettingsError) for end in ended)


async def test_a_database_from_before_is_asked_by_its_oldest_agent(
    fresh_url: str, empty_database: str
) -> None:
    owner = await asyncpg.connect(empty_database)
    try:
        agent = await new_agent(owner, funds="0")
        sealed = agent_key_sealer(MASTER_KEY).seal(b"a private key", UUID(agent.agent_id))
        await owner.execute("UPDATE agents SET private_key_sealed = $1", sealed)
        with pytest.raises(SettingsError, match="AINFERA_MASTER_KEY"):
            await check_master_key(fresh_url, another_key())
        assert await owner.fetchval("SELECT count(*) FROM master_key_proofs") == 0
        await check_master_key(fresh_url, MASTER_KEY)
        assert await owner.fetchval("SELECT count(*) FROM master_key_proofs") == 1
    finally:
        await owner.close()


@pytest.mark.parametrize("change", ["UPDATE {} SET sealed = ''", "DELETE FROM {}", "TRUNCATE {}"])
async def test_the_application_cannot_change_what_the_key_is_known_by(
    database_url: str, change: str
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(change.format("master_key_proofs"))
    finally:
        await connection.close()


@pytest.mark.parametrize("short", ["", "too short"])
async def test_a_key_that_cannot_seal_is_refused_before_anything_is_asked(short: str) -> None:
    with pytest.raises(SettingsError, match="AINFERA_MASTER_KEY"):
        await check_master_key("postgresql://nobody@nowhere.invalid/d", short)


def test_the_ingress_does_not_start_with_another_key(fresh_url: str, redis_url: str) -> None:
    asyncio.run(check_master_key(fresh_url, MASTER_KEY))
    stores = {"DATABASE_URL": fresh_url, "REDIS_URL": redis_url, "PORT": "0"}
    done = forked("ingress", **stores, AINFERA_MASTER_KEY=another_key())
    assert done.returncode == SETTINGS, done.stderr
    assert one_line(done.stderr).startswith("AINFERA_MASTER_KEY is not the key ")
    done = forked("ingress", **stores, AINFERA_MASTER_KEY="")
    assert done.returncode == SETTINGS, done.stderr
    assert one_line(done.stderr).startswith("AINFERA_MASTER_KEY ")
