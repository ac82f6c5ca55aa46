"""Whether the master key of this process is the one that its database was first used with.

Agents' private keys are sealed with it. A process with another key would seal new ones so that
the others cannot open them, and would find out about the old ones only when a card is asked for.
So the first process to start leaves a known word in the database, sealed with its key, and each
one opens it before it does anything else.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy.dialects.postgresql import BYTEA
from sqlmodel import Field, SQLModel

from shared.config import SettingsError
from shared.db import APP_ROLE, Connection
from shared.keys import SealBroken, Sealer, agent_key_sealer
from shared.models import moment
from shared.preflight import postgres

_PURPOSE = "ainfera master key proof v1"
_WORD, _NOBODY = b"ainfera", UUID(int=0)

_READ = "SELECT sealed FROM master_key_proofs"
# of two that start at the same moment with different keys, one writes it and the other reads it
_WRITE = "INSERT INTO master_key_proofs (sealed) VALUES ($1) ON CONFLICT DO NOTHING"
_OLDEST = "SELECT id, private_key_sealed FROM agents ORDER BY id LIMIT 1"


class MasterKeyProofRow(SQLModel, table=True):
    """One row at most: a known word, sealed with the master key."""

    __tablename__ = "master_key_proofs"

    id: int = Field(
        default=1,
        primary_key=True,
        sa_column_kwargs={"server_default": "1", "autoincrement": False},
    )
    sealed: bytes = Field(sa_type=BYTEA)
    created_at: datetime = moment()


async def check_master_key(database_url: str, master_key: str) -> None:
    """Raises `SettingsError` for a key that cannot seal or is not the database's."""
    try:
        sealer = Sealer(master_key, _PURPOSE)
    except ValueError as error:
        raise SettingsError(f"{error}; `fleet secrets` prints one.") from None
    async with postgres("DATABASE_URL", database_url, APP_ROLE) as connection:
        try:
            sealed = await connection.fetchval(_READ)
            if sealed is None:
                await _try_oldest(connection, master_key)
                await connection.execute(_WRITE, sealer.seal(_WORD, _NOBODY))
                sealed = await connection.fetchval(_READ)
            sealer.open(sealed, _NOBODY)
        except SealBroken:
            raise SettingsError(
                "AINFERA_MASTER_KEY is not the key that this database was first used with, so the "
                "private keys of its agents cannot be opened. Set that key again; `fleet up` keeps "
                "the one it made in FLEET_HOME/secrets.env. If it is lost, so are they: start "
                "anew with an empty database or another FLEET_HOME."
            ) from None


async def _try_oldest(connection: Connection, master_key: str) -> None:
    """A database from before the word was kept has agents instead. Raises `SealBroken`."""
    agent = await connection.fetchrow(_OLDEST)
    if agent is not None:
        agent_key_sealer(master_key).open(agent["private_key_sealed"], agent["id"])
