"""What the database refuses of policy versions and publications, and what a caller may change."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

import migrations
from shared.acting import CALLER_ROLE, CallerConnection
from shared.config import Settings
from shared.db import APP_ROLE, Connection, Database, connect
from shared.domain.policy_version import PolicyVersion
from shared.policies import PolicyRefused, publish, set_preference_gate, store_version
from shared.policy_book import PolicyBook
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent

SEALED = asyncpg.RestrictViolationError
DENIED = asyncpg.InsufficientPrivilegeError


@pytest_asyncio.fixture(loop_scope="session")
async def owner(owner_url: str) -> AsyncIterator[Connection]:
    connection = await connect(owner_url, None, "test")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def app(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, APP_ROLE, "test")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Database]:
    opened = Database(settings)
    yield opened
    await opened.aclose()


async def stored(db: Database, name: str, **content: Any) -> str:
    async with db.everyone() as session:
        await store_version(session, PolicyVersion(name, **content), "test")
        await session.commit()
    return name


async def decided_under(connection: Connection, version: str) -> Agent:
    """A call whose decision named this version."""
    agent = await new_agent(connection, funds="10")
    item = hold(agent, "1")
    await call(connection, "open_inferences", item)
    end = ending(agent, item["inference_id"], "0.5")
    end["outcome"]["policy_version"] = version
    await call(connection, "settle_inferences", end)
    return agent


@pytest.mark.parametrize("table", ["policy_versions", "policy_publications"])
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET version = version", "DELETE FROM {}", "TRUNCATE {} CASCADE"]
)
async def test_nobody_changes_what_is_there(
    owner: Connection, app: Connection, table: str, change: str
) -> None:
    for connection, refusal in ((owner, SEALED), (app, DENIED)):
        with pytest.raises(refusal):
            await connection.execute(change.format(table))


async def test_a_version_may_go_only_while_nobody_has_had_it(
    owner: Connection, app: Connection, db: Database
) -> None:
    async def refused(name: str, change: str = "DELETE FROM") -> bool:
        words = f"{change} policy_versions WHERE version = $1"
        if change.startswith("UPDATE"):
            words = "UPDATE policy_versions SET created_by = 'me' WHERE version = $1"
        try:
            await owner.execute(words, name)
        except SEALED:
            return True
        return False

    unused = await stored(db, "unused-1")
    assert await refused(unused, "UPDATE")
    assert not await refused(unused)

    by_decision = await stored(db, "decided-1")
    await decided_under(app, by_decision)
    assert await refused(by_decision)

    by_tenant = await stored(db, "named-1")
    agent = await new_agent(app, funds="1")
    name_it = (
        "UPDATE tenants SET policy = jsonb_build_object('policy_version', $2::text) WHERE id = $1"
    )
    await app.execute(name_it, UUID(agent.tenant_id), by_tenant)
    assert await refused(by_tenant)

    published = await stored(db, "published-1")
    async with db.everyone() as session:
        await publish(session, published, "", "test")
        await publish(session, "flat-1", "", "test")
        await session.commit()
    assert await refused(published)


async def test_a_name_stands_for_one_content(db: Database) -> None:
    await stored(db, "one-1", default_output_tokens=5)
    await stored(db, "one-1", default_output_tokens=5)
    with pytest.raises(PolicyRefused, match="another name"):
        await stored(db, "one-1", default_output_tokens=6)
    async with db.everyone() as session:
        with pytest.raises(PolicyRefused, match="no version"):
            await publish(session, "nobodys", "", "test")


async def test_a_caller_changes_the_policy_of_its_tenant_and_nothing_else(
    app: Connection, caller_url: str
) -> None:
    ours, theirs = await new_agent(app, funds="1"), await new_agent(app, funds="1")
    caller = await connect(caller_url, CALLER_ROLE, "test", CallerConnection)
    assert isinstance(caller, CallerConnection)

    async def change(words: str) -> str:
        caller.acts_for = UUID(ours.tenant_id)
        async with caller.transaction():
            return await caller.execute(words)

    mine = """UPDATE tenants SET policy = '{"min_quality": "0.7"}'"""
    try:
        assert await change(mine) == "UPDATE 1"
        query = "SELECT policy::text FROM tenants WHERE id = $1"
        assert await app.fetchval(query, UUID(ours.tenant_id)) == '{"min_quality": "0.7"}'
        assert await app.fetchval(query, UUID(theirs.tenant_id)) == "{}"
        for words in (
            "UPDATE tenants SET id = id",
            "UPDATE tenants SET name = 'x'",
            "UPDATE tenants SET daily_cap_usd = NULL",
            "DELETE FROM tenants",
            f"INSERT INTO tenants (id, name) VALUES ('{uuid4()}', 'x')",
            "UPDATE policy_versions SET created_by = 'x'",
            "INSERT INTO policy_publications SELECT 99, version FROM policy_publications",
            "SELECT actor FROM policy_publications",
            "SELECT * FROM routing_gates",
        ):
            with pytest.raises(DENIED):
                await change(words)
        assert await change("SELECT id FROM tenants FOR UPDATE") == "SELECT 1"
        assert await change("SELECT seq, version FROM policy_publications") != "SELECT 0"
    finally:
        await caller.close()


async def test_the_book_reads_again_when_it_may_have_missed_something(
    db: Database, settings: Settings
) -> None:
    book = PolicyBook(db, preference_live=True)
    await book.start()
    try:
        assert (book.active, book.preference_live) == ("flat-1", True)
        edition = book.edition
        async with db.everyone() as session:
            await set_preference_gate(session, False, "", "test")
            await publish(session, "task-floors-1", "", "test")
            await session.commit()
        book.obey({"type": "killswitch", "scope": "all", "engaged": False})
        assert not book._rereading.is_stale
        book.missed()
        async with asyncio.timeout(20):
            while book.edition == edition:
                await asyncio.sleep(0.01)
        assert (book.active, book.preference_live) == ("task-floors-1", False)
        assert book.policy_of({}, None).floor_of("code") is not None
    finally:
        await book.aclose()


async def test_a_schema_without_versions_is_not_gone_back_to_while_they_are_used(
    empty_database: str,
) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database)
    connection = await connect(empty_database, None, "test")
    try:
        await connection.execute(
            """INSERT INTO policy_publications (seq, version, before, act, actor)
               VALUES (2, 'task-floors-1', 'flat-1', 'publish', 'test')"""
        )
        with pytest.raises(Exception, match="policy versions are in use"):
            await asyncio.to_thread(migrations.downgrade, empty_database, "0010")
        await connection.execute(
            """INSERT INTO policy_publications (seq, version, before, act, actor)
               VALUES (3, 'flat-1', 'task-floors-1', 'rollback', 'test')"""
        )
        await asyncio.to_thread(migrations.downgrade, empty_database, "0010")
        rights = """SELECT column_name FROM information_schema.role_column_grants
                     WHERE grantee = 'ainfera_caller' AND table_name = 'tenants'
                       AND privilege_type = 'UPDATE'"""
        assert [row[0] for row in await connection.fetch(rights)] == ["id"]
        policies = "SELECT polname FROM pg_policy WHERE polrelid = 'tenants'::regclass ORDER BY 1"
        found = [row[0] for row in await connection.fetch(policies)]
        assert found == ["everyone", "only_locked", "own_tenant"]
        await asyncio.to_thread(migrations.upgrade, empty_database)
    finally:
        await connection.close()
