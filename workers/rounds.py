"""What the books worker's rounds share: how one meets a store that is away, or stands still."""

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from redis.exceptions import RedisError
from sqlalchemy.exc import InterfaceError, OperationalError

from shared.db import CALL_TIMEOUT_S, TRANSIENT, Connection, Database

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Callable[..., Coroutine[Any, Any, Any]])


def put_off(round_: R) -> R:
    """A round that waits for its next turn while a store is away: that is no bug of ours."""

    @wraps(round_)
    async def around(ctx: Mapping[str, Any]) -> Any:
        try:
            return await round_(ctx)
        except (RedisError, OperationalError, InterfaceError, *TRANSIENT) as away:
            # the words of a database may be those of a row: its kind must do
            about = {"round": round_.__name__, "error": type(away).__name__}
            log.warning("round_put_off", extra=about)
            return None

    return cast(R, around)


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
