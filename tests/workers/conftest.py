"""What the tests of the workers share."""

from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import APP_ROLE, Connection, Database, connect
from shared.domain.spending import ALL
from shared.killswitch import engaged_switches, release
from tests.workers.books_cases import Books, keep_books
from tests.workers.ledger_cases import check_books
from tests.workers.running import Running
from tests.workers.threshold_cases import turn


@pytest_asyncio.fixture(loop_scope="session")
async def ledger_db(database_url: str) -> AsyncIterator[Connection]:
    """As the application connects; whatever a test did, the books are in order after it."""
    connection = await connect(database_url, APP_ROLE, "test")
    yield connection
    await check_books(connection)
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def unstopped(settings: Settings, ledger_db: Connection) -> AsyncIterator[Database]:
    """Nothing counts for `all` when a test begins, and no killswitch is engaged when it is over."""
    opened = Database(settings)
    await turn(opened, ALL, engaged=True)
    await turn(opened, ALL, engaged=False)
    yield opened
    async with opened.everyone() as session:
        for row in await engaged_switches(session):
            await release(session, row.scope, "", "test")
        await session.commit()
    await opened.aclose()


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
