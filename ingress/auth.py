"""Who is calling: an API key becomes a `Caller`, from memory on nearly every request.

A key is looked up by its hash and kept for a minute at most; a revocation is heard over the
control channel within a second and drops it at once. No key, an unknown one and a revoked one
get the same answer, and so do an agent that does not exist and one of another tenant.
"""

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any, NoReturn
from uuid import UUID

from fastapi import Request, Security
from sqlalchemy import Double, Select, Uuid, and_, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from starlette.types import Scope as Connection

from ingress.deps import CALL_PATIENCE_S, Deps, everyone, get_deps
from ingress.openapi import API_KEY, BEARER
from ingress.scopes import Open, access_of, named
from shared.api_keys import limits_of
from shared.db import Database
from shared.domain.keys import Scope
from shared.domain.limits import KeyLimits
from shared.errors import Forbidden, InvalidApiKey, InvalidBody, InvalidInternalKey, NotFound
from shared.keys import API_KEY_PREFIX, hash_api_key, same_secret
from shared.models import AgentRow, ApiKeyRow, TenantRow
from shared.policy_book import PolicyBook

KEPT_S = 60.0
# An unknown key is asked for again soon, so that a new one never waits for long.
UNKNOWN_KEPT_S = 2.0
MOST_KEPT = 50_000
LONGEST_KEY = 256
NO_LIMITS = KeyLimits()

AGENT_HEADER = "x-ainfera-agent-id"
INTERNAL_HEADER = "x-ainfera-internal-key"


@dataclass(frozen=True, slots=True)
class Caller:
    """A valid key and the agent it speaks for.

    `agent_id` is the agent asked for, else the key's bound or default agent; None only for a
    tenant's key without a default. `bound_to` is the one agent that the key may act for, if it
    is bound. `policy` is a `CallerPolicy` as JSON. `limits` is None for a key without any. Ids are
    in canonical text form; `key_id` is the same for all secrets of a key, `secret_id` is that of
    the one that was shown.
    """

    key_id: str
    secret_id: str
    tenant_id: str
    agent_id: str | None
    bound_to: str | None
    active: bool
    policy: Mapping[str, Any]
    scopes: frozenset[Scope]
    limits: KeyLimits | None = None

    @property
    def tenant(self) -> UUID:
        return UUID(self.tenant_id)

    def for_worker(self) -> dict[str, Any]:
        """What a worker is told of the caller: `{tenant_id, agent_id, policy}`.

        Raises `InvalidBody` where no agent is meant, `Forbidden` for one that is not active.
        """
        if self.agent_id is None:
            raise InvalidBody(
                "agent_id: the key has no default agent, so name one: as `agent_id` in the body "
                "or in the header X-Ainfera-Agent-Id.",
                param="agent_id",
            )
        if not self.active:
            raise Forbidden("The agent is not active.")
        return {"tenant_id": self.tenant_id, "agent_id": self.agent_id, "policy": self.policy}

    def may_use(self, connection: Connection) -> "Caller":
        """The caller itself, if its key may do what the request's route is for.

        Raises `Forbidden`, which says which scope is needed.
        """
        needed = access_of(connection)
        if isinstance(needed, Open) or not needed.isdisjoint(self.scopes):
            return self
        raise Forbidden(
            f"This needs a key with the scope {named(needed, 'or')}; this one has "
            f"{named(self.scopes, 'and')}.",
            scope=" ".join(sorted(needed)),
        )

    def may_see(self, agent_id: UUID) -> UUID:
        """The agent's id, if the key is not bound to another one. Raises `NotFound`."""
        if self.bound_to is not None and self.bound_to != str(agent_id):
            not_found()
        return agent_id


def not_found() -> NoReturn:
    """The one answer to ids that are unknown, malformed or someone else's."""
    raise NotFound("Nothing of yours has this id.")


def parse_id(text: str) -> UUID:
    """An id in a path or a header; one that is no UUID is an unknown one."""
    try:
        return UUID(text)
    except ValueError:
        not_found()


def refuse_key() -> NoReturn:
    """The one answer to a key that is missing, malformed, unknown, revoked or expired."""
    raise InvalidApiKey(
        "A valid API key is needed, as `Authorization: Bearer ainfera_…` or `x-api-key`."
    )


Entry = tuple[bytes, UUID | None]


@dataclass(frozen=True, slots=True)
class Kept:
    """A caller until a moment, and what its policy was made of: by which `edition` of the book."""

    caller: Caller
    until: float
    edition: int
    tenant_policy: Mapping[str, Any]
    agent_min_quality: Decimal | None


