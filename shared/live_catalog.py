"""The catalogue as this process has it: read again when an operator has changed it."""

import logging
from collections.abc import Mapping
from typing import Any

from shared.catalog import open_catalog
from shared.control import CATALOG
from shared.db import Database
from shared.domain.candidate import Catalog
from shared.rereading import Rereading

log = logging.getLogger(__name__)


class LiveCatalog:
    """`current` is whole at any moment: a decision is made from one catalogue, old or new.

    An order over the control channel says that it has changed; what may have been missed while
    nobody listened is read as well. While Postgres is away the old one is good.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._rereading = Rereading("catalogue", self._read)
        self.current = Catalog.of(())

    async def start(self) -> None:
        """Read the catalogue; raises if Postgres does not answer."""
        self.current = await open_catalog(self._db)
        self._rereading.start()

    async def aclose(self) -> None:
        await self._rereading.aclose()

    def obey(self, order: Mapping[str, Any]) -> None:
        """An order over the control channel."""
        if order["type"] == CATALOG:
            self._rereading.tell()

    def missed(self) -> None:
        """Orders may have been missed."""
        self._rereading.tell()

    async def _read(self) -> None:
        found = await open_catalog(self._db)
        if found.hash != self.current.hash:
            self.current = found
            log.info("catalogue_changed", extra={"hash": found.hash})
