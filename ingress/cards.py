"""Cards: what an agent says of itself, signed with its own key, and whether a card is true."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from sqlalchemy import select
from sqlmodel import col

from ingress.auth import Caller, current_caller, own_agent
from ingress.deps import Deps, everyone, get_deps, session
from ingress.wire import Body, moment
from shared.config import Settings
from shared.keys import CardInvalid, agent_key_sealer, read_card, sign_card, verify_card
from shared.models import AgentRow

router = APIRouter()

LONGEST_CARD = 16 * 1024


class Card(Body):
    jws: Annotated[str, Field(max_length=LONGEST_CARD)]


@router.get("/v1/agents/{agent_id}/card")
@router.post("/v1/agents/{agent_id}/card", operation_id="issue_card")
async def card(
    agent_id: str, request: Request, caller: Annotated[Caller, Depends(current_caller)]
) -> dict[str, Any]:
    """The agent's card, signed now with its own key."""
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
    sealer = agent_key_sealer(deps.settings.master_key.get_secret_value())
    payload = card_payload(agent, deps.settings, datetime.now(UTC))
    token, kid = sign_card(payload, sealer.open(agent.private_key_sealed, agent.id))
    return {"jws": token, "payload": payload, "kid": kid}


def card_payload(agent: AgentRow, settings: Settings, issued_at: datetime) -> dict[str, Any]:
    """What a card says; `jwks_uri` has the key that it is verified with."""
    return {
        "agent_id": str(agent.id),
        "handle": agent.canonical_uri.rpartition("/")[2],
        "name": agent.name,
        "canonical_uri": agent.canonical_uri,
        "did_web": agent.did_web,
        "issuer": settings.base_url,
        "jwks_uri": f"{settings.base_url}/.well-known/jwks.json?agent_id={agent.id}",
        "audit_url": settings.audit_url(str(agent.id)),
        "issued_at": moment(issued_at),
    }


@router.post("/v1/agents/cards/verify")
async def verify_agent_card(body: Card, request: Request) -> dict[str, Any]:
    """Whether a card was signed by the agent that it names; a payload is shown only if it was."""
    try:
        payload, kid = read_card(body.jws)
    except CardInvalid as error:
        return {"valid": False, "payload": None, "kid": None, "reason": str(error)}
    try:
        verify_card(body.jws, await _public_key(payload, get_deps(request)))
    except CardInvalid as error:
        return {"valid": False, "payload": None, "kid": kid, "reason": str(error)}
    return {"valid": True, "payload": payload, "kid": kid}


async def _public_key(payload: Mapping[str, Any], deps: Deps) -> str:
    """The key of the agent that a card claims to be of. Raises `CardInvalid`."""
    try:
        agent_id = UUID(str(payload.get("agent_id")))
    except ValueError as error:
        raise CardInvalid("the payload names no agent") from error
    async with everyone(deps.db) as s:
        query = select(col(AgentRow.public_key_pem)).where(col(AgentRow.id) == agent_id)
        public_pem = await s.scalar(query)
    if public_pem is None:
        # the words of a wrong signature: this endpoint is open to everybody
        raise CardInvalid("the signature does not match the agent's key")
    return public_pem
