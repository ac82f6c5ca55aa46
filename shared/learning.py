"""Rewards and estimates as they are stored, and the estimates as a worker has them at hand."""

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Identity, Index, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import Field, SQLModel

from shared.db import Database
from shared.domain.evidence import Empirical
from shared.domain.learning import offered
from shared.models import document, moment
from shared.rereading import Rereading

log = logging.getLogger(__name__)

_NEWEST = """
SELECT version, cells FROM quality_snapshots WHERE version > :known ORDER BY version DESC LIMIT 1
"""


class RoutingRewardRow(SQLModel, table=True):
    """Append-only: what could be told of the answer to a routed call; no word of it."""

    __tablename__ = "routing_rewards"
    __table_args__ = (Index("routing_rewards_ended_at_idx", "ended_at"),)

    inference_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    task_type: str = Field(sa_type=Text)
    band: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    failed_models: list[str] = Field(
        default_factory=list,
        sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    )
    finish: str = Field(sa_type=Text)
    code: str = Field(sa_type=Text)
    json_: str = Field(sa_column=Column("json", Text, nullable=False))
    tools: str = Field(sa_type=Text)
    note: str | None = Field(default=None, sa_type=Text)
    checked: bool
    reward: int | None = Field(default=None, sa_type=SmallInteger)
    ended_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    created_at: datetime = moment()


class QualitySnapshotRow(SQLModel, table=True):
    """Append-only: estimates of quality; `cells` as `shared.domain.learning.Estimate.to_json`."""

    __tablename__ = "quality_snapshots"

    version: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    terms: dict[str, Any] = document()
    cells: list[Any] = document()
    hash: str = Field(sa_type=Text)
    created_at: datetime = moment()


class EmpiricalQuality(Mapping[str, Mapping[str, Empirical]]):
    """The newest estimates: `{task_type: {slug: Empirical}}`, read again every so often.

    Of a snapshot that cannot be read the one before stays: estimates age slowly. The mapping is
    replaced as a whole, so a decision never sees parts of two.
    """

    def __init__(self, db: Database, refresh_s: float) -> None:
        self._db = db
        self._rereading = Rereading("estimates", self.refresh, refresh_s)
        self._version = 0
        self._offered: Mapping[str, Mapping[str, Empirical]] = {}

    def __getitem__(self, task_type: str) -> Mapping[str, Empirical]:
        return self._offered[task_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._offered)

    def __len__(self) -> int:
        return len(self._offered)

    @property
    def version(self) -> int:
        """The snapshot's number; 0 while there is none."""
        return self._version

    def start(self) -> None:
        self._rereading.tell()
        self._rereading.start()

    async def aclose(self) -> None:
        await self._rereading.aclose()

    async def refresh(self) -> None:
        """Take over the newest snapshot, if there is a newer one. Errors are the database's."""
        rows = await self._db.run(_NEWEST, known=self._version)
        if rows:
            self._offered = {
                task_type: {slug: Empirical.from_json(each) for slug, each in by_model.items()}
                for task_type, by_model in offered(rows[0].cells).items()
            }
            self._version = rows[0].version
            log.info("estimates_read", extra={"version": self._version})
