"""The schema: it can be built and taken down, the models match it, and the roles are as said."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import select

import migrations
from migrations.run import MIGRATION_LOCK
from shared.attribution import CallAttributionRow
from shared.audit_log import AuditLeafRow
from shared.capture_guard import CaptureGuardRow
from shared.catalog import CatalogSnapshotRow, ModelRow
from shared.config import Settings
from shared.db import APP_ROLE, Connection, Database, connect, driver_dsn, owner_engine
from shared.dead_letters import DeadLetterRow
from shared.domain.ledger import PROVIDER_COST_ACCOUNT, AccountKind
from shared.kept import KeptCallRow
from shared.killswitch import KillswitchCallRow, KillswitchRow, KillswitchThresholdRow
from shared.latencies import ModelLatencyRow
from shared.learning import QualitySnapshotRow, RoutingRewardRow
from shared.master_key import MasterKeyProofRow
from shared.models import METADATA, AccountRow, LedgerEntryRow
from shared.operators import OperatorEventRow
from shared.policies import PolicyPublicationRow, PolicyVersionRow, RoutingGateRow
from shared.quotes import QuoteRow, QuoteUseRow
from shared.spending import KillswitchSpentRow, KillswitchWindowRow
from tests.workers.ledger_cases import call, ending, hold, new_agent
from tests.workers.letter_cases import burial

CHANGES = ("UPDATE {} SET created_at = now()", "DELETE FROM {}", "TRUNCATE {}")
APPEND_ONLY = (
    *("transfers", "routing_outcomes", "receipts", "audit_events"),
    *("routing_rewards", "quality_snapshots"),
)
LEARNED = """
INSERT INTO routing_rewards (inference_id, tenant_id, task_type, band, model, finish, code, json,
                             tools, checked, ended_at)
