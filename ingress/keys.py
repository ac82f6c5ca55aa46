"""A tenant's keys: list, make, give a new secret, end. A key never makes a stronger one."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress.auth import Caller, current_caller, not_found, own_agent, parse_id
from ingress.deps import Deps, get_deps, session
from ingress.limits import default_limits
from ingress.wire import AwareMoment, Body, Text, moment
from shared.api_keys import (
    Key,
    KeyNotFound,
    Minted,
    TooManySecrets,
    Wish,
    count_keys,
    create_key,
    grant_of,
    list_keys,
    lock_key,
    revoke_key,
    rotate_key,
    tell_key_changed,
)
from shared.domain.counting import counted
from shared.domain.keys import Grant, Scope, excess, in_order
from shared.domain.limits import LARGEST_RATE
from shared.errors import Forbidden, InvalidBody
from shared.models import ApiKeyRow, TenantRow

log = logging.getLogger(__name__)
router = APIRouter()
Admin = Annotated[Caller, Depends(current_caller)]

LONGEST_OVERLAP_S = 30 * 24 * 3600
MOST_SECRETS_LISTED = 2_000
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_calls")

Rate = Annotated[int, Field(ge=1, le=LARGEST_RATE)]


class Limits(Body):
    """What is absent is as it is for the key that asks."""

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    concurrent_calls: Annotated[int, Field(ge=1, le=100_000)] | None = None


class NewKey(Body):
    """`agent_id` binds the key to that agent; `expires_at` has a time zone, absent is never."""

    agent_id: str | None = None
    scopes: Annotated[list[Scope], Field(min_length=1)]
    expires_at: AwareMoment | None = None
    label: Annotated[Text, Field(max_length=128)] | None = None
    limits: Limits = Limits()


class Rotation(Body):
    """For how long the older secrets work yet, in seconds."""

    overlap_seconds: Annotated[int, Field(ge=0, le=LONGEST_OVERLAP_S)] = 24 * 3600


@router.get("/v1/keys")
async def list_own_keys(request: Request, caller: Admin, all: bool = False) -> dict[str, Any]:
    """The tenant's keys that work, with `all=true` also the others; of a bound key, its agent's.

    Of their secrets the newest 2,000.
    """
    deps = get_deps(request)
    bound_to = UUID(caller.bound_to) if caller.bound_to is not None else None
    async with session(deps.db, caller.tenant) as s:
        keys = await list_keys(
            s, caller.tenant, agent_id=bound_to, everything=all, most=MOST_SECRETS_LISTED
        )
    return {"keys": [key_view(key, deps) for key in keys]}


@router.post("/v1/keys", status_code=201)
async def create_own_key(body: NewKey, request: Request, caller: Admin) -> dict[str, Any]:
    """A new key, whose secret is shown this once. It can do nothing that the caller's cannot."""
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        await refuse_too_many(s, caller, deps)
        own = await caller_key(s, caller)
        wish = compose(body, caller, own)
        if wish.agent_id is not None:
            await own_agent(s, str(wish.agent_id), caller)
        if wish.expires_at is not None and wish.expires_at <= datetime.now(UTC):
            raise InvalidBody("expires_at: is past.", param="expires_at")
        refuse_wider(grant_of(wish, default_limits(deps.settings)), own, deps)
        minted = await create_key(s, wish, actor_of(caller))
        await s.commit()
    return shown_once(minted, Key([minted.row]), deps)


@router.post("/v1/keys/{key_id}/rotate")
async def rotate_own_key(
    key_id: str, request: Request, caller: Admin, body: Rotation | None = None
) -> dict[str, Any]:
    """A new secret for a key, shown this once; the older ones work until the overlap is over."""
    deps = get_deps(request)
    overlap = timedelta(seconds=(body or Rotation()).overlap_seconds)
    async with session(deps.db, caller.tenant) as s:
        key, asking = await both_keys(s, key_id, caller)
        # who may replace a secret gets it
        refuse_wider(key.grant(default_limits(deps.settings)), asking, deps)
        try:
            minted = await rotate_key(s, key, overlap, actor_of(caller))
        except TooManySecrets as error:
            raise Forbidden(str(error)) from error
        if minted is None:
            raise InvalidBody("The key does not work any more: make a new one.")
        await s.commit()
    await tell(key, deps)
    return shown_once(minted, Key([*key.secrets, minted.row]), deps)


@router.delete("/v1/keys/{key_id}")
async def revoke_own_key(key_id: str, request: Request, caller: Admin) -> dict[str, Any]:
    """End a key with all its secrets, everywhere within a second. Repeating it changes nothing."""
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        key = await own_key(s, key_id, caller)
        changed = await revoke_key(s, key, "", actor_of(caller))
        await s.commit()
    await tell(key, deps)
    return {**key_view(key, deps), "changed": changed}


