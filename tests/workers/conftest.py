"""What the tests of the workers share."""

from collections.abc import AsyncIterator

import pytest_asyncio

from shared.db import APP_ROLE, Connection, connect
from tests.workers.ledger_cases import check_books


@pytest_asyncio.fixture(loop_scope="session")
async def ledger_db(database_url: str) -> AsyncIterator[Connection]:
    """As the application connects; whatever a test did, the books are in order after it."""
    connection = await connect(database_url, APP_ROLE, "test")
    yield connection
    await check_books(connection)
    await connection.close()