class KeyCache:
    """Callers by key and agent, least recently used first; bounded, and never older than a minute.

    `clock` gives seconds that only ever grow; `limits` are those of keys without their own. When
    each key was last used is noted for `LastUse` to write down. A caller's policy follows the
    `policies` at its next request after they changed, without asking the database again.
    """

    def __init__(
        self,
        db: Database,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_KEPT,
        limits: KeyLimits = NO_LIMITS,
        policies: PolicyBook | None = None,
    ) -> None:
        self._db = db
        self._policies = policies or PolicyBook(db)
        self._most = most
        self._limits = limits
        self.now = clock
        self._used: dict[bytes, float] = {}
        self._known: OrderedDict[Entry, Kept] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._loading: dict[Entry, asyncio.Task[Caller]] = {}
        self._forgotten = 0

    async def find(self, api_key: str, agent_id: UUID | None) -> Caller:
        """The caller, at once if it is kept. Raises `InvalidApiKey`, `NotFound` for the agent."""
        key_hash = hash_api_key(api_key)
        entry = (key_hash, agent_id)
        kept, now = self._known.get(entry), self.now()
        if kept is not None and kept.until > now:
            self._known.move_to_end(entry)
            self._used[key_hash] = now
            if kept.edition != self._policies.edition:
                kept = self._known[entry] = self._with_policy(kept)
            return kept.caller
        if self._unknown.get(key_hash, 0.0) > now:
            refuse_key()
        # many requests with one key wait for one query; a client that leaves does not end it
        loading = self._loading.get(entry)
        if loading is None:
            loading = self._loading[entry] = asyncio.create_task(self._load(entry))
            loading.add_done_callback(lambda done: self._loaded(entry, done))
        return await asyncio.shield(loading)

    def forget(self, key_hash: str | bytes) -> None:
        """Drop a key that was revoked; `key_hash` in bytes or hex."""
        digest = bytes.fromhex(key_hash) if isinstance(key_hash, str) else key_hash
        self._forgotten += 1
        for entry in [entry for entry in self._known if entry[0] == digest]:
            del self._known[entry]
        self._abandon_loading()

    def forget_tenant(self, tenant_id: str) -> None:
        """Drop the keys of a tenant that changed its policy."""
        self._forgotten += 1
        for entry in [e for e, kept in self._known.items() if kept.caller.tenant_id == tenant_id]:
            del self._known[entry]
        self._abandon_loading()

    def forget_all(self) -> None:
        """Drop everything: a revocation may have been missed."""
        self._forgotten += 1
        self._known.clear()
        self._unknown.clear()
        self._abandon_loading()

    def take_uses(self) -> dict[bytes, float]:
        """Hashes of the keys that were used since this was last asked, and when (by the clock)."""
        used, self._used = self._used, {}
        return used

    def note_uses(self, uses: Mapping[bytes, float]) -> None:
        """Put back what was taken; what was noted since is newer."""
        self._used = {**uses, **self._used}

    def _abandon_loading(self) -> None:
        """What was asked for before a revocation is not shared with those who ask after it."""
        self._loading.clear()

    def _loaded(self, entry: Entry, done: asyncio.Task[Caller]) -> None:
        if self._loading.get(entry) is done:
            del self._loading[entry]
        if not done.cancelled():
            done.exception()  # each waiter gets it; nobody may be left to hear it

    async def _load(self, entry: Entry) -> Caller:
        key_hash, agent_id = entry
        as_of = self._forgotten
        async with everyone(self._db, patience_s=CALL_PATIENCE_S) as s:
            found = (await s.execute(_look_up(key_hash, agent_id))).one_or_none()
        if found is None or not hmac.compare_digest(found.ApiKeyRow.key_hash, key_hash):
            if as_of == self._forgotten:
                self._keep_unknown(key_hash)
            refuse_key()
        if found.asked_for is not None and found.AgentRow is None:
            not_found()
        left = KEPT_S if found.seconds_left is None else min(KEPT_S, found.seconds_left)
        caller = _caller(found.ApiKeyRow, found.AgentRow, self._limits)
        min_quality = found.AgentRow.min_quality if found.AgentRow is not None else None
        kept = self._with_policy(Kept(caller, self.now() + left, 0, found.policy, min_quality))
        self._used[key_hash] = self.now()
        if as_of == self._forgotten:
            self._keep(entry, kept)
        return kept.caller

    def _with_policy(self, kept: Kept) -> Kept:
        """The same with its policy as the book has it now."""
        policy = self._policies.policy_of(kept.tenant_policy, kept.agent_min_quality).to_json()
        caller = replace(kept.caller, policy=policy)
        return replace(kept, caller=caller, edition=self._policies.edition)

    def _keep(self, entry: Entry, kept: Kept) -> None:
        self._known[entry] = kept
        self._known.move_to_end(entry)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def _keep_unknown(self, key_hash: bytes) -> None:
        self._unknown[key_hash] = self.now() + UNKNOWN_KEPT_S
        self._unknown.move_to_end(key_hash)
        if len(self._unknown) > self._most:
            self._unknown.popitem(last=False)


