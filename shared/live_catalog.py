"""The catalogue as this process has it: read again when an operator has changed it."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from shared.catalog import open_catalog
from shared.control import CATALOG
from shared.db import TRANSIENT, Database
from shared.domain.candidate import Catalog

log = logging.getLogger(__name__)

READ_AGAIN_S = 0.5


class LiveCatalog:
    """`current` is whole at any moment: a decision is made from one catalogue, old or new.

    An order over the control channel says that it has changed; what may have been missed while
    nobody listened is read as well. While Postgres is away the old one is good.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._stale = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.current = Catalog.of(())

    async def start(self) -> None:
        """Read the catalogue; raises if Postgres does not answer."""
        self.current = await open_catalog(self._db)
        self._task = asyncio.create_task(self._keep_reading(), name="catalogue")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def obey(self, order: Mapping[str, Any]) -> None:
        """An order over the control channel."""
        if order["type"] == CATALOG:
            self._stale.set()

    def missed(self) -> None:
        """Orders may have been missed."""
        self._stale.set()

    async def _keep_reading(self) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                found = await open_catalog(self._db)
            except (SQLAlchemyError, *TRANSIENT) as error:
                log.warning("catalogue_not_read", extra={"error": type(error).__name__})
                self._stale.set()
                await asyncio.sleep(READ_AGAIN_S)
                continue
            if found.hash != self.current.hash:
                self.current = found
                log.info("catalogue_changed", extra={"hash": found.hash})
