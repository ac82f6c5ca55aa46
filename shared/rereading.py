"""Reading again what a process keeps in memory of the database, when it may have changed there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from shared.db import TRANSIENT

log = logging.getLogger(__name__)

READ_AGAIN_S = 0.5


class Rereading:
    """Calls `read` whenever it was told to, and every `every_s` if that is given.

    While Postgres is away what was read last stays good. What was told is read as soon as it is
    back; what is read by the clock waits for its next turn.
    """

    def __init__(
        self, name: str, read: Callable[[], Awaitable[None]], every_s: float | None = None
    ) -> None:
        self._name = name
        self._read = read
        self._every_s = every_s
        self._stale = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_stale(self) -> bool:
        """Whether it was told to read again, and has not begun to."""
        return self._stale.is_set()

    def tell(self) -> None:
        """It may have changed."""
        self._stale.set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._stale.wait()
            self._stale.clear()
            try:
                await self._read()
            except (SQLAlchemyError, *TRANSIENT) as error:
                # its kind: the words of a database may be those of a row
                about = {"error": type(error).__name__}
                log.warning(f"{self._name}_not_read", extra=about)
                if self._every_s is None:
                    self._stale.set()
                    await asyncio.sleep(READ_AGAIN_S)
