"""API keys in the hands of an operator: found, replaced with an overlap, revoked.

A key is never read back: it is known by its id or by how its SHA-256 begins.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from shared.domain.audit import EventType, draft
from shared.ids import mint_id
from shared.keys import hash_api_key, mint_api_key
from shared.models import ApiKeyRow
from shared.operators import record_act

SHORTEST_PREFIX = 8
SHOWN_PREFIX = 12
# hex digits of a hash, as they are compared
_HEX = set("0123456789abcdef")


class KeyNotFound(LookupError):
    """No key, or more than one, is meant; the message says what to give instead."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """`api_key` is the new key itself: whoever gets this is the only one who ever does."""

    api_key: str
    new: ApiKeyRow
    old: ApiKeyRow


async def list_keys(
    session: AsyncSession, tenant_id: UUID | None, *, everything: bool
) -> list[ApiKeyRow]:
    """Keys, the oldest first: those that work, or also those that do not any more."""
    query = select(ApiKeyRow).order_by(col(ApiKeyRow.created_at))
    if tenant_id is not None:
        query = query.where(col(ApiKeyRow.tenant_id) == tenant_id)
    if not everything:
        expires_at = col(ApiKeyRow.expires_at)
        query = query.where(
            col(ApiKeyRow.revoked_at).is_(None), or_(expires_at.is_(None), expires_at > func.now())
        )
    return list(await session.scalars(query))


async def find_key(session: AsyncSession, named: str) -> ApiKeyRow:
    """The key of this id, or whose hash begins so, locked. Raises `KeyNotFound`."""
    query = select(ApiKeyRow).limit(2).with_for_update()
    try:
        query = query.where(col(ApiKeyRow.id) == UUID(named))
    except ValueError:
        prefix = named.lower()
        if len(prefix) < SHORTEST_PREFIX or not set(prefix) <= _HEX:
            raise KeyNotFound(
                f"Give the key's id, or at least {SHORTEST_PREFIX} hex digits of its hash; never"
                " the key itself."
            ) from None
        query = query.where(func.encode(col(ApiKeyRow.key_hash), "hex").startswith(prefix))
    found = list(await session.scalars(query))
    if len(found) != 1:
        raise KeyNotFound("No key is meant." if not found else "More than one key is meant.")
    return found[0]


async def rotate(
    session: AsyncSession, key: ApiKeyRow, overlap: timedelta, actor: str
) -> Rotated | None:
    """A new key for the same tenant and agent; the old one works for `overlap` yet.

    None where the old one works no more. The caller commits, then tells the processes.
    """
    now = await session.scalar(select(func.clock_timestamp()))
    assert now is not None
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        return None
    api_key = mint_api_key()
    new = ApiKeyRow(
        id=mint_id(),
        tenant_id=key.tenant_id,
        agent_id=key.agent_id,
        default_agent_id=key.default_agent_id,
        key_hash=hash_api_key(api_key),
        label=key.label,
    )
    session.add(new)
    ends_at = now + overlap
    key.expires_at = ends_at if key.expires_at is None else min(key.expires_at, ends_at)
    about = {"expires_at": key.expires_at.isoformat(), "replaced_by": str(new.id)}
    await _witness(session, key, {"reason": "rotated", **about})
    await record_act(session, "key.rotate", str(key.id), actor=actor, **about)
    return Rotated(api_key, new, key)


async def revoke(session: AsyncSession, key: ApiKeyRow, reason: str, actor: str) -> bool:
    """End a key at once; False if it was revoked before. The caller commits, then tells."""
    if key.revoked_at is not None:
        return False
    key.revoked_at = await session.scalar(select(func.clock_timestamp()))
    await _witness(session, key, {"reason": "revoked"})
    await record_act(session, "key.revoke", str(key.id), actor=actor, reason=reason)
    return True


async def _witness(session: AsyncSession, key: ApiKeyRow, data: dict[str, Any]) -> None:
    """In the chain of the agent that the key speaks for, if it speaks for one."""
    await session.flush()
    agent_id = key.agent_id or key.default_agent_id
    if agent_id is None:
        return
    event = draft(EventType.KEY_REVOKED, str(agent_id), {"key_id": str(key.id), **data})
    owner = {"agent_id": str(agent_id), "tenant_id": str(key.tenant_id)}
    batch = [{**owner, "event": event.wire()}]
    await session.execute(
        text("SELECT append_audit(cast(:batch AS jsonb))"), {"batch": orjson.dumps(batch).decode()}
    )
