"""API keys in the database: made, listed, given a new secret, changed, ended.

A key is one or more rows, one for each of its secrets (see migrations/sql/0009_tables.sql). No
secret is ever read back: a key is known by its id, or by how the SHA-256 of a secret begins. What
is done to a key is written down in the caller's transaction; the caller commits, then tells the
processes, which keep what they know of a key for a minute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from redis.asyncio import Redis
from sqlalchemy import Select, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from shared.control import KEY_REVOKED, give_order
from shared.domain.audit import EventType, draft
from shared.domain.keys import Grant, Scope, in_order
from shared.domain.limits import KeyLimits
from shared.ids import mint_id
from shared.keys import hash_api_key, mint_api_key
from shared.models import AgentRow, ApiKeyRow
from shared.operators import record_act

SHORTEST_PREFIX = 8
# A key's secrets that work at one time: its newest ones, because none ends later than the next.
MOST_WORKING = 10
# ... and all that it ever had, each of which is read whenever the key is changed.
MOST_SECRETS = 1_000
# hex digits of a hash, as they are compared
_HEX = set("0123456789abcdef")


class TooManySecrets(Exception):
    """A key is given no other secret; the message says what to do instead."""


class KeyNotFound(LookupError):
    """No key, or more than one, is meant; the message says what to give instead."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a key is to be; a limit of None is the settings', 0 is none."""

    tenant_id: UUID
    agent_id: UUID | None
    default_agent_id: UUID | None
    scopes: Sequence[str]
    label: str | None = None
    expires_at: datetime | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None

    @classmethod
    def of(cls, row: ApiKeyRow) -> "Wish":
        """Such a key as another."""
        return cls(**{each.name: getattr(row, each.name) for each in fields(cls)})

    def mint(self, version_of: UUID | None = None) -> "Minted":
        """A new secret for it, not yet written."""
        api_key = mint_api_key()
        about = {each.name: getattr(self, each.name) for each in fields(self)}
        row = ApiKeyRow(
            **{**about, "scopes": in_order(self.scopes)},
            id=mint_id(),
            key_hash=hash_api_key(api_key),
            version_of=version_of,
        )
        return Minted(api_key, row)


@dataclass(frozen=True, slots=True)
class Key:
    """A key with all the secrets that it has had, the newest last."""

    secrets: Sequence[ApiKeyRow]

    @property
    def newest(self) -> ApiKeyRow:
        return self.secrets[-1]

    @property
    def newest_ones(self) -> Sequence[ApiKeyRow]:
        """Among them all that worked when the key was last changed; the others had ended before."""
        return self.secrets[-MOST_WORKING - 1 :]

    @property
    def id(self) -> UUID:
        return self.newest.key_id

    @property
    def last_used_at(self) -> datetime | None:
        return max((each.last_used_at for each in self.secrets if each.last_used_at), default=None)

    def works(self, now: datetime) -> bool:
        """The newest secret is the one that ends last, so it says when the key does."""
        expires_at = self.newest.expires_at
        return self.newest.revoked_at is None and (expires_at is None or expires_at > now)

    def grant(self, defaults: KeyLimits) -> Grant:
        """What the key may do, with the settings' limits where it has none of its own."""
        return grant_of(self.newest, defaults)


@dataclass(frozen=True, slots=True)
class Minted:
    """`api_key` is the secret itself: whoever gets this is the only one who ever does."""

    api_key: str
    row: ApiKeyRow


def grant_of(key: ApiKeyRow | Wish, defaults: KeyLimits) -> Grant:
    """What a key may do, with the settings' limits where it has none of its own."""
    return Grant(
        agent_id=str(key.agent_id) if key.agent_id is not None else None,
        scopes=frozenset(map(Scope, key.scopes)),
        expires_at=key.expires_at,
        limits=limits_of(key, defaults),
    )


def limits_of(row: ApiKeyRow | Wish, defaults: KeyLimits) -> KeyLimits:
    """The limits that hold for a key."""

    def own(mine: int | None, default: int) -> int:
        return default if mine is None else mine

    return KeyLimits(
        own(row.requests_per_minute, defaults.requests_per_minute),
        own(row.tokens_per_minute, defaults.tokens_per_minute),
        own(row.concurrent_calls, defaults.concurrent_calls),
    )


