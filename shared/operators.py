"""What operators did, kept where nobody can change it: append-only, like money and chains."""

import getpass
import os
import socket
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Text, func, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel

from shared.models import NEW_ID, document

# The operators' key is shared by those who have it, so it names nobody.
OVER_HTTP = "internal key"


class OperatorEventRow(SQLModel, table=True):
    """Append-only: who did what to what. `detail` holds no secret and nobody's words."""

    __tablename__ = "operator_events"
    __table_args__ = (Index("operator_events_at_idx", "at"),)

    id: UUID = Field(primary_key=True, sa_column_kwargs={"server_default": NEW_ID})
    at: datetime = Field(
        default=None,
        sa_column=Column(
            DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()
        ),
    )
    actor: str = Field(sa_type=Text)
    act: str = Field(sa_type=Text)
    target: str = Field(sa_type=Text)
    detail: dict[str, Any] = document(default=True)


def this_operator() -> str:
    """Who runs this process, `user@host`: the actor of what is done by command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


async def record_act(
    session: AsyncSession, act: str, target: str, *, actor: str | None = None, **detail: Any
) -> None:
    """Write down an act in the caller's transaction; `actor` is who runs this process if None.

    `act` is `noun.verb`, `target` what it was done to; `detail` must have a JSON form.
    """
    await session.execute(
        insert(OperatorEventRow).values(
            actor=actor or this_operator(), act=act, target=target, detail=detail
        )
    )