def _look_up(key_hash: bytes, agent_id: UUID | None) -> Select[Any]:
    """One row: the key, its tenant's policy, the agent meant if the key may act for it."""
    bound_to, expires_at = col(ApiKeyRow.agent_id), col(ApiKeyRow.expires_at)
    asked_for = func.coalesce(cast(agent_id, Uuid), bound_to, col(ApiKeyRow.default_agent_id))
    allowed = and_(
        col(AgentRow.id) == asked_for,
        col(AgentRow.tenant_id) == col(ApiKeyRow.tenant_id),
        or_(bound_to.is_(None), bound_to == col(AgentRow.id)),
    )
    seconds_left = cast(func.extract("epoch", expires_at - func.now()), Double)
    return (
        select(ApiKeyRow, AgentRow, asked_for.label("asked_for"))
        .add_columns(col(TenantRow.policy).label("policy"), seconds_left.label("seconds_left"))
        .select_from(ApiKeyRow)
        .join(TenantRow, col(TenantRow.id) == col(ApiKeyRow.tenant_id))
        .outerjoin(AgentRow, allowed)
        .where(col(ApiKeyRow.key_hash) == key_hash, col(ApiKeyRow.revoked_at).is_(None))
        .where(or_(expires_at.is_(None), expires_at > func.now()))
    )


def _caller(key: ApiKeyRow, agent: AgentRow | None, defaults: KeyLimits) -> Caller:
    """The caller, yet without a policy."""
    limits = limits_of(key, defaults)
    return Caller(
        key_id=str(key.key_id),
        secret_id=str(key.id),
        tenant_id=str(key.tenant_id),
        agent_id=str(agent.id) if agent is not None else None,
        bound_to=str(key.agent_id) if key.agent_id is not None else None,
        active=agent is not None and agent.status == "active",
        policy={},
        scopes=frozenset(map(Scope, key.scopes)),
        limits=limits if limits.any else None,
    )


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The API key of a request: the bearer token, else `x-api-key`.

    Clients with both set send both; the one that has our prefix is meant.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    for candidate in (bearer, headers.get("x-api-key", "").strip()):
        if candidate.startswith(API_KEY_PREFIX) and len(candidate) <= LONGEST_KEY:
            return candidate
    return None


async def authenticate(headers: Mapping[str, str], agent_id: str | None, deps: Deps) -> Caller:
    """The caller of a request; `agent_id` is the body's wish and wins over the header's.

    Raises `InvalidApiKey`, or `NotFound` for an agent that the key may not act for.
    """
    api_key = presented_key(headers)
    if api_key is None:
        refuse_key()
    wanted = agent_id or headers.get(AGENT_HEADER)
    if not wanted:
        return await deps.keyring.find(api_key, None)
    try:
        agent = UUID(wanted)
    except ValueError:
        # the key is checked first: without one, nobody learns anything about ids
        await deps.keyring.find(api_key, None)
        not_found()
    return await deps.keyring.find(api_key, agent)


async def current_caller(
    request: Request,
    _bearer: Annotated[None, Security(BEARER)] = None,
    _api_key: Annotated[None, Security(API_KEY)] = None,
) -> Caller:
    """FastAPI dependency: the caller, for endpoints that name their agent in the path.

    The two schemes say in /openapi.json that a key is needed; they do nothing. Raises `Forbidden`
    where the key has not the scope that the route needs.
    """
    deps = get_deps(request)
    api_key = presented_key(request.headers)
    if api_key is None:
        refuse_key()
    return (await deps.keyring.find(api_key, None)).may_use(request.scope)


async def own_agent(
    s: AsyncSession, agent_id: str, caller: Caller, *, lock: bool = False
) -> AgentRow:
    """The caller's agent of this id. Raises `NotFound`, whatever the reason."""
    wanted = caller.may_see(parse_id(agent_id))
    query = select(AgentRow).where(
        col(AgentRow.id) == wanted, col(AgentRow.tenant_id) == caller.tenant
    )
    if lock:
        query = query.with_for_update()
    agent = (await s.scalars(query)).one_or_none()
    if agent is None:
        not_found()
    return agent


def is_internal(request: Request) -> bool:
    """Whether the request bears the operators' key; no store is asked."""
    expected = get_deps(request).settings.internal_key.get_secret_value()
    return same_secret(request.headers.get(INTERNAL_HEADER, ""), expected)


def require_internal(request: Request) -> None:
    """FastAPI dependency. Raises `InvalidInternalKey`; no store is asked."""
    if not is_internal(request):
        raise InvalidInternalKey("This needs the operators' key in X-Ainfera-Internal-Key.")
