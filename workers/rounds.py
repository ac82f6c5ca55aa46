"""What the books worker's rounds share: how one meets a store that is away, or stands still."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, TypeVar, cast

from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import NullPool

from shared.db import CALL_TIMEOUT_S, TRANSIENT, Connection, Database, open_engine

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Callable[..., Coroutine[Any, Any, Any]])


def put_off(round_: R) -> R:
    """A round that waits for its next turn while a store is away: that is no bug of ours."""

    @wraps(round_)
    async def around(ctx: Mapping[str, Any]) -> Any:
        try:
            return await round_(ctx)
        except (RedisError, DBAPIError, *TRANSIENT) as away:
            if isinstance(away, DBAPIError) and not _of_a_server_away(away):
                raise
            # the words of a database may be those of a row: its kind must do
            about = {"round": round_.__name__, "error": type(away).__name__}
            log.warning("round_put_off", extra=about)
            return None

    return cast(R, around)


def _of_a_server_away(error: DBAPIError) -> bool:
    if isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated:
        return True
    return error.orig is not None and isinstance(error.orig.__cause__, TRANSIENT)


def within(seconds: float) -> Iterator[None]:
    """Turns for a round's loop while it has time; what it does not reach the next one does."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        yield


@asynccontextmanager
async def round_connection(db: Database) -> AsyncIterator[Connection]:
    """A round's own connection, on which no statement waits for ever.

    It is dropped without a goodbye, which a server that stands still would never hear; what a
    transaction on it has not committed is undone by that.
    """
    connection = await db.connect_raw(timeout_s=CALL_TIMEOUT_S)
    try:
        yield connection
    finally:
        connection.terminate()


class CutOff:
    """Sessions about everyone over connections of their own, each gone after so long.

    Come what may: a pool would ask the connection whether it is well, and a session would take its
    transaction back by a statement, and neither is answered by a server that stands still.
    """

    def __init__(self, db: Database) -> None:
        connecting = partial(db.connect_raw, timeout_s=CALL_TIMEOUT_S)
        self._engine = open_engine(connecting, poolclass=NullPool)

    @asynccontextmanager
    async def session(self, after_s: float) -> AsyncIterator[AsyncSession]:
        """Use and commit as any other."""
        cut: asyncio.TimerHandle | None = None
        try:
            async with AsyncSession(self._engine, expire_on_commit=False) as session:
                pooled = await (await session.connection()).get_raw_connection()
                driver: Any = pooled.driver_connection
                cut = asyncio.get_running_loop().call_later(after_s, driver.terminate)
                yield session
        finally:
            if cut is not None:
                cut.cancel()
