"""What must be right before a process starts: its servers are named, and they answer.

A server that goes away later is waited for. One that is away at the start is more often a wrong
setting than an outage, so the process says which one in a line and ends; whoever supervises it
starts it again.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import asyncpg
from redis.exceptions import RedisError

from shared.acting import CALLER_ROLE
from shared.config import Settings, SettingsError, StartError
from shared.db import APP_ROLE, Connection, connect
from shared.valkey import open_valkey

EXAMPLES = {
    "DATABASE_URL": "postgresql://ainfera_app:…@host:5432/ainfera",
    "CALLER_DATABASE_URL": "postgresql://ainfera_caller:…@host:5432/ainfera",
    "MIGRATION_DATABASE_URL": "postgresql://ainfera_owner:…@host:5432/ainfera",
    "REDIS_URL": "redis://:…@host:6379/0",
}
_PATIENCE_S = 10.0
_HELD = f"SELECT current_user = '{CALLER_ROLE}' AND row_security_active('tenants')"


class Unreachable(StartError):
    """A server that does not answer or does not let us in; names the setting, no password."""


def refusal(error: StartError) -> int:
    """Tell on standard error why a process does not start; the exit code."""
    sys.stderr.write(f"{error}\n")
    return error.exit_code


async def check_stores(settings: Settings) -> None:
    """Raises `SettingsError` or `Unreachable` unless Postgres, with a schema, and Valkey answer."""
    if not settings.database_url:
        raise not_set("DATABASE_URL")
    if not settings.redis_url:
        raise not_set("REDIS_URL")
    await check_postgres("DATABASE_URL", settings.database_url, APP_ROLE)
    await check_valkey(settings.redis_url)


async def check_postgres(name: str, url: str, role: str | None = None) -> None:
    """Raises `SettingsError` or `Unreachable`, which name the setting `name`.

    With the application's role there must be a schema as well.
    """
    async with postgres(name, url, role) as connection:
        query = "SELECT 1" if role is None else "SELECT version_num FROM alembic_version"
        await connection.fetchval(query)


async def check_callers(database_url: str, caller_database_url: str) -> None:
    """For the ingress. Raises `SettingsError`, or `Unreachable` unless the database holds what is
    done for a caller to the rows of its tenant."""
    name = "CALLER_DATABASE_URL" if caller_database_url else "DATABASE_URL"
    url = caller_database_url or database_url
    try:
        async with postgres(name, url, CALLER_ROLE) as connection:
            if await connection.fetchval(_HELD):
                return
        reason = f"{name}: callers would not be held to their own rows at {_place(url)}"
    except Unreachable as error:
        reason = str(error)
    raise Unreachable(
        f"{reason}. Callers are served as {CALLER_ROLE}: run `fleet migrate`, then set "
        "CALLER_DATABASE_URL to a login of that role, or let this login become it (GRANT "
        f"{CALLER_ROLE} TO …; not behind a pooler)."
    )


@asynccontextmanager
async def postgres(name: str, url: str, role: str | None) -> AsyncIterator[Connection]:
    """A connection for a look before the start. Raises as `check_postgres` does."""
    try:
        connection = await connect(url, role, "ainfera-start")
    except ValueError:
        # the error's own words may repeat the password
        raise _not_understood(name, url) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unreachable(_away(name, "Postgres", url, error)) from None
    try:
        yield connection
    except asyncpg.UndefinedTableError:
        raise Unreachable(
            f"{name}: the database at {_place(url)} lacks tables that this version needs. "
            "Run `fleet migrate`, then `fleet seed`."
        ) from None
    finally:
        await connection.close()


async def check_valkey(url: str) -> None:
    """Raises `SettingsError` or `Unreachable`, which name REDIS_URL."""
    try:
        client = open_valkey(url)
    except ValueError:
        raise _not_understood("REDIS_URL", url) from None
    try:
        async with asyncio.timeout(_PATIENCE_S), client:
            await client.ping()
    except (RedisError, OSError) as error:
        raise Unreachable(_away("REDIS_URL", "Valkey", url, error)) from None


def not_set(name: str) -> SettingsError:
    """The error for an address that is needed and not there."""
    return SettingsError(
        f"{name} is not set. It looks like {EXAMPLES[name]} (`fleet up` brings servers of its own)."
    )


def _not_understood(name: str, url: str) -> SettingsError:
    if not url:
        return not_set(name)
    return SettingsError(f"{name} is no address of its kind. It looks like {EXAMPLES[name]}")


def _away(name: str, server: str, url: str, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{name}: {server} at {_place(url)} cannot be used: {' '.join(reason.split())}"


def _place(url: str) -> str:
    """Host and port, or the socket's path: an address without its password."""
    parts = urlsplit(url)
    socket_folder = parse_qs(parts.query).get("host", [""])[0]
    return socket_folder or parts.netloc.rpartition("@")[2] or parts.path or "its default address"
