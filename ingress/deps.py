"""What a request handler may use: one frozen object on the application's state."""

import asyncio
import math
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

from ingress.chain_checks import ChainChecks
from ingress.ends import Ends
from ingress.relay import Relay
from shared.config import ProviderConfig, Settings, provider_configs
from shared.db import TRANSIENT, Database
from shared.domain.candidate import Catalog
from shared.errors import Draining, Overloaded
from shared.kept import KeptCalls
from shared.killswitch import Killswitch
from shared.live_routing import LiveRouting
from shared.log_key import OpenedKey
from shared.queue import InferenceQueue
from shared.quotes import Quotes

if TYPE_CHECKING:
    from ingress.auth import KeyCache
    from ingress.limits import AddressLimit


class Drain:
    """Whether this process is being stopped."""

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        self.begun = True

    def check(self) -> None:
        """Raises `Draining` once no new call is taken."""
        if self.begun:
            raise Draining(
                "This instance of the gateway is being stopped and takes no new calls; nothing was "
                "charged. Send the request again, to another instance if there is one."
            )


class Counted:
    """When the books were last counted for `/metrics`; one who asks counts for all."""

    def __init__(self) -> None:
        self.at = -math.inf
        self.lock = asyncio.Lock()


# what a call waits for Postgres before it is told to come again; as long as its hold may take
CALL_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Deps:
    """What every handler of this instance shares, made once by `app.open_deps`."""

    settings: Settings
    db: Database
    redis: Redis
    keyring: "KeyCache"
    routing: LiveRouting
    relay: Relay
    kept: KeptCalls
    quotes: Quotes
    ends: Ends
    queue: InferenceQueue
    killswitch: Killswitch
    public_limit: "AddressLimit"
    signup_limit: "AddressLimit"
    providers: Mapping[str, ProviderConfig] = field(default_factory=provider_configs)
    drain: Drain = field(default_factory=Drain)
    counted: Counted = field(default_factory=Counted)
    log_key: OpenedKey = field(default_factory=OpenedKey)
    chain_checks: ChainChecks = field(default_factory=ChainChecks)

    @property
    def catalog(self) -> Catalog:
        """As it is now; who needs it twice for one answer keeps it."""
        return self.routing.catalog.current


def get_deps(request: Request) -> Deps:
    deps: Deps = request.app.state.deps
    return deps


@asynccontextmanager
async def session(
    db: Database, tenant: UUID, *, patience_s: float | None = None
) -> AsyncIterator[AsyncSession]:
    """A database session that acts for `tenant`; what is not committed is rolled back.

    Raises `Overloaded` (503, retryable) if Postgres is away or has no room, or takes longer than
    `patience_s`.
    """
    async with reachable(patience_s), db.session(tenant) as opened:
        yield opened


@asynccontextmanager
async def everyone(db: Database, *, patience_s: float | None = None) -> AsyncIterator[AsyncSession]:
    """As `session`, but it sees all tenants' rows: for what is asked before the tenant is known,
    for what is public, and for operators. tests/test_house_rules.py names each use."""
    async with reachable(patience_s), db.everyone() as opened:
        yield opened


@asynccontextmanager
async def reachable(patience_s: float | None = None) -> AsyncIterator[None]:
    """Around a use of the database. Raises `Overloaded` if Postgres is away or has no room.

    One that stands still says nothing at all: who may not wait for it has `patience_s`.
    """
    try:
        async with asyncio.timeout(patience_s):
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
