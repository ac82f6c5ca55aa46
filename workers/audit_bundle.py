"""Bundles for auditors, read from the database: chains, leaves, checkpoints, proofs.

What is read is one moment's state (a repeatable read), and is written as it is found: whether it
holds is for `shared/domain/audit_bundle.py` to say, so nothing is repaired or left out here.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import pairwise
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from shared.audit_log import (
    AuditCheckpointRow,
    AuditLeafRow,
    AuditLoggedRow,
    find_stored,
    newest_checkpoint,
    verifier_key,
)
from shared.db import Database
from shared.domain.audit_bundle import (
    CheckpointRecord,
    EventRecord,
    HeadRecord,
    LeafRecord,
    LogRecord,
    Record,
    Tally,
)
from shared.domain.checkpoint import encode
from shared.domain.merkle import (
    Range,
    assemble,
    consistency_ranges,
    inclusion_ranges,
    places_of,
)
from shared.models import AgentRow, AuditEventRow, AuditHeadRow

READ_AT_ONCE = 1000


class NoLog(LookupError):
    """No checkpoint was ever signed here."""


async def bundle(db: Database, agents: Sequence[UUID] | None) -> AsyncGenerator[Record]:
    """The records of a bundle of these agents; of everything if None. Raises `NoLog`."""
    async with db.everyone() as s:
        await s.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        key = await verifier_key(s)
        if key is None:
            raise NoLog("No checkpoint was signed yet; the books worker signs them.")
        at = await s.scalar(select(func.now()))
        newest = await newest_checkpoint(s)
        assert at is not None
        yield LogRecord(
            key=str(key),
            everything=agents is None,
            at=at.isoformat(),
            size=newest.size if newest is not None else 0,
        )
        async for checkpoint in _checkpoints(s, proven=agents is not None):
            yield checkpoint
        async for chained in _chains(s, agents):
            yield chained
        async for leaf in _every_leaf(s) if agents is None else _proven_leaves(s, agents):
            yield leaf


async def lines(records: AsyncIterator[Record]) -> AsyncGenerator[bytes]:
    """A bundle as a file has it, to its end record."""
    tally = Tally()
    async for record in records:
        line = record.model_dump_json().encode() + b"\n"
        tally.add(record, line)
        yield line
    yield tally.end().model_dump_json().encode() + b"\n"


async def agents_of(db: Database, tenant_id: UUID) -> list[UUID]:
    """All agents of a tenant."""
    async with db.everyone() as s:
        query = select(col(AgentRow.id)).where(col(AgentRow.tenant_id) == tenant_id)
        return list(await s.scalars(query))


async def _checkpoints(s: AsyncSession, *, proven: bool) -> AsyncIterator[CheckpointRecord]:
    """All of them by size, read page by page: in a year there are millions."""
    query = (
        select(col(AuditCheckpointRow.size), col(AuditCheckpointRow.note))
        .order_by(col(AuditCheckpointRow.size))
        .limit(READ_AT_ONCE + 1)
    )
    after, more = 0, True
    while more:
        rows = (await s.execute(query.where(col(AuditCheckpointRow.size) > after))).all()
        more = len(rows) > READ_AT_ONCE  # the one more is only proven against
        ranges = [
            consistency_ranges(old.size, new.size) if proven else [] for old, new in pairwise(rows)
        ]
        page = rows[:READ_AT_ONCE]
        proofs = [*await _proofs(s, ranges), []]
        for row, proof in zip(page, proofs, strict=False):
            yield CheckpointRecord(note=row.note, proof=proof)
        after = page[-1].size if page else after


async def _proofs(s: AsyncSession, wanted: Sequence[Sequence[Range]]) -> list[list[str]]:
    """A proof for each list of ranges; an empty one where the log has lost what it needs."""
    found = await find_stored(s, {place for ranges in wanted for place in places_of(ranges)})
    proofs = []
    for ranges in wanted:
        whole = places_of(ranges) <= found.keys()
        proofs.append([encode(hashed) for hashed in assemble(ranges, found)] if whole else [])
    return proofs


async def _chains(
    s: AsyncSession, agents: Sequence[UUID] | None
) -> AsyncIterator[EventRecord | HeadRecord]:
    """Each chain and its head; a chain without a head and a head without a chain, too."""
    logged = func.coalesce(col(AuditLoggedRow.seq), 0)
    heads_query = select(AuditHeadRow, logged).outerjoin(
        AuditLoggedRow, col(AuditLoggedRow.agent_id) == col(AuditHeadRow.agent_id)
    )
    query = select(AuditEventRow)
    if agents is not None:
        heads_query = heads_query.where(col(AuditHeadRow.agent_id).in_(agents))
        query = query.where(col(AuditEventRow.agent_id).in_(agents))
    heads = {row.agent_id: _head(row, seq) for row, seq in await s.execute(heads_query)}
    query = query.order_by(col(AuditEventRow.agent_id), col(AuditEventRow.seq))
    of: UUID | None = None
    async for event in await s.stream_scalars(query.execution_options(yield_per=READ_AT_ONCE)):
        if of is not None and of != event.agent_id and (head := heads.pop(of, None)):
            yield head
        of = event.agent_id
        yield _event(event)
        s.expunge(event)
    if of is not None and of in heads:
        yield heads.pop(of)
    for head in heads.values():
        if head.seq:
            yield head


def _event(row: AuditEventRow) -> EventRecord:
    return EventRecord(
        agent_id=str(row.agent_id),
        seq=row.seq,
        event_type=row.event_type,
        payload=row.payload,
        previous_hash=row.previous_hash,
        event_hash=row.event_hash,
    )


def _head(row: AuditHeadRow, logged: int) -> HeadRecord:
    return HeadRecord(agent_id=str(row.agent_id), seq=row.seq, hash=row.hash, logged=logged)


def _leaf(row: AuditLeafRow, proof: list[str]) -> LeafRecord:
    return LeafRecord(
        index=row.index,
        agent_id=str(row.agent_id),
        seq=row.seq,
        hash=encode(row.leaf_hash),
        proof=proof,
    )


async def _every_leaf(s: AsyncSession) -> AsyncIterator[LeafRecord]:
    query = select(AuditLeafRow).order_by(col(AuditLeafRow.index))
    async for row in await s.stream_scalars(query.execution_options(yield_per=READ_AT_ONCE)):
        yield _leaf(row, [])
        s.expunge(row)


async def _proven_leaves(s: AsyncSession, agents: Sequence[UUID]) -> AsyncIterator[LeafRecord]:
    newest = await newest_checkpoint(s)
    size = newest.size if newest is not None else 0
    for agent_id in sorted(agents):
        query = (
            select(AuditLeafRow)
            .where(col(AuditLeafRow.agent_id) == agent_id)
            .order_by(col(AuditLeafRow.seq))
            .limit(READ_AT_ONCE)
        )
        after = 0
        while page := (await s.scalars(query.where(col(AuditLeafRow.seq) > after))).all():
            ranges = [inclusion_ranges(row.index, size) if row.index < size else [] for row in page]
            for row, proof in zip(page, await _proofs(s, ranges), strict=True):
                yield _leaf(row, proof)
                s.expunge(row)
            after = page[-1].seq
