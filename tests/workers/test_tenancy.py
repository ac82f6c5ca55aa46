"""The second wall: what the database shows and lets do in the role that serves callers.

Most of it is asked with every right there is on every table (`unlocked`), so that it is row-level
security that answers, and not the rights that callers lack anyway.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

import migrations
from shared.acting import CALLER_ROLE, CallerConnection
from shared.config import Settings, StartError
from shared.db import APP_ROLE, Connection, Database, connect
from shared.embedded import embedded_servers
from shared.kept import KeptCalls
from shared.preflight import Unreachable, check_callers
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent
from tests.workers.letter_cases import burial, envelope_of

DENIED = asyncpg.InsufficientPrivilegeError
# the tables whose rows are a tenant's otherwise than by a column `tenant_id`
BY_AGENT = {"audit_heads", "audit_logged"}
BOUND_OTHERWISE = {"tenants"} | BY_AGENT
BOUND = f"""
SELECT c.relname FROM pg_class c
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
   AND (c.relname IN ('{"', '".join(sorted(BOUND_OTHERWISE))}') OR EXISTS (
     SELECT FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))
 ORDER BY 1"""
# what a caller may do beyond reading; a new right is thought about here first
_WRITTEN = """SELECT string_agg(column_name, ', ') FROM information_schema.columns
               WHERE table_name = $1 AND is_generated = 'NEVER'"""
RIGHTS = {
    ("accounts", "INSERT"),
    ("accounts", "UPDATE (id)"),  # to lock: `only_locked` refuses every change
    ("agents", "INSERT"),
    ("agents", "UPDATE (daily_cap_usd)"),
    ("agents", "UPDATE (min_quality)"),
    ("agents", "UPDATE (per_call_cap_usd)"),
    ("api_keys", "INSERT"),
    ("api_keys", "UPDATE"),
    ("audit_events", "INSERT"),
    ("audit_heads", "INSERT"),
    ("audit_heads", "UPDATE"),
    ("kept_calls", "DELETE"),
    ("kept_calls", "INSERT"),
    ("kept_calls", "UPDATE"),
    ("operator_events", "INSERT"),
    ("tenants", "UPDATE (policy)"),  # and to lock, which takes a right to change something
    ("quote_uses", "DELETE"),  # a call that was not accepted gives its quote back
    ("quote_uses", "INSERT"),
    ("quote_uses", "UPDATE"),
    ("quotes", "INSERT"),
}


@dataclass(frozen=True, slots=True)
class Two:
    """Two tenants with rows in every table that has rows of tenants when this is written."""

    ours: Agent
    theirs: Agent


async def populated(connection: Connection, kept: KeptCalls) -> Agent:
    """A tenant that has left something in each table."""
    agent = await new_agent(connection, funds="10")
    item = hold(agent, "1")
    await call(connection, "open_inferences", item)
    await call(connection, "settle_inferences", ending(agent, item["inference_id"], "0.5"))
    await call(connection, "bury_inferences", burial(agent, str(uuid4()), 4))
    await kept.keep(envelope_of(agent), "/v1/inference", "k", stream=False, background=False)
    await connection.execute(
        "INSERT INTO api_keys (id, tenant_id, key_hash) VALUES ($1, $2, $3)",
        uuid4(),
        UUID(agent.tenant_id),
        uuid4().bytes,
    )
    await connection.execute(
        "INSERT INTO call_attributions (inference_id, tenant_id, agent_id) VALUES ($1, $2, $3)",
        uuid4(),
        UUID(agent.tenant_id),
        UUID(agent.agent_id),
    )
    await connection.execute(
        """WITH switch AS (INSERT INTO killswitches (scope, engaged_by)
                           VALUES ($1::text, 'test') RETURNING id)
           INSERT INTO killswitch_calls SELECT id, $2, $1::uuid, 1 FROM switch""",
        agent.tenant_id,
        uuid4(),
    )
    await connection.execute(
        """INSERT INTO routing_rewards (inference_id, tenant_id, task_type, band, model, finish,
                                        code, json, tools, checked, ended_at)
           VALUES ($1, $2, 'chat', 'balanced', 'm', 'error', 'none', 'none', 'none', false,
                   now())""",
        uuid4(),
        UUID(agent.tenant_id),
    )
    await connection.execute(
        """WITH quote AS (INSERT INTO quotes (id, tenant_id, agent_id, request_hash, routed,
             model_slug, ruleset_hash, catalog_hash, terms, expires_at)
             VALUES ($1, $2, $3, '', true, 'm', 'r', 'c', '{}', now()) RETURNING id)
           INSERT INTO quote_uses (quote_id, tenant_id, inference_id)
             SELECT id, $2, $1 FROM quote""",
        uuid4(),
        UUID(agent.tenant_id),
        UUID(agent.agent_id),
    )
    await connection.execute("INSERT INTO audit_logged VALUES ($1, 0)", UUID(agent.agent_id))
    return agent


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def two(database_url: str, make_kept: KeptCalls) -> Two:
    connection = await connect(database_url, APP_ROLE, "test")
    try:
        return Two(await populated(connection, make_kept), await populated(connection, make_kept))
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def make_kept(database_url: str, caller_url: str) -> AsyncIterator[KeptCalls]:
    made = Settings(database_url=database_url, caller_database_url=caller_url, master_key="k" * 32)
    db = Database(made)
    yield KeptCalls(db, made)
    await db.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def caller(caller_url: str) -> AsyncIterator[CallerConnection]:
    """As the ingress connects for its callers."""
    connection = await connect(caller_url, CALLER_ROLE, "test", CallerConnection)
    assert isinstance(connection, CallerConnection)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def unlocked(superuser_url: str) -> AsyncIterator[Connection]:
    """Callers have every right on every table while this lasts; it is the superuser."""
    connection = await asyncpg.connect(superuser_url)
    before = (
        "CREATE TABLE rights AS SELECT oid, relacl FROM pg_class WHERE relkind IN ('r', 'p', 'v')"
    )
    await connection.execute(before)
    await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {CALLER_ROLE}")
    yield connection
    await connection.execute(
        "UPDATE pg_class c SET relacl = r.relacl FROM rights r WHERE r.oid = c.oid"
    )
    await connection.execute("DROP TABLE rights")
    await connection.close()


async def rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(f"SELECT t.* FROM {table} t")]


def owners(table: str, found: list[dict[str, Any]]) -> set[str]:
    return {str(row[column_of(table)]) for row in found}


def column_of(table: str) -> str:
    """Whose a row is."""
    return "id" if table == "tenants" else "agent_id" if table in BY_AGENT else "tenant_id"


def whose(table: str, agent: Agent) -> str:
    return agent.agent_id if table in BY_AGENT else agent.tenant_id


async def bound_tables(connection: Connection) -> list[str]:
    return [row[0] for row in await connection.fetch(BOUND)]


class TestEveryTable:
    async def test_is_bound_to_its_tenant(self, unlocked: Connection) -> None:
        """A table that a later migration adds is bound by `bind_to_tenant`, or found here."""
        expected = {
            ("everyone", f"{APP_ROLE},ainfera_owner", True, "*", "true", "true"),
            ("own_tenant", CALLER_ROLE, True, "*", "mine", "mine"),
        }
        tables = await bound_tables(unlocked)
        assert len(tables) >= 11
        for table in tables:
            forced = await unlocked.fetchrow(
                "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = $1", table
            )
            assert forced is not None
            assert tuple(forced) == (True, True), table
            policies = await unlocked.fetch(
                """SELECT p.polname, array_to_string(ARRAY(
                            SELECT r.rolname FROM pg_roles r WHERE r.oid = ANY (p.polroles)
                             ORDER BY 1), ','), p.polpermissive, p.polcmd::text,
                          pg_get_expr(p.polqual, p.polrelid),
                          pg_get_expr(p.polwithcheck, p.polrelid)
                     FROM pg_policy p WHERE p.polrelid = $1::regclass AND p.polpermissive""",
                table,
            )
            found = set()
            for name, roles, permissive, command, using, check in policies:
                mine = using == check and "acting_tenant()" in using
                shown = ("mine", "mine") if mine else (using, check)
                found.add((name, roles, permissive, command, *shown))
            assert found == expected, table

    async def test_shows_a_caller_its_own_rows_only(
        self, two: Two, caller: CallerConnection, unlocked: Connection
    ) -> None:
        for table in await bound_tables(unlocked):
            everybodys = owners(table, await rows(unlocked, table))
            assert {whose(table, two.ours), whose(table, two.theirs)} <= everybodys, table
            caller.acts_for = UUID(two.ours.tenant_id)
            async with caller.transaction():
                assert owners(table, await rows(caller, table)) == {whose(table, two.ours)}, table
        for view in ("ledger_entries",):
            caller.acts_for = UUID(two.ours.tenant_id)
            async with caller.transaction():
                assert owners(view, await rows(caller, view)) == {two.ours.tenant_id}

    async def test_shows_nothing_to_nobody(
        self, two: Two, caller: CallerConnection, unlocked: Connection
    ) -> None:
        """Before anybody was named, and after somebody was: the setting ends with its
        transaction."""
        for _ in range(2):
            for table in await bound_tables(unlocked):
                assert await rows(caller, table) == [], table
            caller.acts_for = UUID(two.ours.tenant_id)
            async with caller.transaction():
                assert await rows(caller, "agents") != []

    async def test_takes_no_row_for_another_tenant(
        self, two: Two, caller: CallerConnection, unlocked: Connection
    ) -> None:
        await unlocked.execute("SET session_replication_role = replica")
        for table in await bound_tables(unlocked):
            (theirs,) = [
                row[0]
                for row in await unlocked.fetch(f"SELECT to_jsonb(t)::text FROM {table} t")
                if whose(table, two.theirs) in row[0]
            ][:1]
            columns = await unlocked.fetchval(_WRITTEN, table)
            record = f"jsonb_populate_record(NULL::{table}, $1)"
            insert = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {record}"
            caller.acts_for = UUID(two.ours.tenant_id)
            with pytest.raises(DENIED, match="row-level security"):
                async with caller.transaction():
                    await caller.execute(insert, theirs)

    async def test_gives_no_row_to_another_tenant_and_takes_none_from_it(
        self, two: Two, caller: CallerConnection, unlocked: Connection
    ) -> None:
        for table in await bound_tables(unlocked):
            column = column_of(table)
            mine, theirs = UUID(whose(table, two.ours)), UUID(whose(table, two.theirs))
            for change in (
                f"UPDATE {table} SET {column} = $1 WHERE {column} = $2",
                f"DELETE FROM {table} WHERE {column} = $2 AND $1::uuid IS NOT NULL",
            ):
                caller.acts_for = UUID(two.ours.tenant_id)
                try:
                    async with caller.transaction():
                        done = await caller.execute(change, mine, theirs)
                except asyncpg.RestrictViolationError:  # append-only: nobody's rows change
                    continue
                assert done.split()[-1] == "0", table
            caller.acts_for = UUID(two.ours.tenant_id)
            with pytest.raises((DENIED, asyncpg.RestrictViolationError)):
                async with caller.transaction():
                    await caller.execute(
                        f"UPDATE {table} SET {column} = $1 WHERE {column} = $2", theirs, mine
                    )

    async def test_is_not_seen_through_a_view_or_a_function_of_the_owner(
        self, unlocked: Connection
    ) -> None:
        """Both would look with their owner's eyes, and the owner's policy is to see all."""
        views = await unlocked.fetch(
            """SELECT relname FROM pg_class WHERE relkind IN ('v', 'm')
                  AND relnamespace = 'public'::regnamespace
                  AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)"""
        )
        functions = await unlocked.fetch(
            """SELECT proname FROM pg_proc WHERE prosecdef
                  AND pronamespace = 'public'::regnamespace"""
        )
        assert (views, functions) == ([], [])


class TestTheCallersRole:
    async def test_is_nobody_special(self, caller: CallerConnection) -> None:
        role = await caller.fetchrow(
            """SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication,
                      (SELECT count(*) FROM pg_auth_members m WHERE m.member = r.oid),
                      (SELECT count(*) FROM pg_shdepend d WHERE d.refobjid = r.oid
                          AND d.deptype = 'o')
                 FROM pg_roles r WHERE rolname = session_user"""
        )
        assert role is not None
        assert tuple(role) == (CALLER_ROLE, *(False,) * 5, 0, 0)

    @pytest.mark.parametrize(
        "statement",
        [
            f"SET ROLE {APP_ROLE}",
            "SET ROLE ainfera_owner",
            f"SET SESSION AUTHORIZATION {APP_ROLE}",
            "ALTER TABLE agents DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE agents NO FORCE ROW LEVEL SECURITY",
            "DROP POLICY own_tenant ON agents",
            "CREATE POLICY mine ON agents TO ainfera_caller USING (true)",
            "SELECT bind_to_tenant('models')",
            f"ALTER ROLE {CALLER_ROLE} BYPASSRLS",
            "GRANT ainfera_app TO ainfera_caller",
            "CREATE TABLE agents_too ()",
            "SET session_replication_role = replica",
            "UPDATE accounts SET balance = 1000000",
            "INSERT INTO transfers SELECT * FROM transfers",
            "SELECT * FROM operator_events",
            "SELECT * FROM killswitches",
            "SELECT * FROM master_key_proofs",
            "UPDATE agents SET tenant_id = tenant_id",
        ],
    )
    async def test_cannot_get_over_the_wall(self, caller: CallerConnection, statement: str) -> None:
        with pytest.raises(DENIED):
            await caller.execute(statement)

    async def test_cannot_switch_the_wall_off(self, two: Two, caller: CallerConnection) -> None:
        await caller.execute("SET row_security = off")
        with pytest.raises(DENIED, match="row-level security"):
            await caller.fetch("SELECT * FROM agents")

    async def test_has_these_rights_and_no_others(self, caller: CallerConnection) -> None:
        granted = await caller.fetch(
            """SELECT table_name, privilege_type FROM information_schema.role_table_grants
                WHERE grantee = $1 AND privilege_type <> 'SELECT'
               UNION
               SELECT g.table_name, format('%s (%s)', privilege_type, column_name)
                 FROM information_schema.role_column_grants g
                WHERE grantee = $1 AND privilege_type <> 'SELECT' AND NOT EXISTS (
                  SELECT FROM information_schema.role_table_grants t
                   WHERE (t.grantee, t.table_name, t.privilege_type)
                       = (g.grantee, g.table_name, g.privilege_type))""",
            CALLER_ROLE,
        )
        assert {tuple(row) for row in granted} == RIGHTS

    async def test_makes_no_wallet_with_money_in_it(
        self, two: Two, caller: CallerConnection
    ) -> None:
        insert = "INSERT INTO accounts (id, tenant_id, balance) VALUES ($1, $2, $3)"
        caller.acts_for = tenant = UUID(two.ours.tenant_id)
        with pytest.raises(DENIED, match="born_empty"):
            async with caller.transaction():
                await caller.execute(insert, uuid4(), tenant, 1)
        caller.acts_for = tenant
        async with caller.transaction():
            assert await caller.execute(insert, uuid4(), tenant, 0) == "INSERT 0 1"

    async def test_locks_its_wallet_and_changes_nothing_of_it(
        self, two: Two, caller: CallerConnection
    ) -> None:
        caller.acts_for = tenant = UUID(two.ours.tenant_id)
        async with caller.transaction():
            lock = "SELECT id FROM accounts WHERE id = $1 FOR UPDATE"
            assert await caller.fetchval(lock, two.ours.wallet_id) == two.ours.wallet_id
            assert await caller.fetchval(lock, two.theirs.wallet_id) is None
        caller.acts_for = tenant
        with pytest.raises(DENIED, match="only_locked"):
            async with caller.transaction():
                await caller.execute("UPDATE accounts SET id = id")

    async def test_hides_no_table_behind_a_temporary_one(self, empty_database: str) -> None:
        """On a database as the migration leaves it: a copy of one has no rights of its own."""
        await asyncio.to_thread(migrations.upgrade, empty_database)
        url = empty_database.replace("ainfera_owner@", f"{CALLER_ROLE}@")
        connection = await connect(url, CALLER_ROLE, "test")
        try:
            with pytest.raises(DENIED, match="temporary"):
                await connection.execute("CREATE TEMPORARY TABLE agents (id uuid)")
        finally:
            await connection.close()


async def test_what_works_for_all_tenants_sees_them_all(two: Two, settings: Settings) -> None:
    db = Database(settings)
    try:
        found = {str(row.id) for row in await db.run("SELECT id FROM tenants")}
        assert {two.ours.tenant_id, two.theirs.tenant_id} <= found
        mine = await db.run_for(UUID(two.ours.tenant_id), "SELECT id FROM tenants")
        assert [str(row.id) for row in mine] == [two.ours.tenant_id]
    finally:
        await db.aclose()


async def test_begins_and_names_whom_it_acts_for_in_one_round_trip(
    two: Two, caller: CallerConnection
) -> None:
    asked: list[Any] = []
    caller.add_query_logger(lambda record: asked.append(record.query))
    caller.acts_for = tenant = UUID(two.ours.tenant_id)
    async with caller.transaction():
        await caller.fetch("SELECT 1")
    async with caller.transaction():
        await caller.fetch("SELECT 1")
    await asyncio.sleep(0)  # the driver tells its loggers after the fact
    begun = f"BEGIN; SET LOCAL ainfera.tenant = '{tenant}';"
    assert asked == [begun, "SELECT 1", "COMMIT;", "BEGIN;", "SELECT 1", "COMMIT;"]


async def test_a_login_that_may_only_become_it_serves_too(settings: Settings, two: Two) -> None:
    """Where no address of its own was set: weaker, for such a session can become itself again."""
    shared = settings.model_copy(update={"caller_database_url": ""})
    await check_callers(shared.database_url, "")
    db = Database(shared)
    try:
        mine = await db.run_for(UUID(two.ours.tenant_id), "SELECT id, current_user FROM tenants")
        assert [(str(row.id), row.current_user) for row in mine] == [
            (two.ours.tenant_id, CALLER_ROLE)
        ]
    finally:
        await db.aclose()


async def test_an_address_that_holds_callers_to_nothing_is_refused_at_the_start(
    database_url: str, owner_url: str, superuser_url: str, caller_url: str
) -> None:
    await check_callers(database_url, caller_url)
    with pytest.raises(Unreachable, match=r"CALLER_DATABASE_URL: .*GRANT ainfera_caller") as told:
        await check_callers(database_url, owner_url)
    assert "\n" not in str(told.value)
    superuser = await asyncpg.connect(superuser_url)
    try:
        await superuser.execute("ALTER TABLE tenants DISABLE ROW LEVEL SECURITY")
        with pytest.raises(Unreachable, match="held to their own rows"):
            await check_callers(database_url, caller_url)
    finally:
        await superuser.execute("ALTER TABLE tenants ENABLE ROW LEVEL SECURITY")
        await superuser.close()


async def test_an_older_server_gets_the_role_or_is_told_who_can_make_it(tmp_path: Path) -> None:
    """The roles belong to the server, so this is one of its own."""
    with embedded_servers(tmp_path, valkey=False, durable=False) as servers:
        superuser = await asyncpg.connect(servers.superuser_url)
        try:
            await superuser.execute(f"DROP OWNED BY {CALLER_ROLE}")
            database = "REVOKE ALL ON DATABASE ainfera FROM ainfera_caller"
            await superuser.execute(database)
            await superuser.execute(f"DROP ROLE {CALLER_ROLE}")
            with pytest.raises(StartError, match="CREATE ROLE ainfera_caller LOGIN"):
                await asyncio.to_thread(migrations.upgrade, servers.owner_url)
            await superuser.execute("ALTER ROLE ainfera_owner CREATEROLE")
            await asyncio.to_thread(migrations.upgrade, servers.owner_url)
            await check_callers(servers.app_url, "")
        finally:
            await superuser.close()
