"""The log's one writer: complete, in one transaction, never two histories, and exported."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from shared.audit_log import consistency_proof, inclusion_proof, leaf_of, newest_checkpoint
from shared.config import Settings
from shared.db import APP_ROLE, TRANSIENT, Connection, Database, connect
from shared.domain.checkpoint import entry, open_note
from shared.domain.merkle import leaf_hash, verify_consistency, verify_inclusion
from shared.keys import SealBroken
from shared.log_key import LogKey, check_signature, log_key
from shared.metrics import FLEET
from tests.workers.ledger_cases import Agent, new_agent
from tests.workers.log_cases import verified, witness
from workers import checkpoints
from workers.checkpoints import LOG_LOCK, Checkpointer
from workers.exports import FileExport, HttpExport, read_exported
from workers.settings import audit_exports

UNDER_LOCK = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
   AND classid = ($1::bigint >> 32)::int::oid AND objid = ($1::bigint & 4294967295)::oid AND granted
"""


def refused(reason: str) -> float:
    return FLEET.get_sample_value("ainfera_audit_signing_refused_total", {"reason": reason}) or 0


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings)
    yield database
    await database.aclose()


@pytest.fixture
def checkpointer(settings: Settings, db: Database) -> Checkpointer:
    return Checkpointer(settings, db, [])


@pytest_asyncio.fixture(loop_scope="session")
async def agent(app: Connection) -> Agent:
    return await new_agent(app, "0")


async def size(db: Database) -> int:
    async with db.everyone() as s:
        newest = await newest_checkpoint(s)
    return newest.size if newest is not None else 0


async def test_every_event_gets_a_place_under_a_signed_head(
    app: Connection, db: Database, settings: Settings, checkpointer: Checkpointer, agent: Agent
) -> None:
    other = await new_agent(app, "0")
    await checkpointer.round()
    await witness(app, agent, 3)
    await witness(app, other, 2)
    assert await checkpointer.round() == 5
    await witness(app, agent, 2)
    assert await checkpointer.round() == 2
    assert await checkpointer.round() == 0
    async with db.everyone() as s:
        key = (await log_key(s, settings)).verifier
        row = await newest_checkpoint(s)
        assert row is not None
        head = open_note(row.note, key, check_signature)
        query = "SELECT seq, event_hash FROM audit_events WHERE agent_id = $1::uuid"
        for owner, events in ((agent, 5), (other, 2)):
            rows = await app.fetch(query, owner.agent_id)
            assert len(rows) == events
            for seq, event_hash in rows:
                leaf = await leaf_of(s, UUID(owner.agent_id), seq)
                assert leaf is not None
                assert leaf.leaf_hash == leaf_hash(entry(owner.agent_id, seq, event_hash))
                proof = await inclusion_proof(s, leaf.index, head.size)
                assert verify_inclusion(leaf.index, head.size, leaf.leaf_hash, proof, head.root)
        found = await consistency_proof(s, head.size - 2, head.size)
        assert found.new_root == head.root
        assert verify_consistency(found.old, found.new, found.proof, found.old_root, head.root)


