"""How long models took of late, kept in memory by whoever decides, and read again now and then.

The books worker measures and writes (workers/latencies.py); a decision looks at nothing but memory.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Field, SQLModel

from shared.db import TRANSIENT, Database
from shared.models import moment

log = logging.getLogger(__name__)

# What was not measured again for so long is unknown: the books worker is gone, or the model idle.
KNOWN_FOR_S = 300
_KNOWN = """
SELECT slug, p95_ms FROM model_latencies
 WHERE measured_at > now() - make_interval(secs => :known_for_s)
"""


class ModelLatencyRow(SQLModel, table=True):
    """The 95th percentile of a model's latest answers, in milliseconds from asking to their end."""

    __tablename__ = "model_latencies"

    slug: str = Field(primary_key=True, sa_type=Text)
    p95_ms: int
    samples: int
    measured_at: datetime = moment()


class Latencies:
    """`by_model`: p95 in milliseconds by slug, of the models of which it is known."""

    def __init__(self, db: Database, every_s: float) -> None:
        self._db = db
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self.by_model: Mapping[str, int] = {}

    async def start(self) -> None:
        """Read once, so that the first decision knows what there is to know, then now and then."""
        await self.read()
        self._task = asyncio.create_task(self._read_on(), name="latencies")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def read(self) -> None:
        rows = await self._db.run(_KNOWN, known_for_s=KNOWN_FOR_S)
        self.by_model = {row.slug: row.p95_ms for row in rows}

    async def _read_on(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.read()
            except (SQLAlchemyError, *TRANSIENT) as error:
                # the last ones stay: to know nothing would let slow models in
                log.warning("latencies_not_read", extra={"error": type(error).__name__})
