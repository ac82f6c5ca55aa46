"""The audit log as Postgres keeps it: its tables, its newest checkpoint, and proofs from it.

Everything here takes the caller's session and only reads. The books worker alone appends
(`workers/checkpoints.py`); the rules are `shared/domain/merkle.py` and `checkpoint.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Index, SmallInteger, Text, func, select, text
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col

from shared.domain.checkpoint import VerifierKey
from shared.domain.merkle import (
    Place,
    assemble,
    consistency_ranges,
    cover,
    fold,
    inclusion_ranges,
    places_of,
)
from shared.models import moment


def _count(*, primary: bool = False) -> Column[int]:
    return Column(BigInteger, primary_key=primary, nullable=False, autoincrement=False)


class AuditLogKeyRow(SQLModel, table=True):
    """One row at most: see `shared/log_key.py`."""

    __tablename__ = "audit_log_keys"

    id: int = Field(
        default=1,
        primary_key=True,
        sa_column_kwargs={"server_default": "1", "autoincrement": False},
    )
    name: str = Field(sa_type=Text)
    public_key: bytes = Field(sa_type=BYTEA)
    private_key_sealed: bytes = Field(sa_type=BYTEA)
    created_at: datetime = moment()


class AuditLeafRow(SQLModel, table=True):
    """Append-only: which event stands at which place of the log."""

    __tablename__ = "audit_leaves"
    __table_args__ = (Index("audit_leaves_event_key", "agent_id", "seq", unique=True),)

    index: int = Field(sa_column=_count(primary=True))
    agent_id: UUID
    seq: int = Field(sa_column=_count())
    leaf_hash: bytes = Field(sa_type=BYTEA)


class AuditNodeRow(SQLModel, table=True):
    """Append-only: a complete subtree above the leaves."""

    __tablename__ = "audit_nodes"

    level: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    index: int = Field(sa_column=_count(primary=True))
    hash: bytes = Field(sa_type=BYTEA)


class AuditCheckpointRow(SQLModel, table=True):
    """Append-only: a signed head; `note` is all of it, the other columns are read from it."""

    __tablename__ = "audit_checkpoints"

    size: int = Field(sa_column=_count(primary=True))
    root: bytes = Field(sa_type=BYTEA)
    note: str = Field(sa_type=Text)
    created_at: datetime = Field(
        default=None,
        sa_column=Column(
            DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()
        ),
    )


class AuditLoggedRow(SQLModel, table=True):
    """How far into an agent's chain the log has come."""

    __tablename__ = "audit_logged"

    agent_id: UUID = Field(primary_key=True)
    seq: int = Field(sa_column=_count())


_HASHES = text(
    """
SELECT 0 AS level, index, leaf_hash AS hash FROM audit_leaves WHERE index = ANY (:leaves)
 UNION ALL
SELECT n.level, n.index, n.hash
  FROM unnest(cast(:levels AS smallint[]), cast(:indexes AS bigint[])) AS w (level, index)
  JOIN audit_nodes n ON n.level = w.level AND n.index = w.index
"""
)


class LogDamaged(Exception):
    """The log does not say any more what it said, or not all of it; the message says what."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the tree of `old` leaves is a prefix of that of `new`."""

    old: int
    new: int
    old_root: bytes
    new_root: bytes
    proof: list[bytes]


async def verifier_key(s: AsyncSession) -> VerifierKey | None:
    """The key that checkpoints are signed with; None before the first one."""
    query = select(col(AuditLogKeyRow.name), col(AuditLogKeyRow.public_key))
    row = (await s.execute(query)).one_or_none()
    return None if row is None else VerifierKey(row.name, row.public_key)


async def newest_checkpoint(s: AsyncSession) -> AuditCheckpointRow | None:
    query = select(AuditCheckpointRow).order_by(col(AuditCheckpointRow.size).desc()).limit(1)
    return await s.scalar(query)


async def leaf_of(s: AsyncSession, agent_id: UUID, seq: int) -> AuditLeafRow | None:
    """Where an event stands in the log; None before it is there."""
    query = select(AuditLeafRow).where(
        col(AuditLeafRow.agent_id) == agent_id, col(AuditLeafRow.seq) == seq
    )
    return await s.scalar(query)


async def stored(s: AsyncSession, places: Iterable[Place]) -> dict[Place, bytes]:
    """The hashes of complete subtrees. Raises `LogDamaged` unless all are there."""
    wanted = set(places)
    found = await find_stored(s, wanted)
    if missing := wanted - found.keys():
        raise LogDamaged(f"the log has lost {len(missing)} of its hashes")
    return found


async def find_stored(s: AsyncSession, places: Iterable[Place]) -> dict[Place, bytes]:
    """Those of the hashes that are there."""
    wanted = set(places)
    inner = sorted(place for place in wanted if place[0] > 0)
    bound = {
        "leaves": [index for level, index in wanted if level == 0],
        "levels": [level for level, _ in inner],
        "indexes": [index for _, index in inner],
    }
    rows = await s.execute(_HASHES, bound)
    return {(level, index): bytes(hashed) for level, index, hashed in rows}


async def root_at(s: AsyncSession, size: int) -> bytes:
    """The root of the first `size` leaves, from what is stored. Raises `LogDamaged`."""
    places = cover(0, size)
    found = await stored(s, places)
    return fold([found[place] for place in places])


async def inclusion_proof(s: AsyncSession, index: int, size: int) -> list[bytes]:
    """That the leaf is in the tree of `size`. Raises `LogDamaged`."""
    ranges = inclusion_ranges(index, size)
    return assemble(ranges, await stored(s, places_of(ranges)))


async def consistency_proof(s: AsyncSession, old: int, new: int) -> Consistency:
    """That one tree is a prefix of the other, with both roots. Raises `LogDamaged`."""
    ranges = consistency_ranges(old, new)
    edges = cover(0, old), cover(0, new)
    found = await stored(s, places_of(ranges).union(*edges))
    roots = [fold([found[place] for place in edge]) for edge in edges]
    return Consistency(old, new, roots[0], roots[1], assemble(ranges, found))