@pytest.mark.parametrize("rounds_between", [0, 1, checkpoints.ROUNDS_TO_ALL])
async def test_an_event_that_commits_late_is_not_passed_over(
    app: Connection,
    database_url: str,
    settings: Settings,
    db: Database,
    checkpointer: Checkpointer,
    agent: Agent,
    rounds_between: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its number in the chain and its time are older than those of events that are logged."""
    # so that what is late is never recent: only the comparison of all heads finds it
    monkeypatch.setattr(checkpoints, "RECENT_S", 0.0 if rounds_between > 1 else 15.0)
    await checkpointer.round()
    late = await connect(database_url, APP_ROLE, "late")
    transaction = late.transaction()
    await transaction.start()
    await witness(late, agent, 2)
    await witness(app, await new_agent(app, "0"), 1)
    assert await Checkpointer(settings, db, []).round() == 1
    await transaction.commit()
    await late.close()
    taken = [await checkpointer.round() for _ in range(rounds_between + 1)]
    assert sum(taken) == 2
    assert (await verified(settings, db)).findings == []


async def test_a_chain_with_a_hole_is_logged_up_to_it_and_the_others_go_on(
    app: Connection, superuser_url: str, settings: Settings, db: Database, agent: Agent
) -> None:
    other = await new_agent(app, "0")
    await witness(app, agent, 4)
    superuser = await connect(superuser_url, None, "test")
    try:
        await superuser.execute("ALTER TABLE audit_events DISABLE TRIGGER append_only")
        cut = "DELETE FROM audit_events WHERE agent_id = $1::uuid AND seq = 3 RETURNING *"
        gone = await superuser.fetchrow(cut, agent.agent_id)
        await witness(app, other, 2)
        before = refused("hole")
        assert await Checkpointer(settings, db, []).round() == 4
        assert refused("hole") == before + 1
        # what was lost is found again
        assert gone is not None
        values = ", ".join(f"${n}" for n in range(1, len(gone) + 1))
        await superuser.execute(f"INSERT INTO audit_events VALUES ({values})", *gone)
        assert await Checkpointer(settings, db, []).round() == 2
    finally:
        await superuser.execute("ALTER TABLE audit_events ENABLE ALWAYS TRIGGER append_only")
        await superuser.close()
    assert (await verified(settings, db)).findings == []


async def test_any_number_of_workers_write_one_log(
    app: Connection, settings: Settings, db: Database, agent: Agent, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    fleet = [Checkpointer(settings, db, [FileExport(folder)]) for _ in range(4)]
    before = await size(db)
    forks = refused("fork")

    async def keep_signing(worker: Checkpointer) -> int:
        return sum([await worker.round() for _ in range(8)])

    async def keep_witnessing() -> None:
        for _ in range(10):
            await witness(app, agent, 2)

    taken, _ = await asyncio.gather(asyncio.gather(*map(keep_signing, fleet)), keep_witnessing())
    assert await size(db) == before + sum(taken) + await fleet[0].round()
    assert refused("fork") == forks
    report = await verified(settings, db, folder)
    assert report.findings == []
    assert report.exported == report.checkpoints


@pytest.mark.parametrize(
    "table", ["audit_log_keys", "audit_leaves", "audit_nodes", "audit_checkpoints"]
)
async def test_not_even_the_owner_changes_what_was_logged(
    app: Connection, owner_url: str, checkpointer: Checkpointer, agent: Agent, table: str
) -> None:
    await witness(app, agent, 2)
    await checkpointer.round()
    owner = await connect(owner_url, None, "test")
    column = "root" if table == "audit_checkpoints" else "index"
    if table == "audit_log_keys":
        column = "name"
    count = await owner.fetchval(f"SELECT count(*) FROM {table}")
    assert count > 0
    for change in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await owner.execute(change)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute(change)
    with pytest.raises(asyncpg.RestrictViolationError):
        await owner.execute(f"TRUNCATE {table}")
    assert await owner.fetchval(f"SELECT count(*) FROM {table}") == count
    await owner.close()


async def test_whoever_has_the_lock_signs_alone(
    app: Connection, checkpointer: Checkpointer, agent: Agent
) -> None:
    await witness(app, agent)
    async with app.transaction():
        await app.execute("SELECT pg_advisory_xact_lock($1)", LOG_LOCK)
        assert await checkpointer.round() == 0
    assert await checkpointer.round() == 1


@pytest.mark.parametrize("statement", ["_ADD_LEAVES", "_ADD_NODES", "_MOVE_ON"])
async def test_a_worker_that_dies_leaves_a_whole_checkpoint_or_none(
    app: Connection,
    settings: Settings,
    db: Database,
    agent: Agent,
    statement: str,
    superuser_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection is cut behind each of its writes, as a kill -9 would."""
    superuser = await connect(superuser_url, None, "test")
    await witness(app, agent)
    await Checkpointer(settings, db, []).round()
    await witness(app, agent, 3)
    before = await size(db)
    write = AsyncSession.execute

    async def cut_behind(session: object, what: object, *args: object, **kwargs: object) -> object:
        done = await write(session, what, *args, **kwargs)  # type: ignore[call-overload]
        if what is getattr(checkpoints, statement):
            holder = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            assert await superuser.fetch(f"{holder} AND objid = {LOG_LOCK & 0xFFFFFFFF}")
        return done

    monkeypatch.setattr(AsyncSession, "execute", cut_behind)
    # how the driver puts it depends on when it notices
    with pytest.raises((DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await Checkpointer(settings, db, []).round()
    monkeypatch.undo()
    await superuser.close()
    assert await size(db) == before
    assert (await verified(settings, db)).findings == []
    assert await Checkpointer(settings, db, []).round() == 3
    assert (await verified(settings, db)).findings == []


async def test_a_key_that_was_sealed_with_another_master_key_signs_nothing(
    app: Connection, settings: Settings, db: Database, checkpointer: Checkpointer, agent: Agent
) -> None:
    await checkpointer.round()
    await witness(app, agent)
    other = settings.model_copy(update={"master_key": type(settings.master_key)("x" * 40)})
    with pytest.raises(SealBroken):
        await Checkpointer(other, db, []).round()
    assert await checkpointer.round() == 1


# -- outside the database ----------------------------------------------------------------------


async def test_a_line_that_a_crash_cut_off_is_no_line(
    app: Connection, settings: Settings, db: Database, agent: Agent, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    worker = Checkpointer(settings, db, [FileExport(folder)])
    await witness(app, agent)
    await worker.round()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    await witness(app, agent)
    assert await worker.round() == 1
    exported = list(read_exported(folder))
    assert [each.fault for each in exported] == [None] * len(exported)
    notes = [each.note for each in exported]
    assert len(set(notes)) == len(notes)
    assert (await verified(settings, db, folder)).findings == []


async def test_a_folder_that_cannot_be_read_stops_the_signing_until_it_can(
    app: Connection, settings: Settings, db: Database, agent: Agent, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    folder.write_text("in the way")
    worker = Checkpointer(settings, db, [FileExport(folder)])
    await witness(app, agent)
    failed = FLEET.get_sample_value("ainfera_audit_export_failures_total", {"target": "file"}) or 0
    await worker.round()
    assert (
        FLEET.get_sample_value("ainfera_audit_export_failures_total", {"target": "file"})
        == failed + 1
    )
    folder.unlink()
    await witness(app, agent)
    await worker.round()
    assert (await verified(settings, db, folder)).findings == []


class Bucket:
    """An object store behind an address: keeps what is put, refuses what is there already."""

    def __init__(self) -> None:
        self.objects: dict[str, str] = {}
        self.away = 0
        self.asked: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer a-token"
        name = request.url.path.rpartition("/")[2]
        self.asked.append(f"{request.method} {name}")
        if self.away:
            self.away -= 1
            return httpx.Response(503)
        if request.method == "GET":
            kept = self.objects.get(name)
            return httpx.Response(404) if kept is None else httpx.Response(200, text=kept)
        if name in self.objects and request.headers.get("if-none-match") == "*":
            return httpx.Response(412)
        self.objects[name] = request.content.decode()
        return httpx.Response(201)

    def export(self) -> HttpExport:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return HttpExport(http, "http://bucket.test/audit/", "a-token")


def test_nothing_exported_is_told_at_the_start(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    http = httpx.AsyncClient()
    assert audit_exports(settings.model_copy(update={"audit_export_dir": None}), http) == []
    assert [record.message for record in caplog.records] == ["audit_not_exported"]
    caplog.clear()
    kept = settings.model_copy(update={"audit_export_dir": tmp_path})
    assert [export.kind for export in audit_exports(kept, http)] == ["file"]
    assert caplog.records == []


async def test_a_bucket_is_asked_with_a_signature(settings: Settings) -> None:
    asked: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(404)

    told = {
        "audit_export_dir": None,
        "audit_export_url": "https://trail.s3.eu-central-1.amazonaws.com/log",
        "audit_export_s3_key_id": "AKIA",
        "audit_export_s3_secret": SecretStr("hush"),
        "audit_export_s3_region": "eu-central-1",
    }
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    (export,) = audit_exports(settings.model_copy(update=told), http)
    assert await export.newest() is None
    (request,) = asked
    assert request.url.path == "/log/latest"
    assert request.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIA/")
    assert "/eu-central-1/s3/aws4_request" in request.headers["authorization"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr("workers.exports.FIRST_PAUSE_S", 0.001)
    return Bucket()


async def test_checkpoints_are_put_to_an_address(
    app: Connection, settings: Settings, db: Database, agent: Agent, bucket: Bucket
) -> None:
    worker = Checkpointer(settings, db, [bucket.export()])
    await witness(app, agent)
    await worker.round()
    await witness(app, agent)
    bucket.away = 1  # once is not away
    await worker.round()
    rows = await app.fetch("SELECT size, note FROM audit_checkpoints ORDER BY size")
    assert bucket.objects == {
        **{f"{row['size']:020d}": row["note"] for row in rows},
        "latest": rows[-1]["note"],
    }
    # an idle round asks for nothing
    asked = len(bucket.asked)
    await worker.round()
    assert len(bucket.asked) == asked


async def test_an_address_that_is_away_gets_all_of_it_later(
    app: Connection, settings: Settings, db: Database, agent: Agent, bucket: Bucket
) -> None:
    worker = Checkpointer(settings, db, [bucket.export()])
    await worker.round()
    for _ in range(2):
        await witness(app, agent)
        bucket.away = 3
        assert await worker.round() == 1
    bucket.away = 0
    await worker.round()
    assert re.sub("^0+", "", max(name for name in bucket.objects if name != "latest")) == str(
        await size(db)
    )
    count = await app.fetchval("SELECT count(*) FROM audit_checkpoints")
    assert len(bucket.objects) == count + 1


async def test_nothing_is_signed_before_what_was_exported_is_known(
    app: Connection, settings: Settings, db: Database, agent: Agent, bucket: Bucket
) -> None:
    await witness(app, agent)
    bucket.away = 3
    worker, before, unread = (
        Checkpointer(settings, db, [bucket.export()]),
        await size(db),
        refused("export_unread"),
    )
    assert await worker.round() == 0
    assert (await size(db), refused("export_unread")) == (before, unread + 1)
    assert await worker.round() == 1


@pytest.mark.parametrize("latest_is_there", [True, False])
async def test_an_address_with_another_history_stops_the_signing(
    app: Connection,
    settings: Settings,
    db: Database,
    agent: Agent,
    bucket: Bucket,
    latest_is_there: bool,
) -> None:
    """Whether its newest checkpoint says so, or only one of those before it."""
    async with db.everyone() as s:
        key = await log_key(s, settings)
    await witness(app, agent)
    await Checkpointer(settings, db, []).round()
    here = await size(db)
    bucket.objects[f"{here:020d}"] = key.sign(here, bytes(32))
    if latest_is_there:
        bucket.objects["latest"] = bucket.objects[f"{here:020d}"]
    worker, forks = Checkpointer(settings, db, [bucket.export()]), refused("fork")
    await worker.round()
    await witness(app, agent)
    assert await worker.round() == 0
    assert refused("fork") == forks + 2
    assert await size(db) == here


async def test_the_key_is_made_once(settings: Settings, db: Database) -> None:
    async def key() -> LogKey:
        async with db.everyone() as s:
            made = await log_key(s, settings)
            await s.commit()
            return made

    keys = await asyncio.gather(*(key() for _ in range(4)))
    assert len({str(each.verifier) for each in keys}) == 1


async def test_a_round_that_is_not_answered_lets_go_of_its_turn(
    app: Connection,
    checkpointer: Checkpointer,
    agent: Agent,
    owner_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a failover whose old server says nothing any more, not even that it is gone."""
    await checkpointer.round()
    monkeypatch.setattr(checkpoints, "PATIENCE_S", 0.2)
    owner = await connect(owner_url, None, "test")
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute("LOCK TABLE audit_leaves IN ACCESS EXCLUSIVE MODE")
    async with asyncio.timeout(20):
        with pytest.raises((DBAPIError, *TRANSIENT)):
            await checkpointer.round()
    await transaction.rollback()
    await owner.close()
    monkeypatch.undo()
    await witness(app, agent)
    assert await checkpointer.round() == 1
