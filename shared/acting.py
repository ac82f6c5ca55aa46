"""Connections that tell the database for whom each of their transactions acts.

The policies of row-level security (`migrations/sql/0010_tenancy.sql`) show a caller's transaction
the rows of the tenant that `ainfera.tenant` names, and without it no row at all. The setting is
part of the round trip that begins the transaction and ends with it, so a pool, ours or a pooler's,
may hand the connection to anybody afterwards.
"""

from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

if TYPE_CHECKING:
    Driver = asyncpg.Connection[asyncpg.Record]
else:
    Driver = asyncpg.Connection

CALLER_ROLE = "ainfera_caller"
SETTING = "ainfera.tenant"


class CallerConnection(Driver):
    """A connection whose next transaction acts for `acts_for`; for nobody once that is taken."""

    __slots__ = ("acts_for",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.acts_for: UUID | None = None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As the driver's own; a `BEGIN` says in the same breath whom it is for."""
        if query.startswith("BEGIN") and self.acts_for is not None:
            # the text of a UUID has nothing in it that would need quoting
            query = f"{query} SET LOCAL {SETTING} = '{self.acts_for}';"
            self.acts_for = None
        return await super().execute(query, *args, timeout=timeout)
