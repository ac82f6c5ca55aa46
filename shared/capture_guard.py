"""How far the guard of captures has come; `workers/capture_guard.py` moves it on."""

from datetime import datetime

from sqlalchemy import BigInteger, Column, DateTime, text
from sqlmodel import Field, SQLModel


class CaptureGuardRow(SQLModel, table=True):
    """The one row: calls that ended until `checked_until` were looked at, and what was wrong."""

    __tablename__ = "capture_guard"

    only_one: bool = Field(
        default=True, primary_key=True, sa_column_kwargs={"server_default": text("true")}
    )
    checked_until: datetime = Field(
        default=None,
        sa_column=Column(
            DateTime(timezone=True),
            nullable=False,
            server_default=text("now() - interval '1 day'"),
        ),
    )
    checked: int = Field(
        default=0, sa_column=Column(BigInteger, nullable=False, server_default="0")
    )
    uncaptured: int = Field(
        default=0, sa_column=Column(BigInteger, nullable=False, server_default="0")
    )
    overcaptured: int = Field(
        default=0, sa_column=Column(BigInteger, nullable=False, server_default="0")
    )
