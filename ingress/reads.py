"""What calls left behind: receipts, and the receipts of decisions."""

import json
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Row, Select, cast, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import col

from ingress.auth import Caller, current_caller, not_found, parse_id
from ingress.deps import Deps, everyone, get_deps, session
from ingress.signing import logged, signed
from ingress.wire import moment, usd
from shared.catalog import catalog_snapshot
from shared.domain import capture
from shared.domain.audit import EventType
from shared.models import AuditEventRow, ReceiptRow, RoutingOutcomeRow

router = APIRouter()

# one of these ends every routed call, written together with its outcome
OUTCOME_EVENTS = (
    EventType.PROVIDER_RESPONDED,
    EventType.PROVIDER_FAILED,
    EventType.REJECTED_FLOOR,
    EventType.REJECTED_CAP_VIOLATION,
    EventType.REJECTED_INSUFFICIENT_FUNDS,
)

# The event is of the receipt's own transaction, so it is among the first from its moment on.
_WITNESS = text(
    """
SELECT seq, payload::jsonb ->> 'quote_id' AS quote_id FROM audit_events
 WHERE created_at >= :since AND created_at < cast(:since AS timestamptz) + interval '1 minute'
   AND agent_id = :agent_id AND event_type = 'receipt.created'
   AND payload::jsonb ->> 'receipt_id' = :receipt_id
 ORDER BY created_at LIMIT 1
"""
)

Mine = Annotated[Caller, Depends(current_caller)]


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
        about = {"agent_id": receipt.agent_id, "receipt_id": str(receipt.receipt_id)}
        witness = (await s.execute(_WITNESS, {"since": receipt.created_at, **about})).one_or_none()
    return _receipt(receipt, deps) | _witnessed(receipt, witness, deps)


def _witnessed(receipt: ReceiptRow, witness: Row[Any] | None, deps: Deps) -> dict[str, Any]:
    """The event that witnessed the receipt, and where the proof is that it is in the audit log.

    The event also names the quote that the call was served by, if it was.
    """
    if witness is None:
        return {"audit_seq": None, "proof_url": None, "quote_id": None}
    proof = f"{deps.settings.base_url}/v1/audit/{receipt.agent_id}/proof?seq={witness.seq}"
    return {"audit_seq": witness.seq, "proof_url": proof, "quote_id": witness.quote_id}


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
        "billing": _billing(receipt),
        "created_at": moment(receipt.created_at),
    }


def _billing(receipt: ReceiptRow) -> dict[str, Any] | None:
    """By which rule it cost that much, see docs/billing.md; None before receipts said so."""
    if receipt.billing_rule is None:
        return None
    return {
        "rule": receipt.billing_rule,
        "basis": receipt.billing_basis,
        "outcome": receipt.outcome,
    }


@router.get("/v1/inferences/{inference_id}/decision")
async def read_decision(inference_id: str, request: Request, caller: Mine) -> dict[str, Any]:
    """Why a routed call got the model it got: enough of it to run the rule again, the audit event
    that binds it, and a signature. /.well-known/ainfera-receipt-verifier.py checks all of it."""
    deps = get_deps(request)
    query = select(RoutingOutcomeRow).where(
        col(RoutingOutcomeRow.inference_id) == parse_id(inference_id),
        col(RoutingOutcomeRow.tenant_id) == caller.tenant,
    )
    async with session(deps.db, caller.tenant) as s:
        row = (await s.scalars(query)).one_or_none()
        if row is None:
            not_found()
        caller.may_see(row.agent_id)
        models = await catalog_snapshot(s, row.decision.get("catalog_hash"))
        event = await s.scalar(_decided(row))
    receipt = capture.receipt(row.model_dump(), models, _event(event))
    async with everyone(deps.db) as everybodys:  # the log, and the key, are over all chains
        key = await deps.log_key.get(everybodys, deps.settings)
        proof = await logged(everybodys, event)
    return {**signed(receipt, key), "audit_proof": proof}


def _decided(row: RoutingOutcomeRow) -> Select[AuditEventRow]:
    """The event of the outcome's own transaction, so among the first from its moment on."""
    event = AuditEventRow
    return (
        select(event)
        .where(
            col(event.created_at) >= row.created_at,
            col(event.created_at) < row.created_at + timedelta(minutes=1),
            col(event.agent_id) == row.agent_id,
            col(event.event_type).in_(OUTCOME_EVENTS),
            cast(col(event.payload), JSONB)["inference_id"].astext == str(row.inference_id),
        )
        .order_by(col(event.created_at))
        .limit(1)
    )


def _event(event: AuditEventRow | None) -> dict[str, Any] | None:
    if event is None:
        return None
    return {
        "agent_id": str(event.agent_id),
        "seq": event.seq,
        "event_type": event.event_type,
        "payload": json.loads(event.payload),
        "previous_hash": event.previous_hash,
        "event_hash": event.event_hash,
    }
