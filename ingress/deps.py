"""What a request handler may use: one frozen object on the application's state."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from fastapi import Request
from redis.asyncio import Redis
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from ingress.ends import Ends
from ingress.relay import Relay
from shared.config import ProviderConfig, Settings, provider_configs
from shared.db import TRANSIENT, Database
from shared.domain.candidate import Catalog
from shared.errors import Overloaded
from shared.kept import KeptCalls
from shared.killswitch import Killswitch
from shared.queue import InferenceQueue

if TYPE_CHECKING:
    from ingress.auth import KeyCache


@dataclass(frozen=True, slots=True)
class Deps:
    settings: Settings
    db: Database
    redis: Redis
    keyring: "KeyCache"
    catalog: Catalog
    relay: Relay
    kept: KeptCalls
    ends: Ends
    queue: InferenceQueue
    killswitch: Killswitch
    providers: Mapping[str, ProviderConfig] = field(default_factory=provider_configs)


def get_deps(request: Request) -> Deps:
    deps: Deps = request.app.state.deps
    return deps


@asynccontextmanager
async def session(db: Database, tenant: UUID) -> AsyncIterator[AsyncSession]:
    """A database session that acts for `tenant`; what is not committed is rolled back.

    Raises `Overloaded` (503, retryable) if Postgres is away or has no room.
    """
    async with reachable(), db.session(tenant) as opened:
        yield opened


@asynccontextmanager
async def everyone(db: Database) -> AsyncIterator[AsyncSession]:
    """As `session`, but it sees all tenants' rows: for what is asked before the tenant is known,
    for what is public, and for operators. tests/test_house_rules.py names each use."""
    async with reachable(), db.everyone() as opened:
        yield opened


@asynccontextmanager
async def reachable() -> AsyncIterator[None]:
    """Around a use of the database. Raises `Overloaded` if Postgres is away or has no room."""
    try:
        yield
    except (PoolTimeout, *TRANSIENT) as error:
        raise _away() from error
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig is not None else None
        if error.connection_invalidated or isinstance(cause, TRANSIENT):
            raise _away() from error
        raise


def _away() -> Overloaded:
    return Overloaded("The database cannot be reached at the moment. Retry.")
