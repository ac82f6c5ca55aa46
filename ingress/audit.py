"""The audit trail over HTTP: chains, checkpoints of the log over them, and proofs.

Checkpoints and consistency are open to everybody. Events, and proofs that one is in the log, are
the agent's own.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress.auth import Caller, current_caller, not_found, own_agent, parse_id
from ingress.chain_checks import Head
from ingress.deps import everyone, get_deps, session
from ingress.openapi import NOT_FOUND
from ingress.wire import moment
from shared.audit_log import (
    AuditCheckpointRow,
    consistency_proof,
    inclusion_proof,
    leaf_of,
    newest_checkpoint,
    verifier_key,
)
from shared.domain import audit
from shared.domain.checkpoint import MOST_SIZE, encode, entry
from shared.errors import NotFound
from shared.models import AgentRow, AuditEventRow, AuditHeadRow, TenantRow

router = APIRouter()

MOST_EVENTS = 500

# more than this many events is no page any more; it is cut to it
Limit = Annotated[int, Query(ge=1)]
Mine = Annotated[Caller, Depends(current_caller)]


class InclusionProof(BaseModel):
    """That an event is in the log (RFC 9162 section 2.1.3). Hashes are base64.

    `entry` is what the leaf's hash is over, behind a byte 0x00. While `logged` is false, the event
    has yet to come under a checkpoint, which takes seconds, and what follows is null.
    """

    agent_id: str
    seq: int
    event_hash: str
    entry: str
    logged: bool
    leaf_index: int | None = None
    tree_size: int | None = None
    proof: list[str] | None = None
    checkpoint: str | None = None
    log_key: str | None = None


class ConsistencyProof(BaseModel):
    """That the first `from_size` leaves begin the first `to_size` (RFC 9162 section 2.1.4)."""

    from_size: int
    to_size: int
    from_root: str
    to_root: str
    proof: list[str]


# -- the log, for everybody --------------------------------------------------------------------


@router.get("/v1/audit/public")
async def public_audit(request: Request, limit: Limit = 50) -> dict[str, Any]:
    """The newest events of all agents; no ids, no amounts, no payloads."""
    query = (
        select(AuditEventRow, AgentRow, TenantRow)
        .join(AgentRow, col(AgentRow.id) == col(AuditEventRow.agent_id))
        .join(TenantRow, col(TenantRow.id) == col(AuditEventRow.tenant_id))
        .order_by(col(AuditEventRow.created_at).desc(), col(AuditEventRow.seq).desc())
        .limit(min(limit, MOST_EVENTS))
    )
    async with everyone(get_deps(request).db) as s:
        found = (await s.execute(query)).all()
    return {
        "events": [
            {
                "seq": event.seq,
                "event_type": event.event_type,
                "owner_handle": tenant.owner_handle,
                "agent_name": agent.name,
                "canonical_uri": agent.canonical_uri,
                "event_hash": event.event_hash,
                "created_at": moment(event.created_at),
            }
            for event, agent, tenant in found
        ]
    }


@router.get("/v1/audit/checkpoint", response_class=PlainTextResponse, openapi_extra=NOT_FOUND)
async def read_checkpoint(request: Request) -> PlainTextResponse:
    """The newest signed head of the log over all chains, as a C2SP checkpoint."""
    async with everyone(get_deps(request).db) as s:
        newest = await newest_checkpoint(s)
    if newest is None:
        raise NotFound("No checkpoint was signed yet.")
    return PlainTextResponse(newest.note, headers={"cache-control": "no-cache"})


@router.get("/v1/audit/log-key", response_class=PlainTextResponse, openapi_extra=NOT_FOUND)
async def read_log_key(request: Request) -> PlainTextResponse:
    """The key that checkpoints are verified with: `name+hash+base64`, in a line."""
    async with everyone(get_deps(request).db) as s:
        key = await verifier_key(s)
    if key is None:
        raise NotFound("No checkpoint was signed yet.")
    return PlainTextResponse(f"{key}\n")


@router.get("/v1/audit/consistency", openapi_extra=NOT_FOUND)
async def read_consistency(
    request: Request,
    old: Annotated[int, Query(alias="from", ge=1, le=MOST_SIZE)],
    new: Annotated[int | None, Query(alias="to", ge=1, le=MOST_SIZE)] = None,
) -> ConsistencyProof:
    """That the log of one size goes on as the log of another, by default the newest signed."""
    async with everyone(get_deps(request).db) as s:
        newest = await newest_checkpoint(s)
        size = newest.size if newest is not None else 0
        new = size if new is None else new
        if not old <= new <= size:
            raise NotFound(f"The log has {size} leaves; `from` is at most `to`, and that no more.")
        found = await consistency_proof(s, old, new)
    return ConsistencyProof(
        from_size=old,
        to_size=new,
        from_root=encode(found.old_root),
        to_root=encode(found.new_root),
        proof=[encode(hashed) for hashed in found.proof],
    )


# -- one agent's chain -------------------------------------------------------------------------


@router.get("/v1/audit/{agent_id}")
async def read_audit(
    agent_id: str,
    request: Request,
    caller: Mine,
    since_seq: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Limit = 100,
) -> dict[str, Any]:
    """The agent's events after `since_seq`, oldest first, at most 500 of them."""
    async with session(get_deps(request).db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
        events = await events_after(s, agent.id, since_seq, min(limit, MOST_EVENTS))
    return {"agent_id": str(agent.id), "events": [_event(event) for event in events]}


@router.get("/v1/audit/{agent_id}/proof")
async def read_proof(
    agent_id: str, request: Request, caller: Mine, seq: Annotated[int, Query(ge=1, le=2**62)]
) -> InclusionProof:
    """That one event is under the newest checkpoint; needs nothing of any other event."""
    async with session(get_deps(request).db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
        event = await s.get(AuditEventRow, (agent.id, seq))
    if event is None:
        not_found()
    async with everyone(get_deps(request).db) as everybodys:  # the log is over all chains
        return await prove(everybodys, event)


async def prove(s: AsyncSession, event: AuditEventRow) -> InclusionProof:
    """The proof of an event under the newest checkpoint, if it is under one yet.

    `s` sees everyone's leaves: their hashes are what it is proven with.
    """
    told = InclusionProof(
        agent_id=str(event.agent_id),
        seq=event.seq,
        event_hash=event.event_hash,
        entry=entry(str(event.agent_id), event.seq, event.event_hash).decode(),
        logged=False,
    )
    newest: AuditCheckpointRow | None = await newest_checkpoint(s)
    leaf = await leaf_of(s, event.agent_id, event.seq)
    # what was logged between the two questions is proven by the next checkpoint
    if newest is None or leaf is None or leaf.index >= newest.size:
        return told
    return told.model_copy(
        update={
            "logged": True,
            "leaf_index": leaf.index,
            "tree_size": newest.size,
            "proof": [encode(each) for each in await inclusion_proof(s, leaf.index, newest.size)],
            "checkpoint": newest.note,
            "log_key": str(await verifier_key(s)),
        }
    )


async def events_after(
    s: AsyncSession, agent_id: UUID, seq: int, limit: int
) -> Sequence[AuditEventRow]:
    """Up to `limit` events of one chain, in its order, from the one behind `seq` on."""
    query = (
        select(AuditEventRow)
        .where(col(AuditEventRow.agent_id) == agent_id, col(AuditEventRow.seq) > seq)
        .order_by(col(AuditEventRow.seq))
        .limit(limit)
    )
    return (await s.scalars(query)).all()


def _event(event: AuditEventRow) -> dict[str, Any]:
    return {
        "id": str(event.id),
        "agent_id": str(event.agent_id),
        "seq": event.seq,
        "event_type": event.event_type,
        "payload": json.loads(event.payload),
        "previous_hash": event.previous_hash,
        "event_hash": event.event_hash,
        "created_at": moment(event.created_at),
    }


@router.get("/v1/audit/{agent_id}/verify")
async def verify_audit(agent_id: str, request: Request) -> dict[str, Any]:
    """Whether the whole chain holds together and ends where it must. Open to everybody.

    What was found to hold is remembered for five minutes: until then only what is new is checked.
    """
    wanted, deps = parse_id(agent_id), get_deps(request)
    async with everyone(deps.db) as s:
        if await s.get(AgentRow, wanted) is None:
            not_found()
        head = await s.get(AuditHeadRow, wanted)

    async def read(seq: int, most: int) -> list[audit.AuditEvent]:
        async with everyone(deps.db) as one:  # none is open while a part is hashed
            return [_chained(row) for row in await events_after(one, wanted, seq, most)]

    noted = None if head is None else Head(head.seq, head.hash)
    found = await deps.chain_checks.check(wanted, noted, read)
    return {
        "agent_id": str(wanted),
        "event_count": found.event_count,
        "valid": found.valid,
        "failure_seq": found.failure_seq,
        "failure_reason": found.failure_reason,
    }


def _chained(row: AuditEventRow) -> audit.AuditEvent:
    return audit.AuditEvent(
        agent_id=str(row.agent_id),
        seq=row.seq,
        event_type=row.event_type,
        payload=row.payload,
        previous_hash=row.previous_hash,
        event_hash=row.event_hash,
    )
