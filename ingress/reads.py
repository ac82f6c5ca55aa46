"""What calls left behind: receipts, and the receipts of decisions."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy import Row, select, text
from sqlmodel import col

from ingress.auth import Caller, current_caller, not_found, parse_id
from ingress.deps import Deps, get_deps, session
from ingress.wire import moment, usd
from shared.catalog import catalog_snapshot
from shared.domain import capture
from shared.models import ReceiptRow, RoutingOutcomeRow

router = APIRouter()

UNDOCUMENTED: dict[str, Any] = {"floor_source": None, "outcomes": []}

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
