"""When each key was last used: written once a minute for all keys, never while a call waits."""

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from ingress.auth import KeyCache
from ingress.deps import reachable
from shared.db import Database
from shared.errors import Overloaded

log = logging.getLogger(__name__)

EVERY_S = 60.0
FLUSH_PATIENCE_S = 5.0

# Keys are of many tenants, and each was proven by its own hash. Another ingress may have seen a
# later use.
_NOTE = """
UPDATE api_keys k
   SET last_used_at = greatest(k.last_used_at, clock_timestamp() - make_interval(secs => u.age))
  FROM unnest(cast(:hashes AS bytea[]), cast(:ages AS float8[])) AS u (key_hash, age)
 WHERE k.key_hash = u.key_hash
"""


class LastUse:
    """Takes the uses that a `KeyCache` noted to the database, and once more when it is closed."""

    def __init__(self, keyring: KeyCache, db: Database, every_s: float = EVERY_S) -> None:
        self._keyring = keyring
        self._db = db
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_noting(), name="last use of keys")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_PATIENCE_S):
                await self.flush()

    async def flush(self) -> None:
        """Write what was noted; what cannot be written now is noted again."""
        uses = self._keyring.take_uses()
        if not uses:
            return
        now = self._keyring.now()
        hashes, ages = list(uses), [now - at for at in uses.values()]
        try:
            async with reachable(), self._db.everyone() as session:
                await session.execute(text(_NOTE), {"hashes": hashes, "ages": ages})
                await session.commit()
        except (Overloaded, SQLAlchemyError) as error:
            log.warning("last_use_not_noted", extra={"keys": len(uses), "error": repr(error)})
            self._keyring.note_uses(uses)

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.flush()
