"""The books worker watches what is spent, and engages the killswitch where it is too much.

No call passes a threshold by what it holds: Postgres sees to that. Once a second a look finds what
is over one in another way (the threshold was set lower), tells every process what was engaged since
the last look, by whomever, and says what is spent. It moves the window along that holds are counted
against, too.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

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
from shared.killswitch import engage, let_none_begin
from shared.spending import Spending, tell_spending

log = logging.getLogger(__name__)

THRESHOLD = "threshold"
EVERY_S = 1.0
# without a threshold the window is moved along now and then, so that a first one finds it counted
IDLE_LOOKS = 30

_STANDING = """
SELECT coalesce((SELECT jsonb_object_agg(scope, threshold_usd::text)
                   FROM killswitch_thresholds), '{}') AS chosen,
       coalesce((SELECT jsonb_object_agg(scope, id) FROM killswitches
                  WHERE released_at IS NULL), '{}') AS engaged
"""
_SLIDE = "SELECT slide_killswitch_window(cast(:window AS int))"
_SPENT = "SELECT scope, spent_usd FROM look_at_killswitch_spending(cast(:window AS int))"


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at a look; `engaged` are ids of engagements by their scopes."""

    thresholds: Thresholds
    engaged: Mapping[str, str]


class SpendWatch:
    """Looks at what is spent once a second, for as long as its worker lives."""

    def __init__(self, db: Database, redis: Redis, settings: Settings) -> None:
        self._db = db
        self._redis = redis
        self._settings = settings
        # the engagements that were told: none at first, as a worker that was here before may have
        # had no time to tell
        self._told: frozenset[str] = frozenset()
        self._looks = 0
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
        if standing.thresholds.any or self._looks % IDLE_LOOKS == 0:
            await self._db.run(_SLIDE, window=self._settings.killswitch_window_s)
        self._looks += 1
        if standing.thresholds.any:
            spent = await self._spent()
            for over in passed(spent, standing.thresholds):
                if over.scope not in standing.engaged and (done := await self._engage(over.scope)):
                    engaged.append(done)
            seen = Spending(
                spent.get(ALL, ZERO),
                standing.thresholds.of(ALL),
                closest(spent, standing.thresholds),
            )
            await tell_spending(self._redis, seen)
        await self._tell((await self._standing() if engaged else standing).engaged)
        return engaged

    async def _standing(self) -> Standing:
        (row,) = await self._db.run(_STANDING)
        chosen = {scope: None if usd is None else Decimal(usd) for scope, usd in row.chosen.items()}
        thresholds = Thresholds(
            self._settings.killswitch_system_usd, self._settings.killswitch_tenant_usd, chosen
        )
        return Standing(thresholds, row.engaged)

    async def _spent(self) -> dict[str, Decimal]:
        """What each scope settled in the window and holds now."""
        window = self._settings.killswitch_window_s
        return {row.scope: row.spent_usd for row in await self._db.run(_SPENT, window=window)}

    async def _tell(self, engaged: Mapping[str, str]) -> None:
        """Tell what is engaged and was not told; told again until it is heard."""
        self._told &= frozenset(engaged.values())
        for scope, switch in sorted(engaged.items()):
            if switch not in self._told:
                await give_order(self._redis, KILLSWITCH, scope=scope, engaged=True)
                self._told |= {switch}

    async def _engage(self, scope: str) -> Passed | None:
        """Engage a scope if it is over its threshold still: by now it may have been released, or
        its threshold may be another one."""
        async with self._db.everyone() as session:
            await let_none_begin(session)
            thresholds, spent = (await self._standing()).thresholds, await self._spent()
            over = next((each for each in passed(spent, thresholds) if each.scope == scope), None)
            done = over is not None and await self._stop(session, over)
            await session.commit()
        return over if done else None

    async def _stop(self, session: AsyncSession, over: Passed) -> bool:
        window = self._settings.killswitch_window_s
        reason = (
            f"{over.spent_usd:f} USD settled and held in {window} s,"
            f" the threshold is {over.threshold_usd:f} USD"
        )
        bound = {"spent_usd": over.spent_usd, "threshold_usd": over.threshold_usd}
        done = await engage(session, over.scope, reason, THRESHOLD, **bound)
        if done:
            log.error("killswitch_engaged", extra={"scope": over.scope, "reason": reason})
        return done
