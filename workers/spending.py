"""The books worker watches what is spent, and engages the killswitch where it is too much.

No call passes a threshold by what it holds: Postgres sees to that. Once a second a look finds what
is over one in another way (the threshold was set lower), tells every process what was engaged since
the last look, by whomever, and says what is spent. It moves the window along that holds are counted
against, too.
"""

import asyncio
import logging
from dataclasses import dataclass
from decimal import Decimal

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from shared.config import Settings
from shared.control import KILLSWITCH, give_order
from shared.db import TRANSIENT, Database
from shared.domain.ledger import ZERO
from shared.domain.spending import (
    ALL,
    Passed,
    Thresholds,
    closest,
    passed,
)
from shared.killswitch import engage
from shared.spending import Spending, tell_spending

log = logging.getLogger(__name__)

THRESHOLD = "threshold"
EVERY_S = 1.0

_STANDING = """
SELECT coalesce((SELECT jsonb_object_agg(scope, threshold_usd::text)
                   FROM killswitch_thresholds), '{}') AS chosen,
       array(SELECT scope FROM killswitches WHERE released_at IS NULL) AS engaged
"""
_SLIDE = "SELECT slide_killswitch_window(cast(:window AS int))"
_SPENT = "SELECT scope, spent_usd FROM killswitch_spending(NULL, cast(:window AS int))"


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at a look."""

    thresholds: Thresholds
    engaged: frozenset[str]


class SpendWatch:
    """Looks at what is spent once a second, for as long as its worker lives."""

    def __init__(self, db: Database, redis: Redis, settings: Settings) -> None:
        self._db = db
        self._redis = redis
        self._settings = settings
        # none at first: a worker that was here before may have had no time to tell
        self._told: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="spending")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except (SQLAlchemyError, RedisError, *TRANSIENT) as error:
                log.warning("spending_not_watched", extra={"error": repr(error)})
            await asyncio.sleep(EVERY_S)

    async def look(self) -> list[Passed]:
        """See what is spent, engage where it is too much; returns what was engaged now."""
        standing = await self._standing()
        engaged: list[Passed] = []
        if standing.thresholds.any:
            spent = await self._spent()
            for over in passed(spent, standing.thresholds):
                if over.scope not in standing.engaged and await self._engage(over):
                    engaged.append(over)
            seen = Spending(
                spent.get(ALL, ZERO),
                standing.thresholds.of(ALL),
                closest(spent, standing.thresholds),
            )
            await tell_spending(self._redis, seen)
        await self._tell(standing.engaged.union(over.scope for over in engaged))
        return engaged

    async def _standing(self) -> Standing:
        (row,) = await self._db.run(_STANDING)
        chosen = {scope: None if usd is None else Decimal(usd) for scope, usd in row.chosen.items()}
        thresholds = Thresholds(
            self._settings.killswitch_system_usd, self._settings.killswitch_tenant_usd, chosen
        )
        return Standing(thresholds, frozenset(row.engaged))

    async def _spent(self) -> dict[str, Decimal]:
        """What each scope settled in the window and holds now."""
        window = self._settings.killswitch_window_s
        await self._db.run(_SLIDE, window=window)
        return {row.scope: row.spent_usd for row in await self._db.run(_SPENT, window=window)}

    async def _tell(self, engaged: frozenset[str]) -> None:
        """Tell what is engaged and was not told; told again until it is heard."""
        self._told &= engaged
        for scope in sorted(engaged - self._told):
            await give_order(self._redis, KILLSWITCH, scope=scope, engaged=True)
            self._told |= {scope}

    async def _engage(self, over: Passed) -> bool:
        window = self._settings.killswitch_window_s
        reason = (
            f"{over.spent_usd:f} USD settled and held in {window} s,"
            f" the threshold is {over.threshold_usd:f} USD"
        )
        async with self._db.everyone() as session:
            done = await engage(
                session,
                over.scope,
                reason,
                THRESHOLD,
                spent_usd=over.spent_usd,
                threshold_usd=over.threshold_usd,
            )
            await session.commit()
        if done:
            log.error("killswitch_engaged", extra={"scope": over.scope, "reason": reason})
        return done
