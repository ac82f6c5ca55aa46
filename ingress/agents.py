"""Agents: signup, register, read, and their spend policies."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Self
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import Field, field_validator, model_validator
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress import cards
from ingress.auth import (
    Caller,
    current_caller,
    not_found,
    own_agent,
    parse_id,
    require_internal,
)
from ingress.cards import card_payload
from ingress.deps import everyone, get_deps, session
from ingress.openapi import HANDLE_TAKEN, SIGNUP
from ingress.spend_policies import prove_caps, spend_policy
from ingress.wire import Body, DailyCap, Handle, PerCallCap, Text, moment, usd
from shared.config import Settings
from shared.domain.audit import AuditDraft, EventType, draft
from shared.domain.ledger import GRANTS_ACCOUNT, TransferKind
from shared.errors import Forbidden, HandleTaken
from shared.ids import mint_id
from shared.keys import (
    agent_key_sealer,
    hash_api_key,
    key_id,
    mint_agent_key,
    mint_api_key,
    sign_card,
)
from shared.models import HANDLE_KEY, AccountRow, AgentRow, ApiKeyRow, TenantRow

router = APIRouter()
router.include_router(cards.router)

LARGEST_METADATA = 16 * 1024
NAME_DOMAIN = "ainfera.ai"


class SpendPolicy(Body):
    """The caps of an agent in US dollars; absent is unchanged, null is no cap."""

    per_call_cap_usd: PerCallCap | None = None
    daily_cap_usd: DailyCap | None = None


class Signup(SpendPolicy):
    """An agent that introduces itself; `owner_handle` is claimed, not proven."""

    agent_handle: Handle
    owner_handle: Handle | None = None
    owner_source: Text | None = None
    owner_contact: Text | None = None
    wallet_address: Text | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("metadata")
    @classmethod
    def _storable(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        """JSON that Postgres can hold: bounded, real Unicode, no zero character."""
        try:
            packed = orjson.dumps(metadata)
        except TypeError as error:
            raise ValueError("is not JSON that can be stored") from error
        if len(packed) > LARGEST_METADATA:
            raise ValueError(f"is larger than {LARGEST_METADATA} bytes")
        if rb"\u0000" in packed:
            raise ValueError("holds a zero character")
        return metadata


class Registration(Body):
    """Another agent of the caller's tenant."""

    tenant_id: str
    name: Annotated[Text, Field(min_length=1, max_length=128)]


class SpendPolicyChange(SpendPolicy):
    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name per_call_cap_usd or daily_cap_usd")
        return self


@dataclass(frozen=True, slots=True)
class NewAgent:
    """Rows of an agent that are not yet written, and its first card."""

    agent: AgentRow
    wallet: AccountRow
    card: str


@router.post("/v1/agents/signup", openapi_extra=SIGNUP)
async def signup(body: Signup, request: Request) -> dict[str, Any]:
    """A tenant, its agent with a wallet and a preview grant, and a key that is shown only here."""
    deps = get_deps(request)
    allow_signup(request, deps.settings)
    tenant_id = mint_id()
    owner = body.owner_handle or f"anon-{secrets.token_hex(8)}"
    new = compose_agent(deps.settings, tenant_id, owner, body.agent_handle, body.agent_handle)
    new.agent.per_call_cap_usd = body.per_call_cap_usd
    new.agent.daily_cap_usd = body.daily_cap_usd
    new.agent.wallet_address = body.wallet_address
    new.agent.labels = body.metadata or {}
    tenant = TenantRow(
        id=tenant_id,
        name=owner,
        owner_handle=owner,
        owner_source=body.owner_source,
        owner_contact=body.owner_contact,
    )
    api_key = mint_api_key()
    grant = Decimal(deps.settings.preview_grant_usd)
    if grant > 0:
        new.wallet.grant_inferences_left = deps.settings.preview_grant_inferences
        new.wallet.grant_expires_at = datetime.now(UTC) + timedelta(
            days=deps.settings.preview_grant_days
        )
    key = ApiKeyRow(
        id=mint_id(),
        tenant_id=tenant_id,
        default_agent_id=new.agent.id,
        key_hash=hash_api_key(api_key),
        label="signup",
    )
    async with everyone(deps.db) as s:  # money comes from an account of the system
        s.add(tenant)
        await s.flush()
        await _write_agent(s, new.agent, "agent_handle or owner_handle")
        s.add_all([new.wallet, key])
        await s.flush()
        events = [registered_event(new.agent)]
        if grant > 0:
            events.append(await _grant(s, new, grant))
        await append_audit(s, new.agent, events)
        await s.commit()
    return {
        "agent_id": str(new.agent.id),
        "agent_handle": body.agent_handle,
        "tenant_id": str(tenant_id),
        "owner_handle": owner,
        "canonical_uri": new.agent.canonical_uri,
        "did_web": new.agent.did_web,
        "api_key": api_key,
        "agent_card_jws": new.card,
        "free_tier_inferences_remaining": new.wallet.grant_inferences_left,
    }


