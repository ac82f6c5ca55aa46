"""How long models took of late, kept in memory by whoever decides, and read again now and then.

The books worker measures and writes (workers/latencies.py); a decision looks at nothing but memory.
"""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Text
from sqlmodel import Field, SQLModel

from shared.db import Database
from shared.models import moment
from shared.rereading import Rereading

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
        # the last ones stay while Postgres is away: to know nothing would let slow models in
        self._rereading = Rereading("latencies", self.read, every_s)
        self.by_model: Mapping[str, int] = {}

    async def start(self) -> None:
        """Read once, so that the first decision knows what there is to know, then now and then."""
        await self.read()
        self._rereading.start()

    async def aclose(self) -> None:
        await self._rereading.aclose()

    async def read(self) -> None:
        rows = await self._db.run(_KNOWN, known_for_s=KNOWN_FOR_S)
        self.by_model = {row.slug: row.p95_ms for row in rows}
