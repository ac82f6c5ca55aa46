"""What the tests of the workers share."""

from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis

from shared.db import APP_ROLE, Connection, connect
from tests.workers.books_cases import Books, keep_books
from tests.workers.ledger_cases import check_books
from tests.workers.running import Running


@pytest_asyncio.fixture(loop_scope="session")
async def ledger_db(database_url: str) -> AsyncIterator[Connection]:
    """As the application connects; whatever a test did, the books are in order after it."""
    connection = await connect(database_url, APP_ROLE, "test")
    yield connection
    await check_books(connection)
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def app(database_url: str) -> AsyncIterator[Connection]:
    """As the application connects."""
    connection = await connect(database_url, APP_ROLE, "test")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kept_books(database_url: str) -> Books:
    """What a little of everything leaves in the books."""
    connection = await connect(database_url, APP_ROLE, "test")
    kept = await keep_books(connection)
    await connection.close()
    return kept


@pytest_asyncio.fixture(loop_scope="session")
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    for running in list(Running.left):
        await running.crash()
    await client.aclose()
