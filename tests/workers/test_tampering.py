"""Whatever is done to the trail by who may do anything to the database is found, and by what.

Each case spoils a trail as a superuser who switched the triggers off. docs/audit.md has the table;
it is held against these cases.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from shared.config import Settings
from shared.db import APP_ROLE, Connection, Database, connect
from shared.domain.audit import event_hash
from shared.domain.audit_findings import Fault
from shared.domain.checkpoint import entry
from shared.domain.merkle import cover, fold, grow, leaf_hash
from shared.log_key import log_key
from shared.metrics import FLEET
from tests.workers.ledger_cases import Agent, new_agent
from tests.workers.log_cases import verified, witness
from workers.checkpoints import Checkpointer
from workers.exports import FileExport

TABLES = (
    *("audit_events", "audit_heads", "audit_leaves", "audit_nodes", "audit_checkpoints"),
    *("audit_logged", "audit_log_keys"),
)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/audit.md"


@dataclass(frozen=True, slots=True)
class Trail:
    """Two agents of four events each; checkpoints over 4, 6 and 8 leaves, exported."""

    superuser: Connection
    agent: Agent
    other: Agent
    settings: Settings
    db: Database
    exported: Path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def superuser(superuser_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(superuser_url)
    for table in TABLES:
        await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def trail(
    settings: Settings, database_url: str, superuser: Connection, tmp_path: Path
) -> AsyncIterator[Trail]:
    app = await connect(database_url, APP_ROLE, "test")
    await superuser.execute(";".join(f"DELETE FROM {table}" for table in TABLES))
    db = Database(settings)
    agent, other = await new_agent(app, "0"), await new_agent(app, "0")
    checkpointer = Checkpointer(settings, db, [FileExport(tmp_path / "exported")])
    for one, two in ((2, 2), (1, 1), (1, 1)):
        await witness(app, agent, one)
        await witness(app, other, two)
        assert await checkpointer.round() == one + two
    yield Trail(superuser, agent, other, settings, db, tmp_path / "exported")
    await app.close()
    await db.aclose()


async def edit_a_body(t: Trail) -> None:
    await t.superuser.execute(
        """UPDATE audit_events SET payload = replace(payload, '"n":0', '"n":7')
            WHERE agent_id = $1::uuid AND seq = 1""",
        t.agent.agent_id,
    )


async def swap_two_events(t: Trail) -> None:
    await t.superuser.execute(
        """UPDATE audit_events e SET payload = o.payload, event_hash = o.event_hash,
                  previous_hash = o.previous_hash, id = o.id
             FROM audit_events o WHERE o.agent_id = e.agent_id AND e.seq + o.seq = 5
              AND e.agent_id = $1::uuid AND e.seq IN (2, 3)""",
        t.agent.agent_id,
    )


async def cut_the_tail(t: Trail) -> None:
    await t.superuser.execute(
        "DELETE FROM audit_events WHERE agent_id = $1::uuid AND seq > 3", t.agent.agent_id
    )


async def rewrite_the_head(t: Trail) -> None:
    await t.superuser.execute(
        "UPDATE audit_heads SET hash = repeat('0', 64) WHERE agent_id = $1::uuid", t.agent.agent_id
    )


async def cut_the_tail_and_the_head(t: Trail) -> None:
    await cut_the_tail(t)
    await t.superuser.execute(
        """UPDATE audit_heads h SET seq = e.seq, hash = e.event_hash FROM audit_events e
            WHERE e.agent_id = h.agent_id AND e.seq = 3 AND h.agent_id = $1::uuid""",
        t.agent.agent_id,
    )


async def remove_a_chain(t: Trail) -> None:
    for table in ("audit_events", "audit_heads"):
        await t.superuser.execute(
            f"DELETE FROM {table} WHERE agent_id = $1::uuid", t.agent.agent_id
        )


async def rewrite_a_chain(t: Trail) -> None:
    """Events 3 and 4, after the first checkpoint, and the head: a chain that holds again."""
    rows = await t.superuser.fetch(
        "SELECT seq, payload, event_hash FROM audit_events WHERE agent_id = $1::uuid ORDER BY seq",
        t.agent.agent_id,
    )
    previous = rows[1]["event_hash"]
    for row in rows[2:]:
        payload = row["payload"].replace('"n":0', '"n":7')
        hashed = event_hash(previous, payload)
        await t.superuser.execute(
            """UPDATE audit_events SET payload = $3, previous_hash = $4, event_hash = $5
                WHERE agent_id = $1::uuid AND seq = $2""",
            t.agent.agent_id,
            row["seq"],
            payload,
            previous,
            hashed,
        )
        previous = hashed
    await t.superuser.execute(
        "UPDATE audit_heads SET hash = $2 WHERE agent_id = $1::uuid", t.agent.agent_id, previous
    )


async def rewrite_the_log_too(t: Trail) -> None:
    """Leaves and subtrees as they would be, had the rewritten chain been the one that was."""
    await rewrite_a_chain(t)
    rows = await t.superuser.fetch(
        """SELECT l.index, l.agent_id, l.seq, e.event_hash FROM audit_leaves l
             JOIN audit_events e ON e.agent_id = l.agent_id AND e.seq = l.seq ORDER BY l.index"""
    )
    leaves = [leaf_hash(entry(str(r["agent_id"]), r["seq"], r["event_hash"])) for r in rows]
    _, grown = grow(0, {}, leaves)
    for (level, index), hashed in grown.items():
        table, column = ("audit_nodes", "hash") if level else ("audit_leaves", "leaf_hash")
        where = f"AND level = {level}" if level else ""
        await t.superuser.execute(
            f"UPDATE {table} SET {column} = $1 WHERE index = $2 {where}", hashed, index
        )


async def rewrite_and_sign_again(t: Trail) -> None:
    """By who has the master key as well: every checkpoint signed anew over the new tree."""
    await rewrite_the_log_too(t)
    rows = await t.superuser.fetch("SELECT leaf_hash FROM audit_leaves ORDER BY index")
    _, grown = grow(0, {}, [row["leaf_hash"] for row in rows])
    async with t.db.everyone() as s:
        key = await log_key(s, t.settings)
    for row in await t.superuser.fetch("SELECT size FROM audit_checkpoints"):
        root = fold([grown[place] for place in cover(0, row["size"])])
        await t.superuser.execute(
            "UPDATE audit_checkpoints SET root = $2, note = $3 WHERE size = $1",
            row["size"],
            root,
            key.sign(row["size"], root),
        )


async def delete_a_checkpoint(t: Trail) -> None:
    await t.superuser.execute("DELETE FROM audit_checkpoints WHERE size = 6")


async def delete_the_newest_checkpoint(t: Trail) -> None:
    await t.superuser.execute("DELETE FROM audit_checkpoints WHERE size = 8")


async def restore_an_older_state(t: Trail) -> None:
    """All of it as it was at the second checkpoint: nothing in the database contradicts itself."""
    await t.superuser.execute(
        """DELETE FROM audit_checkpoints WHERE size > 6;
           DELETE FROM audit_leaves WHERE index >= 6;
           DELETE FROM audit_nodes WHERE ((index + 1) << level) > 6;
           DELETE FROM audit_events WHERE seq > 3;
           UPDATE audit_logged SET seq = 3;
           UPDATE audit_heads h SET seq = 3, hash = e.event_hash FROM audit_events e
            WHERE e.agent_id = h.agent_id AND e.seq = 3"""
    )


async def make_a_key_of_ones_own(t: Trail) -> None:
    """The log signed by another key: the old one is gone, so are its checkpoints."""
    await t.superuser.execute("TRUNCATE audit_log_keys, audit_checkpoints")
    async with t.db.everyone() as s:
        key = await log_key(s, t.settings)
        await s.commit()
    rows = await t.superuser.fetch("SELECT leaf_hash FROM audit_leaves ORDER BY index")
    _, grown = grow(0, {}, [row["leaf_hash"] for row in rows])
    root = fold([grown[place] for place in cover(0, 8)])
    await t.superuser.execute(
        "INSERT INTO audit_checkpoints (size, root, note) VALUES (8, $1, $2)",
        root,
        key.sign(8, root),
    )


Spoil = Callable[[Trail], Awaitable[None]]
F = Fault
# what is done, in the words of docs/audit.md; by what it is found; whether signing is refused
CASES: tuple[tuple[str, Spoil, set[Fault], bool], ...] = (
    ("an event's body is edited", edit_a_body, {F.CHAIN}, False),
    ("two events are swapped", swap_two_events, {F.CHAIN, F.LEAF}, False),
    ("the tail of a chain is cut", cut_the_tail, {F.HEAD, F.LEAF}, False),
    ("a head is rewritten", rewrite_the_head, {F.HEAD}, False),
    ("tail and head are cut alike", cut_the_tail_and_the_head, {F.LEAF}, False),
    ("a whole chain is removed, its head too", remove_a_chain, {F.LEAF}, False),
    (
        "everything in a chain after a checkpoint is rewritten, hashes recomputed, head set",
        rewrite_a_chain,
        {F.LEAF},
        False,
    ),
    (
        "the same, with the log's leaves and subtrees recomputed",
        rewrite_the_log_too,
        {F.CHECKPOINT, F.EXPORTED},
        True,
    ),
    (
        "the same, with every checkpoint signed again with the stolen key",
        rewrite_and_sign_again,
        {F.EXPORTED},
        True,
    ),
    ("a checkpoint's row is deleted", delete_a_checkpoint, {F.EXPORTED}, False),
    (
        "the newest checkpoint's row is deleted",
        delete_the_newest_checkpoint,
        {F.CHECKPOINT, F.EXPORTED},
        True,
    ),
    ("the database is restored from an older backup", restore_an_older_state, {F.EXPORTED}, True),
    ("the log is signed anew with another key", make_a_key_of_ones_own, {F.EXPORTED}, True),
)


async def test_an_untouched_trail_holds(trail: Trail) -> None:
    report = await verified(trail.settings, trail.db, trail.exported)
    assert report.findings == []
    assert (report.events, report.leaves, report.checkpoints, report.exported) == (8, 8, 3, 3)


@pytest.mark.parametrize(("done", "spoil", "found_by", "refused"), CASES)
async def test_tampering_is_found(
    trail: Trail, done: str, spoil: Spoil, found_by: set[Fault], refused: bool
) -> None:
    await spoil(trail)
    report = await verified(trail.settings, trail.db, trail.exported)
    assert {finding.fault for finding in report.findings} == found_by, report.findings
    # who looks after the books finds it too, where it could lead to a second history
    exported = {path.name: path.read_bytes() for path in trail.exported.iterdir()}
    before = forks()
    fresh = Checkpointer(trail.settings, trail.db, [FileExport(trail.exported)])
    assert await fresh.round() == 0
    assert (forks() > before) is refused
    assert {path.name: path.read_bytes() for path in trail.exported.iterdir()} == exported


def forks() -> float:
    return FLEET.get_sample_value("ainfera_audit_signing_refused_total", {"reason": "fork"}) or 0


@pytest.mark.parametrize("spoil", ["remove", "change", "swap", "cut in the middle"])
async def test_an_exported_file_that_was_touched_shows_it(trail: Trail, spoil: str) -> None:
    (path,) = trail.exported.iterdir()
    lines = path.read_bytes().splitlines()
    if spoil == "remove":
        del lines[1]
    elif spoil == "change":
        lines[0] = lines[0].replace(b'"at":"2', b'"at":"1')
    elif spoil == "swap":
        lines[0], lines[1] = lines[1], lines[0]
    else:
        lines[1] = lines[1][:40]
    path.write_bytes(b"\n".join(lines) + b"\n")
    report = await verified(trail.settings, trail.db, trail.exported)
    assert {finding.fault for finding in report.findings} == {Fault.EXPORTED}


def test_the_document_has_this_table() -> None:
    found = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in found]
    expected = [
        (done, ", ".join(fault for fault in Fault if fault in found_by), "yes" if refused else "no")
        for done, _, found_by, refused in CASES
    ]
    assert [row for row in rows if row in expected] == expected
