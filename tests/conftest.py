"""What every test may ask for: real servers of its own, a migrated database, settings.

The servers are started once for a run, in a folder of their own and behind sockets, so that
a test run disturbs neither `make up` nor another run. Databases are copies of one that was
migrated and seeded once. Nothing that `make up` or a developer set in the environment reaches
a test.
"""

import asyncio
import base64
import itertools
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import migrations
from shared.catalog import seed_catalog
from shared.config import PROVIDER_SETTINGS, Settings
from shared.embedded import (
    APP_ROLE,
    CALLER_ROLE,
    OWNER_ROLE,
    Servers,
    embedded_servers,
    postgres_url,
)
from tests.neighbours import Neighbours, takes_long

# how long an example takes is the machine's business, not the rule's
hypothesis.settings.register_profile("ainfera", deadline=None)
hypothesis.settings.load_profile("ainfera")

# one for the run: a database keeps to the key that it was first used with
MASTER_KEY = base64.b64encode(secrets.token_bytes(32)).decode()
_database_numbers = itertools.count(1)

for _field in Settings.model_fields.values():
    os.environ.pop(str(_field.validation_alias), None)
for _key_name, _url_name, _ in PROVIDER_SETTINGS.values():
    os.environ.pop(_key_name, None)
    os.environ.pop(_url_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins early, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not takes_long(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Side by side, tests that share something stay together, whatever `--dist` says."""
    config.option.loadscopereorder = False
    return Neighbours(config, log)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Postgres and Valkey for this run. Not durable: a test that crashes one starts its own."""
    options = {
        "shared_buffers": "64MB",
        "max_connections": "200",
        "shared_preload_libraries": "pg_stat_statements",
        "max_wal_size": "4GB",
    }
    with (
        tempfile.TemporaryDirectory(prefix="fleet-test-") as home,
        embedded_servers(Path(home), durable=False, postgres_options=options) as running,
    ):
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(servers: Servers) -> str:
    """The name of a database that was migrated and seeded once, to be copied, never used."""
    name = f"template_{next(_database_numbers)}"
    await _as_superuser(servers, f"CREATE DATABASE {name} OWNER {OWNER_ROLE}")
    url = postgres_url(servers.sockets, OWNER_ROLE, name)
    # alembic runs an event loop of its own, so it gets a thread of its own
    await asyncio.to_thread(migrations.upgrade, url)
    await seed_catalog(url)
    return name


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database_name(servers: Servers, template: str) -> AsyncIterator[str]:
    """A fresh migrated database for each module of tests."""
    name = f"test_{next(_database_numbers)}"
    await _as_superuser(servers, f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER_ROLE}")
    yield name
    await _as_superuser(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def owner_url(servers: Servers, database_name: str) -> str:
    """The module's database as the role that owns the schema (not a superuser)."""
    return postgres_url(servers.sockets, OWNER_ROLE, database_name)


@pytest.fixture(scope="module")
def database_url(servers: Servers, database_name: str) -> str:
    """The module's database as the role that the application uses."""
    return postgres_url(servers.sockets, APP_ROLE, database_name)


@pytest.fixture(scope="module")
def caller_url(servers: Servers, database_name: str) -> str:
    """The module's database as the role that acts for one caller at a time."""
    return postgres_url(servers.sockets, CALLER_ROLE, database_name)


@pytest.fixture(scope="module")
def superuser_url(servers: Servers, database_name: str) -> str:
    """The module's database as superuser: for counting from outside and for spoiling data."""
    return postgres_url(servers.sockets, "postgres", database_name)


@pytest_asyncio.fixture(loop_scope="session")
async def empty_database(servers: Servers) -> AsyncIterator[str]:
    """The owner's URL of a database without any table, for tests of the migrations."""
    name = f"empty_{next(_database_numbers)}"
    await _as_superuser(servers, f"CREATE DATABASE {name} OWNER {OWNER_ROLE}")
    yield postgres_url(servers.sockets, OWNER_ROLE, name)
    await _as_superuser(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(loop_scope="session")
async def redis_url(servers: Servers) -> str:
    """Valkey, empty at the start of each test."""
    return await _emptied(f"{servers.redis_url}?db=0")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def module_redis_url(servers: Servers) -> str:
    """Valkey for what lives as long as a module of tests: `redis_url` does not empty it."""
    return await _emptied(f"{servers.redis_url}?db=1")


@pytest.fixture
def make_settings(database_url: str, redis_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of this test's database and Valkey; keyword arguments change any field."""
    return settings_factory(database_url, redis_url, tmp_path)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


def settings_factory(database_url: str, redis_url: str, home: Path) -> Callable[..., Settings]:
    """For fixtures of a wider scope than one test."""
    defaults: dict[str, Any] = {
        "database_url": database_url,
        "caller_database_url": database_url.replace(f"//{APP_ROLE}@", f"//{CALLER_ROLE}@"),
        "redis_url": redis_url,
        "fleet_home": home,
        "master_key": MASTER_KEY,
        "internal_key": secrets.token_urlsafe(32),
        "signup_mode": "open",
        "self_topup": True,
        # one address stands for all clients of a test
        "public_requests_per_minute": 0,
        "signups_per_minute": 0,
        "simulated_first_token_ms": 0,
        "simulated_token_ms": 0,
    }

    def make(**changes: Any) -> Settings:
        return Settings(**{**defaults, **changes})

    return make


async def _as_superuser(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.superuser_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _emptied(url: str) -> str:
    async with Redis.from_url(url) as client:
        await client.flushdb()
    return url
