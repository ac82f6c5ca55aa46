"""The books worker watches what is spent, and engages the killswitch where it is too much.

Once a second. A look reads what was settled in the last seconds and what is held now, in one
statement and so at one moment: a call is in one of them, never in both or in none. Settlements
bear the moment at which they began and show when they are committed, so every look reads some
seconds again, and now and then a minute.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from shared.config import Settings
from shared.control import KILLSWITCH, give_order
from shared.db import TRANSIENT, Database
from shared.domain.ledger import PROVIDER_COST_ACCOUNT, ZERO
from shared.domain.spending import (
    ALL,
    Passed,
    SpendWindow,
    Spent,
    Thresholds,
    closest,
    passed,
)
from shared.killswitch import engage
from shared.spending import Spending, tell_spending

log = logging.getLogger(__name__)

THRESHOLD = "threshold"
EVERY_S = 1.0
READ_AGAIN_S, READ_FAR_AGAIN_S = 5, 60
LOOKS_BETWEEN_FAR_ONES = 15

_STANDING = """
SELECT floor(extract(epoch FROM now()))::bigint AS now,
       coalesce((SELECT jsonb_object_agg(scope, threshold_usd::text)
                   FROM killswitch_thresholds), '{}') AS chosen,
       array(SELECT scope FROM killswitches WHERE released_at IS NULL) AS engaged,
       (SELECT max(released_at) FROM killswitches) AS released
"""
# What began before a release of its scope was reason enough for that switch, and for no other.
_SPENT = """
WITH releases AS (
  SELECT scope, max(released_at) AS at FROM killswitches WHERE released_at IS NOT NULL
   GROUP BY scope
), of_all AS (
  SELECT coalesce(max(at), '-infinity') AS at FROM releases WHERE scope = 'all'
), spent AS (
  SELECT floor(extract(epoch FROM t.created_at))::bigint AS second, t.tenant_id, t.amount AS usd,
         i.created_at AS began
    FROM transfers t JOIN inferences i ON i.id = t.inference_id
   WHERE t.credit_account = :account AND t.kind = 'usage' AND t.created_at >= to_timestamp(:since)
   UNION ALL
  SELECT NULL, i.tenant_id, i.hold_usd, i.created_at FROM inferences i WHERE i.state = 'held'
)
SELECT s.second, s.tenant_id::text AS tenant_id,
       coalesce(sum(s.usd) FILTER (WHERE s.began > coalesce(r.at, '-infinity')), 0) AS tenant_usd,
       coalesce(sum(s.usd) FILTER (WHERE s.began > a.at), 0) AS system_usd
  FROM spent s LEFT JOIN releases r ON r.scope = s.tenant_id::text CROSS JOIN of_all a
 GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at a look: the second it is, thresholds, engaged scopes, the newest release."""

    now: int
    thresholds: Thresholds
    engaged: frozenset[str]
    released: Any


class SpendWatch:
    """Looks at what is spent once a second, for as long as its worker lives."""

    def __init__(self, db: Database, redis: Redis, settings: Settings) -> None:
        self._db = db
        self._redis = redis
        self._settings = settings
        self._window = SpendWindow()
        self._looks = 0
        self._known_release: Any = None
        # told again until it is heard: a worker that was here before may have had no time to tell
        self._untold: set[str] | None = None
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
                self._looks = 0  # what was missed meanwhile is read with the whole window
            await asyncio.sleep(EVERY_S)

    async def look(self) -> list[Passed]:
        """See what is spent, engage where it is too much; returns what was engaged now."""
        standing = await self._standing()
        if self._untold is None:
            self._untold = set(standing.engaged)
        engaged: list[Passed] = []
        if standing.thresholds.any:
            spent = self._window.totals(await self._read(standing))
            for over in passed(spent, standing.thresholds):
                if over.scope not in standing.engaged and await self._engage(over):
                    engaged.append(over)
            seen = Spending(
                spent.get(ALL, ZERO),
                standing.thresholds.of(ALL),
                closest(spent, standing.thresholds),
            )
            await tell_spending(self._redis, seen)
        else:
            self._looks = 0
        for scope in sorted(self._untold):
            await give_order(self._redis, KILLSWITCH, scope=scope, engaged=True)
            self._untold.discard(scope)
        return engaged

    async def _standing(self) -> Standing:
        (row,) = await self._db.run(_STANDING)
        chosen = {scope: None if usd is None else Decimal(usd) for scope, usd in row.chosen.items()}
        thresholds = Thresholds(
            self._settings.killswitch_system_usd, self._settings.killswitch_tenant_usd, chosen
        )
        return Standing(row.now, thresholds, frozenset(row.engaged), row.released)

    async def _read(self, standing: Standing) -> list[Spent]:
        """Bring the window up to date; returns what is held now."""
        oldest = standing.now - self._settings.killswitch_window_s
        if standing.released != self._known_release:
            self._looks = 0
        if self._looks == 0:
            since = oldest
        elif self._looks % LOOKS_BETWEEN_FAR_ONES == 0:
            since = max(oldest, standing.now - READ_FAR_AGAIN_S)
        else:
            since = max(oldest, standing.now - READ_AGAIN_S)
        rows = await self._db.run(_SPENT, account=PROVIDER_COST_ACCOUNT, since=since)
        found = _spent(rows)
        self._window.replace(since, found)
        self._window.forget(oldest)
        self._looks += 1
        self._known_release = standing.released
        return [each for each in found if each.second is None]

    async def _engage(self, over: Passed) -> bool:
        window = self._settings.killswitch_window_s
        reason = (
            f"{over.spent_usd:f} USD settled and held in {window} s,"
            f" the threshold is {over.threshold_usd:f} USD"
        )
        async with self._db.session() as session:
            done = await engage(
                session,
                over.scope,
                reason,
                THRESHOLD,
                spent_usd=over.spent_usd,
                threshold_usd=over.threshold_usd,
            )
            await session.commit()
        assert self._untold is not None
        self._untold.add(over.scope)
        if done:
            log.error("killswitch_engaged", extra={"scope": over.scope, "reason": reason})
        return done


def _spent(rows: Sequence[Row[Any]]) -> list[Spent]:
    return [Spent(row.second, row.tenant_id, row.tenant_usd, row.system_usd) for row in rows]
