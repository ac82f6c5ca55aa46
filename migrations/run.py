"""Bring a database to a revision. The URL's role becomes the owner of what is created.

These functions block and run an event loop of their own: inside a running loop, call them with
`asyncio.to_thread`.
"""

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config

from shared.config import StartError

# Two processes that start together migrate one after the other; the number is arbitrary.
MIGRATION_LOCK = 0x61696E66


def alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Raises `StartError` where the URL's role may not do what a migration needs."""
    try:
        command.upgrade(alembic_config(url), revision)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StartError(f"The schema cannot be migrated: {error}") from error


def downgrade(url: str, revision: str) -> None:
    command.downgrade(alembic_config(url), revision)