VALUES (new_id(), new_id(), 'chat', 'cost', 'm', 'error', 'none', 'none', 'none', false, now());
INSERT INTO quality_snapshots (terms, cells, hash) VALUES ('{}', '[]', '')
"""
# nouns whose tables are declared where their effects are
ELSEWHERE = (
    AuditLeafRow,
    CallAttributionRow,
    CaptureGuardRow,
    DeadLetterRow,
    KeptCallRow,
    KillswitchCallRow,
    KillswitchRow,
    KillswitchSpentRow,
    KillswitchThresholdRow,
    KillswitchWindowRow,
    MasterKeyProofRow,
    ModelLatencyRow,
    OperatorEventRow,
    PolicyPublicationRow,
    PolicyVersionRow,
    RoutingGateRow,
    QualitySnapshotRow,
    RoutingRewardRow,
    QuoteRow,
    QuoteUseRow,
    CatalogSnapshotRow,
    ModelRow,
)
SEAL_BROKEN = asyncpg.RestrictViolationError


@pytest_asyncio.fixture(loop_scope="session")
async def owner(owner_url: str) -> AsyncIterator[Connection]:
    connection = await connect(owner_url, None, "test")
    yield connection
    await connection.close()


async def things(url: str) -> list[tuple[str, str]]:
    """Everything that a migration can leave in the schema."""
    query = """
      SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
      UNION SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
      UNION SELECT 'type', typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
      ORDER BY 1, 2"""
    connection = await connect(url, None, "test")
    try:
        return [(row[0], row[1]) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_up_and_down_and_up_again_from_empty(empty_database: str) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database)
    first = await things(empty_database)
    assert ("function", "settle_inferences") in first
    await asyncio.to_thread(migrations.downgrade, empty_database, "base")
    left = {name for _, name in await things(empty_database) if "alembic" not in name}
    assert left == set()
    await asyncio.to_thread(migrations.upgrade, empty_database)
    assert await things(empty_database) == first


PLANTED = (
    # (owner/handle before, suffix after), oldest first
    ("a/x", ""),
    ("a/x", "-3"),
    ("a/x-2", ""),
    ("a/x", "-4"),
    ("a/x-2", "-2"),
    ("b/x", ""),
    ("a/x", "-5"),
)


async def test_handles_that_collided_before_they_were_unique_get_a_suffix(
    empty_database: str,
) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database, "0001")
    connection = await connect(empty_database, None, "test")
    try:
        for place, (name, _) in enumerate(PLANTED):
            agent = await new_agent(connection, funds="0")
            await connection.execute(
                """UPDATE agents SET canonical_uri = $2, did_web = $3,
                          created_at = now() + $4 * interval '1 second' WHERE id = $1::uuid""",
                agent.agent_id,
                f"ainfera.ai/{name}",
                f"did:web:ainfera.ai:{name.replace('/', ':')}",
                place,
            )
        await asyncio.to_thread(migrations.upgrade, empty_database)
        query = "SELECT canonical_uri, did_web FROM agents ORDER BY created_at"
        after = [tuple(row) for row in await connection.fetch(query)]
        assert after == [
            (
                f"ainfera.ai/{name}{suffix}",
                f"did:web:ainfera.ai:{name.replace('/', ':')}{suffix}",
            )
            for name, suffix in PLANTED
        ]
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("UPDATE agents SET canonical_uri = 'ainfera.ai/b/x'")
        # who was given a suffix keeps it: its card and its owner know it by that name
        await asyncio.to_thread(migrations.downgrade, empty_database, "0001")
        assert [tuple(row) for row in await connection.fetch(query)] == after
        await connection.execute("UPDATE agents SET canonical_uri = 'ainfera.ai/b/x'")
    finally:
        await connection.close()


async def test_a_dead_call_is_ended_before_the_schema_forgets_the_word(
    empty_database: str,
) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database)
    connection = await connect(empty_database, None, "test")
    try:
        agent, inference = await new_agent(connection), str(uuid4())
        await call(connection, "bury_inferences", burial(agent, inference, 4))
        with pytest.raises(asyncpg.CheckViolationError, match="dead letters"):
            await asyncio.to_thread(migrations.downgrade, empty_database, "0003")
        assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 1
        await connection.execute(
            "UPDATE dead_letters SET state = 'discarded', envelope = NULL, resolved_at = now()"
        )
        ended = ending(agent, inference, "0", attempt=5, receipt=None)
        await call(connection, "settle_inferences", ended)
        await asyncio.to_thread(migrations.downgrade, empty_database, "0003")
        # what the older functions do, they do again
        item = hold(agent, "1")
        await call(connection, "open_inferences", item)
        done = ending(agent, item["inference_id"], "0.5")
        assert (await call(connection, "settle_inferences", done))[0]["result"] == "SETTLED"
    finally:
        await connection.close()


async def test_two_processes_migrate_one_after_the_other(empty_database: str) -> None:
    """Both are made to wait for the lock first, so that they start at the very same moment."""
    command = (sys.executable, "-m", "migrations", "upgrade", "head")
    environment = {**os.environ, "MIGRATION_DATABASE_URL": empty_database}
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    gate = await connect(empty_database, None, "test")
    try:
        await gate.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        processes = [
            await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(2)
        ]
        for _ in range(600):
            if await gate.fetchval(waiting) == 2:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the processes did not come to the lock")
    finally:
        await gate.close()
    assert [await process.wait() for process in processes] == [0, 0]
    assert ("relation", "transfers") in await things(empty_database)


def differences(connection: SyncConnection) -> list[Any]:
    def compared(thing: Any, name: str, kind: str, reflected: bool, other: Any) -> bool:
        return not (kind == "table" and (thing.info.get("view") or name == "alembic_version"))

    options = {"compare_type": True, "compare_server_default": True, "include_object": compared}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


async def test_the_models_are_the_migrated_schema(owner_url: str) -> None:
    assert {row.__tablename__ for row in ELSEWHERE} <= METADATA.tables.keys()
    engine = owner_engine(owner_url)
    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


async def test_the_view_is_as_its_model_says(settings: Settings, app: Connection) -> None:
    agent = await new_agent(app, funds="3")
    db = Database(settings)
    try:
        async with db.everyone() as session:
            (entry,) = await session.scalars(
                select(LedgerEntryRow).where(LedgerEntryRow.account_id == agent.wallet_id)
            )
            usage = await session.get(AccountRow, PROVIDER_COST_ACCOUNT)
    finally:
        await db.aclose()
    assert (str(entry.amount), entry.kind) == ("3.000000000", "topup")
    assert entry.balance_after == entry.amount
    assert usage is not None
    assert usage.kind == AccountKind.PROVIDER_COST


async def test_the_application_is_neither_superuser_nor_owner(settings: Settings) -> None:
    connection = await Database(settings).connect_raw()
    try:
        role = await connection.fetchrow(
            """SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls FROM pg_roles
                WHERE rolname = current_user"""
        )
        owned = await connection.fetchval(
            """SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
                  AND pg_has_role(current_user, relowner, 'USAGE')"""
        )
        jit = await connection.fetchval("SHOW jit")
    finally:
        await connection.close()
    assert role is not None
    assert tuple(role) == (APP_ROLE, False, False, False, False)
    assert (owned, jit) == (0, "off")


async def test_the_owner_is_no_superuser_either(owner: Connection) -> None:
    query = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    assert await owner.fetchval(query) is False
    assert await owner.fetchval(
        "SELECT pg_get_userbyid(relowner) = current_user FROM pg_class WHERE relname = 'transfers'"
    )


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET created_at = now()", "DELETE FROM {}", "TRUNCATE {}"]
)
class TestAppendOnly:
    async def test_the_application_has_no_right_to(
        self, app: Connection, table: str, change: str
    ) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute(change.format(table))

    async def test_the_owner_is_refused(self, owner: Connection, table: str, change: str) -> None:
        """Even where no row would be met, and with rows that are there."""
        agent = await new_agent(owner)
        item = hold(agent, "1")
        await call(owner, "open_inferences", item)
        await call(owner, "settle_inferences", ending(agent, item["inference_id"], "0.5"))
        await owner.execute(LEARNED)
        count = await owner.fetchval(f"SELECT count(*) FROM {table}")
        assert count > 0
        with pytest.raises(SEAL_BROKEN, match="append-only"):
            await owner.execute(change.format(table))
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == count

    async def test_the_application_is_refused_even_with_the_right(
        self, owner: Connection, superuser_url: str, table: str, change: str
    ) -> None:
        """The triggers bind a superuser as well, also one that replays a replica."""
        connection = await asyncpg.connect(superuser_url)
        try:
            await connection.execute("SET session_replication_role = replica")
            with pytest.raises(SEAL_BROKEN, match="append-only"):
                await connection.execute(change.format(table))
        finally:
            await connection.close()


@pytest.mark.parametrize("table", ["tenants", "agents", "accounts", "inferences", "audit_heads"])
async def test_the_application_deletes_nothing(app: Connection, table: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute(f"DELETE FROM {table}")


async def test_the_application_cannot_lift_the_seal(app: Connection) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute("ALTER TABLE transfers DISABLE TRIGGER append_only")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute("SET session_replication_role = replica")


async def test_a_wallet_cannot_hold_more_than_it_has(app: Connection) -> None:
    """The last line of defence, below the functions."""
    agent = await new_agent(app, funds="1")
    with pytest.raises(asyncpg.CheckViolationError):
        await app.execute("UPDATE accounts SET held = 1.1 WHERE id = $1", agent.wallet_id)


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=/run/pg"),
        ("postgres://u:p@h:5433/d", "postgresql://u:p@h:5433/d"),
        ("postgresql+asyncpg://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
    ],
)
def test_the_usual_spellings_of_a_url_are_understood(url: str, dsn: str) -> None:
    assert driver_dsn(url) == dsn


@pytest.mark.parametrize("url", ["", "mysql://h/d", "/run/pg"])
def test_another_database_is_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL"):
        driver_dsn(url)


async def test_a_session_acts_for_its_tenant_in_each_transaction_and_not_after(
    settings: Settings,
) -> None:
    db = Database(settings)
    tenant, whom = uuid4(), text("SELECT current_setting('ainfera.tenant', true)")
    async with db.session(tenant) as session:
        assert await session.scalar(whom) == str(tenant)
        await session.commit()
        assert await session.scalar(whom) == str(tenant)
    for _ in range(20):  # whichever connection of the pool: nobody inherits the setting
        async with AsyncSession(db._callers) as unbound:
            assert not await unbound.scalar(whom)
    await db.aclose()
