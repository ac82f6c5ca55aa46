"""The audit log's only writer: takes new events into the tree, signs its head, exports it.

Events are gathered by agent, behind the last one that the log has: numbers in a chain are dense
and its head is written in the same transaction as its events, so one that commits late cannot be
passed over for good, whatever its time or id. A round is one transaction under an advisory lock:
leaves, subtrees, checkpoint. A worker that is killed leaves all of it or nothing.

Before it signs, it looks back. A log must never sign two histories ("A log MUST not sign any
checkpoint which is inconsistent with any checkpoint it previously signed",
https://c2sp.org/tlog-checkpoint), and a database that was restored from a backup does not know
what it has signed since; the exported checkpoints do. Where they are ahead of the database, or of
another history, nothing is signed until a person has looked.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from shared.audit_log import (
    AuditCheckpointRow,
    AuditLeafRow,
    LogDamaged,
    newest_checkpoint,
    root_at,
    stored,
)
from shared.config import Settings
from shared.db import Database
from shared.domain.checkpoint import (
    Checkpoint,
    NoteInvalid,
    VerifierKey,
    entry,
    open_note,
)
from shared.domain.merkle import EMPTY_ROOT, Place, cover, fold, grow, leaf_hash
from shared.log_key import LogKey, check_signature, log_key
from shared.metrics import AUDIT_EXPORT_FAILURES, AUDIT_SIGNING_REFUSED
from workers.exports import Export, ExportDiffers, ExportFailed
from workers.rounds import CutOff

log = logging.getLogger(__name__)

# Whoever has it appends; the number is arbitrary.
LOG_LOCK = 0x6175646974
EVENTS_AT_ONCE = 10_000
EXPORTED_AT_ONCE = 500
# Every so many rounds, and in the first, all chains are looked at; in the others those with an
# event of the last seconds, which costs nothing while nothing happens.
ROUNDS_TO_ALL = 12
RECENT_S = 15.0
# Whatever a round does in one transaction is done by then: a server that stands still, or is gone
# without a word, would have it, and its turn, for as long as the network takes to notice.
PATIENCE_S = 60.0

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")
_TAKE = """
SELECT m.agent_id, m.logged, e.seq, e.event_hash
  FROM moved m LEFT JOIN LATERAL (
    SELECT v.seq, v.event_hash FROM audit_events v
     WHERE v.agent_id = m.agent_id AND v.seq > m.logged AND v.seq <= m.head
     ORDER BY v.seq LIMIT :most) e ON true
 ORDER BY m.agent_id, e.seq
 LIMIT :most
"""
_MOVED = """
moved AS MATERIALIZED (
  SELECT h.agent_id, h.seq AS head, coalesce(l.seq, 0) AS logged
    FROM {heads} h LEFT JOIN audit_logged l ON l.agent_id = h.agent_id
   WHERE h.seq > coalesce(l.seq, 0)
   ORDER BY h.agent_id LIMIT :most)
"""
# All heads are compared with what is logged: complete, and a join over all agents.
_OF_ALL = text(f"WITH {_MOVED.format(heads='audit_heads')} {_TAKE}")
# Only chains with a recent event are looked at; what commits late is left for the other.
_OF_RECENT = text(
    f"""
WITH near AS MATERIALIZED (
  SELECT DISTINCT agent_id FROM audit_events
   WHERE created_at > now() - make_interval(secs => :recent)),
heads AS (SELECT h.* FROM near n JOIN audit_heads h ON h.agent_id = n.agent_id),
{_MOVED.format(heads="heads")} {_TAKE}
"""
)
_ADD_LEAVES = text(
    """
INSERT INTO audit_leaves (index, agent_id, seq, leaf_hash)
SELECT * FROM unnest(cast(:indexes AS bigint[]), cast(:agents AS uuid[]), cast(:seqs AS bigint[]),
                     cast(:hashes AS bytea[]))
"""
)
_ADD_NODES = text(
    """
