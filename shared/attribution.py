"""For whom a client makes a call: its session, its own agent, and the agent above that one.

Clients of many agents (Claude Code is one) say so in headers. What they say is the client's own
word: it sorts costs and decides nothing. It is kept beside the call, in no log and no audit event.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, Text, text
from sqlmodel import Field, SQLModel

from shared.models import moment

# the first of a name's headers that is there and can be kept is meant
HEADERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("session_id", ("x-ainfera-session-id", "x-claude-code-session-id")),
    ("client_agent_id", ("x-claude-code-agent-id",)),
    ("parent_agent_id", ("x-ainfera-parent-agent-id", "x-claude-code-parent-agent-id")),
)
LONGEST = 128
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")


def attribution_of(headers: Mapping[str, str]) -> dict[str, str]:
    """What the headers say, by the columns of `call_attributions`; empty where they say nothing.

    A value that is longer than 128 characters, or not printable ASCII, is as none: cut short, it
    might be another one's.
    """
    found = {}
    for column, names in HEADERS:
        for name in names:
            said = headers.get(name)
            if said is not None and _PRINTABLE.fullmatch(said):
                found[column] = said
                break
    return found


class CallAttributionRow(SQLModel, table=True):
    """For whom the client made a call: its session, its own agent, and that agent's parent."""

    __tablename__ = "call_attributions"
    __table_args__ = (
        Index("call_attributions_tenant_id_idx", "tenant_id", "created_at"),
        Index(
            "call_attributions_session_id_idx",
            "tenant_id",
            "session_id",
            postgresql_where=text("session_id IS NOT NULL"),
        ),
    )

    inference_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    agent_id: UUID
    session_id: str | None = Field(default=None, sa_type=Text)
    client_agent_id: str | None = Field(default=None, sa_type=Text)
    parent_agent_id: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = moment()
