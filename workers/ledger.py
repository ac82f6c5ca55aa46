"""Money in and out of a wallet around one call: hold, extend, settle; each one round trip."""

import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from shared.db import TRANSIENT, Committer, Database
from shared.holding import Held

log = logging.getLogger(__name__)

OPEN = "open_inferences"
SETTLE = "end_inferences"
NO_THRESHOLDS = "{}"
# New work is turned away when the database is gone for so long; finished work waits for it.
HOLD_PATIENCE_S = 5.0


class Ledger:
    """Two committers, each with a connection of its own: holds never wait behind settlements.

    `guard` has the killswitch's thresholds, as `shared.killswitch.guard` makes it of the settings.
    """

    def __init__(self, db: Database, guard: str = NO_THRESHOLDS) -> None:
        self._db = db
        self._guard = guard
        self._opener = Committer(db, OPEN, patience_s=HOLD_PATIENCE_S, more=guard)
        self._settler = Committer(db, SETTLE)

    async def start(self) -> None:
        await self._opener.start()
        await self._settler.start()

    async def aclose(self) -> None:
        """Finish what was submitted, then close."""
        await self._opener.aclose()
        await self._settler.aclose()

    async def hold(self, item: Mapping[str, Any]) -> Held:
        """Reserve money for a call and write its first audit event, or say why not.

        Raises `Overloaded` while the database is away.
        """
        row = await self._opener.submit(item)
        return Held.of(dict(row), row["attempt"])

    async def settle(self, item: Mapping[str, Any]) -> str:
        """Write how a call ended; `SETTLED`, `EXISTS`, `FENCED` or `UNKNOWN`. Durable on return."""
        row = await self._settler.submit(item)
        if row["result"] == "EXISTS" and row["attempt"] == item["attempt"]:
            # our own settlement: the answer to it was lost, and it was sent again
            return "SETTLED"
        result: str = row["result"]
        return result

    async def bury(self, item: Mapping[str, Any]) -> str:
        """Set a call aside as a dead letter; `BURIED`, `EXISTS`, `SETTLED` or `FENCED`.

        Durable on return; waits for the database as long as it takes.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((*TRANSIENT, TimeoutError)),
            wait=wait_exponential(multiplier=0.05, max=2),
        )
        return await retrying(self._db.bury, item)

    async def extend(self, inference_id: str, attempt: int, extra: Decimal, ttl_s: int) -> Held:
        """Enlarge a hold by `extra` USD and lease it for `ttl_s` from now: `EXTENDED`, or why not.

        A database that is away refuses too: `UNAVAILABLE`. No money is promised without it.
        """
        try:
            row = await self._db.enlarge_hold(inference_id, attempt, extra, ttl_s, self._guard)
        except (SQLAlchemyError, *TRANSIENT) as error:
            log.warning("hold_not_extended", extra={"error": repr(error)})
            return Held("UNAVAILABLE", attempt)
        return Held.of(row, attempt)