INSERT INTO audit_nodes (level, index, hash)
SELECT * FROM unnest(cast(:levels AS smallint[]), cast(:indexes AS bigint[]),
                     cast(:hashes AS bytea[]))
"""
)
_MOVE_ON = text(
    """
INSERT INTO audit_logged (agent_id, seq)
SELECT * FROM unnest(cast(:agents AS uuid[]), cast(:seqs AS bigint[]))
    ON CONFLICT (agent_id) DO UPDATE SET seq = excluded.seq
"""
)


class Forked(Exception):
    """What was signed before does not fit what the database says now; the message says how."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event that is to become a leaf."""

    agent_id: UUID
    seq: int
    event_hash: str

    def leaf(self) -> bytes:
        return leaf_hash(entry(str(self.agent_id), self.seq, self.event_hash))


class Checkpointer:
    """Appends and signs in rounds; any number of processes may have one."""

    def __init__(self, settings: Settings, db: Database, exports: Sequence[Export]) -> None:
        self._settings = settings
        self._sessions = CutOff(db)
        self._exports = exports
        self._key: LogKey | None = None
        self._signed: str | None = None
        self._differs: ExportDiffers | None = None
        self._turn = asyncio.Lock()
        self._rounds = 0

    async def round(self) -> int:
        """Take in all new events, sign, export. Returns how many events were taken in.

        Does nothing while another round runs, here or elsewhere, or where signing is refused.
        """
        if self._turn.locked():
            return 0
        async with self._turn:
            taken = 0
            try:
                if self._differs is not None:
                    raise self._differs
                exported = [await export.newest() for export in self._exports]
                while got := await self._append([self._signed, *exported]):
                    taken += got
                    if got < EVENTS_AT_ONCE:
                        break
                self._rounds += 1
                await self._export_all()
            except ExportFailed as error:
                # what was exported is not known, so it is not known what may be signed
                AUDIT_SIGNING_REFUSED.labels(reason="export_unread").inc()
                log.error("audit_exports_unread", extra={"error": str(error)})
            except (Forked, ExportDiffers, LogDamaged) as error:
                if isinstance(error, ExportDiffers):
                    self._differs = error  # it is not looked at again, and stays true
                AUDIT_SIGNING_REFUSED.labels(reason="fork").inc()
                log.error("audit_log_forked", extra={"error": str(error)})
            return taken

    # -- one checkpoint -------------------------------------------------------------------

    async def _append(self, signed_before: Sequence[str | None]) -> int:
        async with self._sessions.session(PATIENCE_S) as s:
            if not await s.scalar(_TRY_LOCK, {"key": LOG_LOCK}):
                return 0
            key = self._key or await log_key(s, self._settings)
            head, edge = await self._head(s, key.verifier)
            await _look_back(s, key.verifier, head, signed_before)
            events = await _gather(s, of_all=self._rounds % ROUNDS_TO_ALL == 0)
            note = await _extend(s, key, head, edge, events) if events else None
            await s.commit()
        self._key, self._signed = key, note or self._signed
        return len(events)

    async def _head(
        self, s: AsyncSession, key: VerifierKey
    ) -> tuple[Checkpoint, dict[Place, bytes]]:
        """The newest checkpoint and the right edge of its tree. Raises `Forked`, `LogDamaged`."""
        row = await newest_checkpoint(s)
        leaves = await s.scalar(select(func.max(col(AuditLeafRow.index))))
        size = 0 if leaves is None else leaves + 1
        if (row.size if row is not None else 0) != size:
            raise Forked(f"the log has {size} leaves and its newest checkpoint says otherwise")
        edge = await stored(s, cover(0, size))
        root = fold([edge[place] for place in cover(0, size)])
        if row is None:
            return Checkpoint(key.name, 0, EMPTY_ROOT), edge
        head = _opened(row.note, key, "the newest checkpoint")
        if (head.size, head.root) != (size, root):
            raise Forked(f"the tree of {size} leaves is not the one that was signed")
        return head, edge

    # -- outside the database -------------------------------------------------------------

    async def _export_all(self) -> None:
        for export in self._exports:
            try:
                await self._export(export)
            except ExportFailed as error:
                # the next round sends it again, with what is signed until then
                AUDIT_EXPORT_FAILURES.labels(target=export.kind).inc()
                log.error("audit_export_failed", extra={"target": export.kind, "error": str(error)})

    async def _export(self, export: Export) -> None:
        newest = await export.newest()
        size = 0 if newest is None else _size(newest)
        query = (
            select(AuditCheckpointRow)
            .order_by(col(AuditCheckpointRow.size))
            .limit(EXPORTED_AT_ONCE)
        )
        while True:
            async with self._sessions.session(PATIENCE_S) as s:
                rows = (await s.scalars(query.where(col(AuditCheckpointRow.size) > size))).all()
            if not rows:
                return
            await export.append(rows)
            size = rows[-1].size