async def _write_agent(s: AsyncSession, agent: AgentRow, wish: str) -> None:
    """Raises `HandleTaken`, which names the field to choose anew, if its URI is another agent's.

    Postgres decides it, so that of two who ask at the same moment exactly one is refused.
    """
    s.add(agent)
    uri = agent.canonical_uri
    try:
        await s.flush()
    except IntegrityError as error:
        cause = error.orig.__cause__ if error.orig is not None else None
        if getattr(cause, "constraint_name", None) != HANDLE_KEY:
            raise
        raise HandleTaken(f"{uri} is another agent's. Choose another {wish}.") from error


def allow_signup(request: Request, settings: Settings) -> None:
    """Raises `Forbidden` or `InvalidInternalKey`, as `SIGNUP_MODE` has it; asks no store."""
    if settings.signup_mode == "closed":
        raise Forbidden("Signup is closed.")
    if settings.signup_mode == "internal":
        require_internal(request)


async def _grant(s: AsyncSession, new: NewAgent, amount: Decimal) -> AuditDraft:
    """Move the preview grant into a new wallet; the event that says so."""
    transfer_id = mint_id()
    moved = await s.execute(
        text("SELECT * FROM transfer_funds(:id, :debit, :credit, :amount, :kind, :memo)"),
        {
            "id": transfer_id,
            "debit": GRANTS_ACCOUNT,
            "credit": new.wallet.id,
            "amount": amount,
            "kind": TransferKind.GRANT.value,
            "memo": "preview grant",
        },
    )
    data = {
        "amount_usd": usd(amount),
        "balance_usd": usd(moved.one().balance),
        "kind": TransferKind.GRANT.value,
        "transfer_id": str(transfer_id),
    }
    return draft(EventType.WALLET_TOPPED_UP, str(new.agent.id), data)


def compose_agent(
    settings: Settings, tenant_id: UUID, owner: str, handle: str, name: str
) -> NewAgent:
    """A new agent with keys of its own and an empty wallet; nothing is written yet."""
    agent_id, key = mint_id(), mint_agent_key()
    sealer = agent_key_sealer(settings.master_key.get_secret_value())
    agent = AgentRow(
        id=agent_id,
        tenant_id=tenant_id,
        name=name,
        canonical_uri=f"{NAME_DOMAIN}/{owner}/{handle}",
        did_web=f"did:web:{NAME_DOMAIN}:{owner}:{handle}",
        public_key_pem=key.public_pem,
        private_key_sealed=sealer.seal(key.private_pem, agent_id),
    )
    wallet = AccountRow(id=mint_id(), tenant_id=tenant_id, agent_id=agent_id)
    card, _ = sign_card(card_payload(agent, settings, datetime.now(UTC)), key.private_pem)
    return NewAgent(agent, wallet, card)