async def own_key(s: AsyncSession, key_id: str, caller: Caller) -> Key:
    """The tenant's key, locked. Raises `NotFound` for any that the caller may not name."""
    try:
        key = await lock_key(s, parse_id(key_id))
    except KeyNotFound:
        not_found()
    row = key.newest
    if row.tenant_id != caller.tenant:
        not_found()
    if caller.bound_to is not None and str(row.agent_id) != caller.bound_to:
        not_found()
    return key


async def caller_key(s: AsyncSession, caller: Caller) -> Key:
    """The key that asks, as it is now: what is known in memory may be a minute old.

    Raises `Forbidden` for one that hands out nothing: a secret that was replaced, perhaps because
    it had leaked, would else outlive its overlap in one that it makes.
    """
    key = await lock_key(s, UUID(caller.key_id))
    if key.newest.revoked_at is not None:
        raise Forbidden("This key was revoked.")
    if str(key.newest.id) != caller.secret_id:
        raise Forbidden("This secret was replaced by a newer one, which can make keys and secrets.")
    return key


async def both_keys(s: AsyncSession, key_id: str, caller: Caller) -> tuple[Key, Key]:
    """`own_key` and `caller_key`, locked in one order: two keys may name each other at once."""
    if UUID(caller.key_id) < parse_id(key_id):
        asking = await caller_key(s, caller)
        return await own_key(s, key_id, caller), asking
    key = await own_key(s, key_id, caller)
    return key, await caller_key(s, caller)


def refuse_wider(wanted: Grant, own: Key, deps: Deps) -> None:
    """Raises `Forbidden` if the wanted key could do what the caller's own cannot."""
    why = excess(wanted, own.grant(default_limits(deps.settings)))
    if why is not None:
        raise Forbidden(f"A key cannot hand out more than it has itself: {why}.")


async def refuse_too_many(s: AsyncSession, caller: Caller, deps: Deps) -> None:
    """Raises `Forbidden` where the tenant has as many keys as it may have.

    The tenant's row is locked, so that keys are made one after the other.
    """
    await s.execute(
        select(col(TenantRow.id)).where(col(TenantRow.id) == caller.tenant).with_for_update()
    )
    most = deps.settings.keys_per_tenant
    if await count_keys(s, caller.tenant) >= most:
        raise Forbidden(f"There may be no more than {counted(most, 'key')} that work. Revoke some.")


def compose(body: NewKey, caller: Caller, own: Key) -> Wish:
    """The wanted key; limits that it does not name are those of the key that asks."""
    bound_to = body.agent_id or caller.bound_to
    default = own.newest.default_agent_id
    named = {
        name: getattr(own.newest, name) if (wish := getattr(body.limits, name)) is None else wish
        for name in LIMITS
    }
    return Wish(
        tenant_id=caller.tenant,
        agent_id=caller.may_see(parse_id(bound_to)) if bound_to is not None else None,
        default_agent_id=default if bound_to is None else None,
        label=body.label,
        expires_at=body.expires_at,
        scopes=in_order(body.scopes),
        **named,
    )


async def tell(key: Key, deps: Deps) -> None:
    """Every ingress hears it within a second; one that cannot asks anew when it can."""
    for each in key.newest_ones:
        deps.keyring.forget(each.key_hash)
    try:
        await tell_key_changed(deps.redis, key)
    except (RedisError, OSError) as error:
        log.warning("key_change_not_told", extra={"error": repr(error)})


def actor_of(caller: Caller) -> str:
    return f"key {caller.key_id}"


def shown_once(minted: Minted, key: Key, deps: Deps) -> dict[str, Any]:
    return {"api_key": minted.api_key, **key_view(key, deps)}


def key_view(key: Key, deps: Deps) -> dict[str, Any]:
    """A key as its tenant sees it; a limit of null is none."""
    row, grant = key.newest, key.grant(default_limits(deps.settings))
    return {
        "id": str(key.id),
        "agent_id": row.agent_id and str(row.agent_id),
        "default_agent_id": row.default_agent_id and str(row.default_agent_id),
        "scopes": in_order(row.scopes),
        "label": row.label,
        "limits": {name: getattr(grant.limits, name) or None for name in LIMITS},
        **moments(key.secrets[0], ("created_at",)),
        **moments(row, ("expires_at", "revoked_at")),
        "last_used_at": key.last_used_at and moment(key.last_used_at),
        "secrets": [
            {
                "id": str(each.id),
                **moments(each, ("created_at", "expires_at", "revoked_at", "last_used_at")),
            }
            for each in key.secrets
        ],
    }


def moments(row: ApiKeyRow, names: tuple[str, ...]) -> Mapping[str, str | None]:
    return {name: at and moment(at) for name in names for at in (getattr(row, name),)}