async def list_keys(
    session: AsyncSession,
    tenant_id: UUID | None,
    *,
    agent_id: UUID | None = None,
    everything: bool,
    most: int | None = None,
) -> list[Key]:
    """Keys, the oldest first: those that work, or also those that do not any more.

    Of `tenant_id` alone, and of those bound to `agent_id` alone, where these are given; of their
    secrets, the `most` newest: there is no end to those that a tenant can have had.
    """
    query = select(ApiKeyRow)
    if tenant_id is not None:
        query = query.where(col(ApiKeyRow.tenant_id) == tenant_id)
    if agent_id is not None:
        query = query.where(col(ApiKeyRow.agent_id) == agent_id)
    if not everything:
        query = query.where(col(ApiKeyRow.key_id).in_(_working_ids(tenant_id)))
    newest = _in_order(query, newest_first=True).limit(most)
    return _as_keys(list(await session.scalars(newest))[::-1])


async def count_keys(session: AsyncSession, tenant_id: UUID) -> int:
    """How many keys of a tenant work."""
    ids = _working_ids(tenant_id).distinct().subquery()
    return await session.scalar(select(func.count()).select_from(ids)) or 0


def _working_ids(tenant_id: UUID | None) -> Select[Any]:
    """Of the keys that work: a secret that does, says that its key does."""
    ends = col(ApiKeyRow.expires_at)
    query = select(col(ApiKeyRow.key_id)).where(
        col(ApiKeyRow.revoked_at).is_(None), or_(ends.is_(None), ends > func.clock_timestamp())
    )
    return query if tenant_id is None else query.where(col(ApiKeyRow.tenant_id) == tenant_id)


async def find_key(session: AsyncSession, named: str, tenant_id: UUID | None = None) -> Key:
    """The key of this id, or with a secret whose hash begins so, locked. Raises `KeyNotFound`."""
    query = select(col(ApiKeyRow.key_id)).distinct().limit(2)
    if tenant_id is not None:
        query = query.where(col(ApiKeyRow.tenant_id) == tenant_id)
    try:
        query = query.where(col(ApiKeyRow.key_id) == UUID(named))
    except ValueError:
        query = query.where(_hash_begins(named))
    found = list(await session.scalars(query))
    if len(found) != 1:
        raise KeyNotFound("No key is meant." if not found else "More than one key is meant.")
    return await lock_key(session, found[0])


async def lock_key(session: AsyncSession, key_id: UUID) -> Key:
    """The key as it is now, and stays until the transaction ends. Raises `KeyNotFound`.

    Its first row is locked first: that of two who would replace its secret at once the second sees
    what the first has done.
    """
    of_key = col(ApiKeyRow.key_id) == key_id
    first = select(col(ApiKeyRow.id)).where(col(ApiKeyRow.id) == key_id).with_for_update()
    if await session.scalar(first) is None:
        raise KeyNotFound("No key is meant.")
    query = _in_order(select(ApiKeyRow).where(of_key)).execution_options(populate_existing=True)
    return Key(list(await session.scalars(query)))


def _hash_begins(named: str) -> Any:
    prefix = named.lower()
    if len(prefix) < SHORTEST_PREFIX or not set(prefix) <= _HEX:
        raise KeyNotFound(
            f"Give the key's id, or at least {SHORTEST_PREFIX} hex digits of its hash; never"
            " the key itself."
        )
    return func.encode(col(ApiKeyRow.key_hash), "hex").startswith(prefix)


def _in_order(query: Select[Any], *, newest_first: bool = False) -> Select[Any]:
    # ids are UUIDv7: they order what was made at one moment
    by = col(ApiKeyRow.created_at), col(ApiKeyRow.id)
    return query.order_by(*([each.desc() for each in by] if newest_first else by))


def _as_keys(rows: Sequence[ApiKeyRow]) -> list[Key]:
    of_key: dict[UUID, list[ApiKeyRow]] = {}
    for row in rows:
        of_key.setdefault(row.key_id, []).append(row)
    return [Key(secrets) for secrets in of_key.values()]


async def database_time(session: AsyncSession) -> datetime:
    now: datetime | None = await session.scalar(select(func.clock_timestamp()))
    assert now is not None
    return now