def registered_event(agent: AgentRow) -> AuditDraft:
    data = {
        "canonical_uri": agent.canonical_uri,
        "name": agent.name,
        "public_key_thumbprint": key_id(agent.public_key_pem),
        "spend_policy": spend_policy(agent),
    }
    return draft(EventType.AGENT_REGISTERED, str(agent.id), data)


async def append_audit(s: AsyncSession, agent: AgentRow, events: Sequence[AuditDraft]) -> None:
    """Append events to the agent's chain, in order, within the session's transaction."""
    batch = [
        {"agent_id": str(agent.id), "tenant_id": str(agent.tenant_id), "event": event.wire()}
        for event in events
    ]
    await s.execute(
        text("SELECT append_audit(cast(:batch AS jsonb))"), {"batch": orjson.dumps(batch).decode()}
    )


@router.post("/v1/agents/register", openapi_extra=HANDLE_TAKEN)
async def register(
    body: Registration, request: Request, caller: Annotated[Caller, Depends(current_caller)]
) -> dict[str, Any]:
    """One more agent of the caller's tenant, with a wallet that is empty."""
    deps = get_deps(request)
    if parse_id(body.tenant_id) != caller.tenant:
        not_found()
    refuse_bound(caller)
    async with session(deps.db, caller.tenant) as s:
        tenant = (
            await s.scalars(select(TenantRow).where(col(TenantRow.id) == caller.tenant))
        ).one()
        owner = tenant.owner_handle or tenant.name
        new = compose_agent(deps.settings, caller.tenant, owner, as_handle(body.name), body.name)
        await _write_agent(s, new.agent, "name")
        s.add(new.wallet)
        await s.flush()
        await append_audit(s, new.agent, [registered_event(new.agent)])
        await s.commit()
        await s.refresh(new.agent)
    return agent_view(new.agent)


def refuse_bound(caller: Caller) -> None:
    """A key that was given to one agent does not change what its owner has set."""
    if caller.bound_to is not None:
        raise Forbidden("This needs a key of the tenant; this one is bound to an agent.")


def as_handle(name: str) -> str:
    """A name as the last part of a URI: lower case, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64] or "agent"


@router.get("/v1/agents/{agent_id}")
async def read_agent(
    agent_id: str, request: Request, caller: Annotated[Caller, Depends(current_caller)]
) -> dict[str, Any]:
    """One agent of the caller's tenant."""
    async with session(get_deps(request).db, caller.tenant) as s:
        return agent_view(await own_agent(s, agent_id, caller))


def agent_view(agent: AgentRow) -> dict[str, Any]:
    return {
        "id": str(agent.id),
        "tenant_id": str(agent.tenant_id),
        "name": agent.name,
        "status": agent.status,
        "canonical_uri": agent.canonical_uri,
        "did_web": agent.did_web,
        "public_key_ed25519": agent.public_key_pem,
        "spend_policy": spend_policy(agent),
        "created_at": moment(agent.created_at),
    }


@router.patch("/v1/agents/{agent_id}/spend-policy")
async def change_spend_policy(
    agent_id: str,
    body: SpendPolicyChange,
    request: Request,
    caller: Annotated[Caller, Depends(current_caller)],
) -> dict[str, Any]:
    """Set or lift caps. They hold for the next hold and the next extension of one.

    The answer proves them: under the lock of the wallet, so that what is in flight is known.
    """
    refuse_bound(caller)
    async with session(get_deps(request).db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller, lock=True)
        before = spend_policy(agent)
        for name in body.model_fields_set:
            setattr(agent, name, getattr(body, name))
        after = spend_policy(agent)
        await s.flush()
        proof = await prove_caps(s, agent)
        event = draft(
            EventType.SPEND_POLICY_CHANGED,
            str(agent.id),
            {"before": before, "after": after, "drain_proof_status": proof["status"]},
        )
        await append_audit(s, agent, [event])
        await s.commit()
    return {
        "spend_policy": after,
        "drain_proof_status": proof["status"],
        "drain_proof": proof["figures"],
    }