async def _look_back(
    s: AsyncSession, key: VerifierKey, head: Checkpoint, notes: Iterable[str | None]
) -> None:
    """Raises `Forked` unless each of the notes is a checkpoint of this very history."""
    for note in notes:
        if note is None:
            continue
        before = _opened(note, key, "an exported checkpoint")
        if before.size > head.size:
            raise Forked(
                f"a checkpoint of {before.size} leaves was signed before, and the database has"
                f" {head.size}: it was cut, or restored from an older backup"
            )
        root = head.root if before.size == head.size else await root_at(s, before.size)
        if root != before.root:
            raise Forked(f"the first {before.size} leaves are not those that were signed before")


def _opened(note: str, key: VerifierKey, which: str) -> Checkpoint:
    try:
        return open_note(note, key, check_signature)
    except NoteInvalid as error:
        raise Forked(f"{which} is not this log's: {error}") from error


def _size(note: str) -> int:
    return int(note.split("\n", 2)[1])


async def _gather(s: AsyncSession, *, of_all: bool) -> list[Event]:
    """Events that the log does not have, by agent and number, each chain's up to a hole in it."""
    most = {"most": EVENTS_AT_ONCE}
    query = (
        s.execute(_OF_ALL, most) if of_all else s.execute(_OF_RECENT, most | {"recent": RECENT_S})
    )
    rows = (await query).all()
    events: list[Event] = []
    come_to: dict[UUID, int] = {}
    broken: set[UUID] = set()
    for agent_id, logged, seq, event_hash in rows:
        if seq != come_to.get(agent_id, logged) + 1:
            broken.add(agent_id)
        if agent_id not in broken:
            come_to[agent_id] = seq
            events.append(Event(agent_id, seq, event_hash))
    if broken:
        # the rest of the log goes on; these chains do not verify, and that is for a person
        AUDIT_SIGNING_REFUSED.labels(reason="hole").inc()
        log.error("audit_chain_has_a_hole", extra={"agents": len(broken)})
    return events


async def _extend(
    s: AsyncSession,
    key: LogKey,
    head: Checkpoint,
    edge: dict[Place, bytes],
    events: Sequence[Event],
) -> str:
    """Write leaves, subtrees and the signed checkpoint; returns its note."""
    leaves = [event.leaf() for event in events]
    size, grown = grow(head.size, edge, leaves)
    known = edge | grown
    root = fold([known[place] for place in cover(0, size)])
    note = key.sign(size, root)
    inner = [(place, hashed) for place, hashed in grown.items() if place[0] > 0]
    logged = {event.agent_id: event.seq for event in events}
    await s.execute(
        _ADD_LEAVES,
        {
            "indexes": list(range(head.size, size)),
            "agents": [event.agent_id for event in events],
            "seqs": [event.seq for event in events],
            "hashes": leaves,
        },
    )
    await s.execute(
        _ADD_NODES,
        {
            "levels": [level for (level, _), _ in inner],
            "indexes": [index for (_, index), _ in inner],
            "hashes": [hashed for _, hashed in inner],
        },
    )
    await s.execute(_MOVE_ON, {"agents": list(logged), "seqs": list(logged.values())})
    s.add(AuditCheckpointRow(size=size, root=root, note=note))
    return note
