"""What calls left behind: audit chains, receipts, and the receipts of decisions."""

import json
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress.auth import Caller, current_caller, not_found, own_agent, parse_id
from ingress.deps import Deps, everyone, get_deps, session
from ingress.wire import moment, usd
from shared.catalog import catalog_snapshot
from shared.domain import audit, capture
from shared.models import (
    AgentRow,
    AuditEventRow,
    AuditHeadRow,
    ReceiptRow,
    RoutingOutcomeRow,
    TenantRow,
)

router = APIRouter()

MOST_EVENTS = 500
VERIFIED_AT_ONCE = 500
UNDOCUMENTED: dict[str, Any] = {"floor_source": None, "outcomes": []}

# more than this many events is no page any more; it is cut to it
Limit = Annotated[int, Query(ge=1)]
Mine = Annotated[Caller, Depends(current_caller)]


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
    """Whether the whole chain holds together and ends where it must. Open to everybody."""
    wanted = parse_id(agent_id)
    async with everyone(get_deps(request).db) as s:
        if await s.get(AgentRow, wanted) is None:
            not_found()
        found = await verify(s, wanted)
    return {
        "agent_id": str(wanted),
        "event_count": found.event_count,
        "valid": found.valid,
        "failure_seq": found.failure_seq,
        "failure_reason": found.failure_reason,
    }


async def verify(s: AsyncSession, agent_id: UUID) -> audit.Verification:
    """Check a chain page by page, then that it reaches the head that was noted before."""
    head = await s.get(AuditHeadRow, agent_id)
    last: audit.AuditEvent | None = None
    passed_head = head is None or head.seq == 0
    while page := await events_after(s, agent_id, last.seq if last else 0, VERIFIED_AT_ONCE):
        events = [_chained(row) for row in page]
        found = audit.verify_chain(events, after=last)
        if not found.valid:
            return found
        for event in events:
            if head is not None and event.seq == head.seq:
                passed_head = event.event_hash == head.hash
        last = events[-1]
    count = last.seq if last else 0
    if not passed_head:
        return audit.Verification(count, False, count + 1, "the chain does not reach its head")
    return audit.Verification(count, True)


def _chained(row: AuditEventRow) -> audit.AuditEvent:
    return audit.AuditEvent(
        agent_id=str(row.agent_id),
        seq=row.seq,
        event_type=row.event_type,
        payload=row.payload,
        previous_hash=row.previous_hash,
        event_hash=row.event_hash,
    )


@router.get("/v1/receipts/{receipt_id}")
async def read_receipt(receipt_id: str, request: Request, caller: Mine) -> dict[str, Any]:
    """What one call used and cost."""
    deps = get_deps(request)
    query = select(ReceiptRow).where(
        col(ReceiptRow.receipt_id) == parse_id(receipt_id),
        col(ReceiptRow.tenant_id) == caller.tenant,
    )
    async with session(deps.db, caller.tenant) as s:
        receipt = (await s.scalars(query)).one_or_none()
    if receipt is None:
        not_found()
    caller.may_see(receipt.agent_id)
    return _receipt(receipt, deps)


def _receipt(receipt: ReceiptRow, deps: Deps) -> dict[str, Any]:
    return {
        "receipt_id": str(receipt.receipt_id),
        "inference_id": str(receipt.inference_id),
        "agent_id": str(receipt.agent_id),
        "audit_url": deps.settings.audit_url(str(receipt.agent_id)),
        "cost_usd": usd(receipt.cost_usd),
        "input_tokens": receipt.input_tokens,
        "output_tokens": receipt.output_tokens,
        "cache_read_tokens": receipt.cache_read_tokens,
        "cache_write_tokens": receipt.cache_write_tokens,
        "usage_estimated": receipt.usage_estimated,
        "model_used": receipt.model_used,
        "provider": receipt.provider,
        "simulated": receipt.simulated,
        "created_at": moment(receipt.created_at),
    }


@router.get("/v1/inferences/{inference_id}/decision")
async def read_decision(inference_id: str, request: Request, caller: Mine) -> dict[str, Any]:
    """Why a routed call got the model it got; enough of it to run the rule again."""
    query = select(RoutingOutcomeRow).where(
        col(RoutingOutcomeRow.inference_id) == parse_id(inference_id),
        col(RoutingOutcomeRow.tenant_id) == caller.tenant,
    )
    async with session(get_deps(request).db, caller.tenant) as s:
        row = (await s.scalars(query)).one_or_none()
        if row is None:
            not_found()
        caller.may_see(row.agent_id)
        models = await catalog_snapshot(s, row.decision.get("catalog_hash"))
    stored = row.model_dump()
    if not row.decision:
        # its worker was lost after the decision: the outcome is known, the reasons are not
        stored["decision"] = {"terms": {"seed": None}, "catalog_hash": None, **UNDOCUMENTED}
        return {**capture.receipt(stored, ()), "inputs": None}
    return capture.receipt(stored, models)
