"""The running catalogue, compared with a file and changed by one."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import text

from shared.catalog import load_catalog, open_catalog, write_catalog
from shared.db import Database
from shared.domain.candidate import Catalog
from shared.domain.catalog_diff import CatalogDiff, compare_catalogs, compare_prices
from shared.domain.price_list import PriceList, PriceListError

_NOTE = """
INSERT INTO operator_events (actor, act, target, detail)
VALUES ($1, 'catalog.apply', $2, $3::jsonb)
"""


class NotReadable(ValueError):
    """The file is neither a catalogue nor a list of prices; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Compared:
    """`off`: models of the table that an operator has switched off; they are not running."""

    diff: CatalogDiff
    off: tuple[str, ...]
    prices_only: bool

    def to_json(self) -> dict[str, Any]:
        return {
            **self.diff.to_json(),
            "switched_off": [*self.off],
            "compared": "prices" if self.prices_only else "catalogue",
        }


async def compare(db: Database, new: Catalog | PriceList) -> Compared:
    """What the file would change in the catalogue that runs."""
    running = await open_catalog(db)
    async with db.everyone() as session:
        found = await session.scalars(
            text("SELECT slug FROM models WHERE NOT active ORDER BY slug")
        )
        off = tuple(found)
    if isinstance(new, PriceList):
        today = datetime.now(UTC).date()
        return Compared(compare_prices(running, new, today), off, prices_only=True)
    return Compared(compare_catalogs(running, new), off, prices_only=False)


def read_new(path: Path) -> Catalog | PriceList:
    """A catalogue, or a list of prices (`.json`). Raises `NotReadable`, `CatalogError`."""
    if path.suffix != ".json":
        return load_catalog(path)
    try:
        return PriceList.of(json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal))
    except json.JSONDecodeError as error:
        raise NotReadable(f"{path.name}:{error.lineno}: no JSON: {error.msg}") from error
    except PriceListError as error:
        raise NotReadable(f"{path.name}: {error}") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise NotReadable(f"{path.name}: is no list of prices: it cannot be read") from error


async def apply_catalog(db: Database, catalog: Catalog, diff: CatalogDiff, actor: str) -> None:
    """Write the file's models into the table, and that this was done, in one transaction."""
    connection = await db.connect_raw()
    try:
        async with connection.transaction():
            await write_catalog(connection, catalog)
            detail = orjson.dumps(diff.to_json()).decode()
            await connection.execute(_NOTE, actor, catalog.hash, detail)
    finally:
        await connection.close()