async def create_key(session: AsyncSession, wish: Wish, actor: str) -> Minted:
    """Write a new key."""
    minted = await _write(session, wish.mint())
    row = minted.row
    await record_act(
        session,
        "key.create",
        str(row.key_id),
        actor=actor,
        tenant_id=str(row.tenant_id),
        agent_id=row.agent_id and str(row.agent_id),
        scopes=row.scopes,
        expires_at=row.expires_at and row.expires_at.isoformat(),
    )
    return minted


async def _write(session: AsyncSession, minted: Minted) -> Minted:
    session.add(minted.row)
    await session.flush()
    return minted


async def rotate_key(
    session: AsyncSession, key: Key, overlap: timedelta, actor: str
) -> Minted | None:
    """A new secret for the key; all older ones work for `overlap` yet, and no longer than before.

    The key keeps its id, its scopes, its limits and its end. None if it works no more. Raises
    `TooManySecrets`.
    """
    now = await database_time(session)
    if not key.works(now):
        return None
    _refuse_too_many(key, now, overlap)
    old = key.newest
    minted = Wish.of(old).mint(version_of=key.id)
    # the time under the lock, and not of the transaction's begin: it orders the secrets
    minted.row.created_at = now
    ends_at = now + overlap
    for each in key.secrets:
        each.expires_at = ends_at if each.expires_at is None else min(each.expires_at, ends_at)
    await _write(session, minted)
    about = {"expires_at": ends_at.isoformat(), "replaced_by": str(minted.row.id)}
    await _witness(session, key, {"reason": "rotated", "secret_id": str(old.id), **about})
    await record_act(session, "key.rotate", str(key.id), actor=actor, **about)
    return minted


def _refuse_too_many(key: Key, now: datetime, overlap: timedelta) -> None:
    """Raises `TooManySecrets`: what is done to a key is done to all that work, in every process."""
    if len(key.secrets) >= MOST_SECRETS:
        raise TooManySecrets(f"The key has had {MOST_SECRETS} secrets: make a new key.")
    working = sum(each.expires_at is None or each.expires_at > now for each in key.secrets)
    if overlap and working >= MOST_WORKING:
        raise TooManySecrets(f"{working} secrets of the key work: give the new one no overlap.")


async def revoke_key(session: AsyncSession, key: Key, reason: str, actor: str) -> bool:
    """End a key, with all its secrets, at once; False if it was revoked before."""
    if key.newest.revoked_at is not None:
        return False
    now = await database_time(session)
    for each in key.secrets:
        each.revoked_at = each.revoked_at or now
    await _witness(session, key, {"reason": "revoked"})
    await record_act(session, "key.revoke", str(key.id), actor=actor, reason=reason)
    return True


async def limit_key(
    session: AsyncSession, key: Key, limits: dict[str, int | None], actor: str
) -> None:
    """Change limits of a key by their columns' names; None is the settings' limit, 0 is none."""
    for each in key.secrets:
        for name, limit in limits.items():
            setattr(each, name, limit)
    await session.flush()
    await record_act(session, "key.limit", str(key.id), actor=actor, **limits)


async def tell_key_changed(redis: Redis, key: Key) -> None:
    """Have every process look the key up again before it believes in it."""
    for each in key.newest_ones:
        await give_order(redis, KEY_REVOKED, key_hash=each.key_hash.hex())


async def _witness(session: AsyncSession, key: Key, data: dict[str, Any]) -> None:
    """In the chain of the agent that the key speaks for; if for none, of all of its tenant's."""
    await session.flush()
    row = key.newest
    agent_id = row.agent_id or row.default_agent_id
    agents = [agent_id]
    if agent_id is None:
        mine = col(AgentRow.tenant_id) == row.tenant_id
        agents = list(await session.scalars(select(col(AgentRow.id)).where(mine)))
    told = {"key_id": str(key.id), **data}
    batch = [
        {
            "agent_id": str(each),
            "tenant_id": str(row.tenant_id),
            "event": draft(EventType.KEY_REVOKED, str(each), told).wire(),
        }
        for each in agents
    ]
    await session.execute(
        text("SELECT append_audit(cast(:batch AS jsonb))"), {"batch": orjson.dumps(batch).decode()}
    )
