"""Alembic's environment: one asyncpg connection, one transaction, one migration at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text

from migrations.run import MIGRATION_LOCK
from shared.db import owner_engine
from shared.models import METADATA


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=METADATA)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()


async def main(url: str) -> None:
    engine = owner_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


asyncio.run(main(context.config.attributes["url"]))
