"""What a call leaves behind: its hold, and one settlement with outcome, receipt and audit events.

The rule is in `shared/domain`; here the records are put together and handed to the ledger,
which writes them in one transaction.
"""

import logging
from dataclasses import replace
from decimal import Decimal
from typing import Any

from shared.domain import capture
from shared.domain.audit import AuditDraft, EventType, draft
from shared.domain.billing import Bill, bill
from shared.domain.inference import ROUTING_TARGET, Completed
from shared.metrics import SETTLEMENTS, TOKENS, TOKENS_PER_SECOND
from workers.asking import prices_of
from workers.call import Call, Ending, Outcome
from workers.deps import Deps
from workers.routing import Plan

log = logging.getLogger(__name__)

REJECTIONS = {
    Outcome.REJECTED_FLOOR: EventType.REJECTED_FLOOR,
    Outcome.REJECTED_NOT_ENROLLED: EventType.REJECTED_FLOOR,
    Outcome.REJECTED_CAP: EventType.REJECTED_CAP_VIOLATION,
    Outcome.REJECTED_FUNDS: EventType.REJECTED_INSUFFICIENT_FUNDS,
}
MINE, FENCED = "SETTLED", "FENCED"


def hold_item(call: Call, plan: Plan, deps: Deps) -> dict[str, Any]:
    """The hold and the `inference.routed` event, as `open_inferences` takes them."""
    routed = draft(EventType.INFERENCE_ROUTED, call.agent_id, routed_data(call, plan))
    item = {
        **identity(call, plan),
        "amount": f"{plan.hold_usd:f}",
        "ttl_s": deps.settings.hold_ttl_s,
        "event": routed.wire(),
    }
    if plan.drawn:
        item["tentative"] = True  # the dice may not engage the killswitch
    if call.envelope.attribution:
        item["attribution"] = call.envelope.attribution
    return item


def identity(call: Call, plan: Plan) -> dict[str, Any]:
    return {
        "inference_id": call.inference_id,
        "tenant_id": call.tenant_id,
        "agent_id": call.agent_id,
        "attempt": call.attempt,
        "routed": plan.decision is not None,
        "dialect": call.request.dialect.value,
        "model": call.request.model,
    }


def routed_data(call: Call, plan: Plan) -> dict[str, Any]:
    """Why this model: for a pinned one because the client said so."""
    chosen = plan.candidates[0]
    data: dict[str, Any] = {
        "inference_id": call.inference_id,
        "router": router_name(plan),
        "dialect": call.request.dialect.value,
        "model": chosen.slug,
        "provider": chosen.provider,
        "cost_projected": f"{plan.projected_usd:f}",
        "hold_usd": f"{plan.hold_usd:f}",
    }
    data |= quoted(plan)
    if plan.decision is not None:
        data |= {
            "task_type": plan.decision.task_type,
            "cell": plan.decision.cell,
            "decision_rule": plan.decision.rule,
            "policy_version": plan.decision.policy_version,
            "ruleset_hash": plan.decision.ruleset_hash,
            "min_quality": f"{plan.decision.min_quality:f}",
        }
        if plan.decision.explored:
            data["explored"] = True
    if plan.record is not None and plan.record.told is not None:
        data["decision"] = plan.record.told
    return data


def quoted(plan: Plan) -> dict[str, Any]:
    """Names the quote that the call was served by; nothing of most calls."""
    return {} if plan.quote_id is None else {"quote_id": plan.quote_id}


def router_name(plan: Plan) -> str:
    return ROUTING_TARGET if plan.decision is not None else "direct"


async def settle(call: Call, plan: Plan, ending: Ending, deps: Deps) -> Completed | None:
    """Write how the call ended. The cost is filled into what is returned for a success.

    Raises `NotOurs` if another attempt has settled it or owns it now.
    """
    owed = bill(ending.usage, prices_of(ending.candidate) if ending.candidate else None)
    charge = owed.amount
    if ending.candidate is not None and charge > ending.held_usd:
        # dearer than anyone could know: held for like the rest, or written off by the ledger
        extra = charge - ending.held_usd
        ttl_s = deps.settings.hold_ttl_s
        await deps.ledger.extend(call.inference_id, call.attempt, extra, ttl_s)
    completed = None
    if ending.outcome is Outcome.SUCCEEDED and ending.completed is not None:
        completed = replace(ending.completed, usage=ending.usage, cost_usd=charge)
    item = settlement_item(call, plan, ending, owed, deps)
    if call.envelope.kept:
        item["kept"] = kept_result(call, ending, completed, deps)
    result = await deps.ledger.settle(item)
    if result != MINE:
        raise NotOurs(result)
    if ending.candidate is not None:
        count_settled(ending, ending.candidate.provider)
    return completed


def count_settled(ending: Ending, provider: str) -> None:
    """A call that reached a provider, once its settlement is durable."""
    SETTLEMENTS.labels(outcome=ending.outcome.value).inc()
    usage = ending.usage
    TOKENS.labels(provider=provider, direction="input").inc(usage.total_input)
    TOKENS.labels(provider=provider, direction="output").inc(usage.output_tokens)
    spoke_ms = (ending.latency_ms or 0) - (ending.ttft_ms or 0)
    if ending.ttft_ms is not None and spoke_ms > 0:  # what came all at once has no pace
        TOKENS_PER_SECOND.labels(provider=provider).observe(usage.output_tokens * 1000 / spoke_ms)


class NotOurs(Exception):
    """The call belongs to another attempt: `EXISTS`, it was settled; `FENCED`, it is under way."""


def settlement_item(
    call: Call, plan: Plan, ending: Ending, owed: Bill, deps: Deps
) -> dict[str, Any]:
    """One settlement, as `end_inferences` takes it."""
    reached = ending.candidate is not None
    charge = owed.amount
    return {
        **identity(call, plan),
        "refused": not reached,
        "charge": f"{charge:f}",
        "events": [event.wire() for event in events(call, plan, ending, owed)],
        "outcome": outcome_row(call, plan, ending, charge),
        "receipt": receipt_row(call, ending, owed, deps) if reached else None,
    }


def kept_result(
    call: Call, ending: Ending, completed: Completed | None, deps: Deps
) -> dict[str, Any]:
    """All that the client is told, to be kept with the settlement.

    A call that came to nothing before any provider was asked, and that may be tried again, gives
    its idempotency key back: the next one is not answered by a fault that has passed.
    """
    whole = call.answer.whole(completed or ending.failure_or_bug())
    came_to_nothing = ending.candidate is None and call.attempt == 1
    return deps.kept.settlement(
        call.envelope.inference_id,
        ending.outcome.value,
        whole,
        frees_key=came_to_nothing and completed is None and ending.failure_or_bug().retryable,
    )


def events(call: Call, plan: Plan, ending: Ending, owed: Bill) -> list[AuditDraft]:
    """The audit events of an ending, in order."""
    charge = owed.amount
    about: dict[str, Any] = {"inference_id": call.inference_id, "router": router_name(plan)}
    agent_id = call.agent_id
    found = [
        draft(EventType.PROVIDER_FALLBACK, agent_id, {**about, **asked.as_json()})
        for asked in call.asked
    ]
    failed = {
        "outcome": ending.outcome.value,
        "code": ending.failure.code if ending.failure else None,
    }
    bound = {"decision_sha256": plan.record.digest} if plan.record is not None else {}
    if ending.candidate is None:
        kind = REJECTIONS.get(ending.outcome, EventType.PROVIDER_FAILED)
        refused = {**about, **failed, **bound, "model": call.request.model}
        return [*found, draft(kind, agent_id, refused)]
    answered = {**about, **bound} | {
        "model": ending.candidate.slug,
        "provider": ending.candidate.provider,
        "input_tokens": ending.usage.total_input,
        "output_tokens": ending.usage.output_tokens,
        "usage_estimated": ending.usage.estimated,
        "cost_usd": f"{charge:f}",
        "latency_ms": ending.latency_ms,
    }
    if ending.outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED):
        answered |= {"outcome": ending.outcome.value}
        found.append(draft(EventType.PROVIDER_RESPONDED, agent_id, answered))
    else:
        found.append(draft(EventType.PROVIDER_FAILED, agent_id, {**answered, **failed}))
    receipt = about | {
        **quoted(plan),
        "receipt_id": call.receipt_id,
        "cost_usd": f"{charge:f}",
        "billing_rule": owed.rule,
        "billing_basis": owed.basis.value,
    }
    return [*found, draft(EventType.RECEIPT_CREATED, agent_id, receipt)]


def outcome_row(call: Call, plan: Plan, ending: Ending, charge: Decimal) -> dict[str, Any] | None:
    """The capture of a routed call; a pinned one has none."""
    decision = plan.decision
    if decision is None:
        return None
    chosen = ending.candidate
    return {
        "inference_id": call.inference_id,
        "tenant_id": call.tenant_id,
        "agent_id": call.agent_id,
        **capture.columns(decision, quote_id=plan.quote_id),
        "provider": chosen.provider if chosen else None,
        "cost_actual": f"{charge:f}" if chosen else None,
        "observed_latency_ms": ending.latency_ms,
        "ttft_ms": ending.ttft_ms,
        "outcome_status": ending.outcome.value,
        "fallback_chain": [asked.as_json() for asked in call.asked],
        "input_tokens": ending.usage.total_input if chosen else None,
        "output_tokens": ending.usage.output_tokens if chosen else None,
    }


def receipt_row(call: Call, ending: Ending, owed: Bill, deps: Deps) -> dict[str, Any]:
    """The settlement receipt, for routed and pinned calls alike."""
    assert ending.candidate is not None
    return {
        "receipt_id": call.receipt_id,
        "inference_id": call.inference_id,
        "tenant_id": call.tenant_id,
        "agent_id": call.agent_id,
        "cost_usd": f"{owed.amount:f}",
        "input_tokens": ending.usage.input_tokens,
        "output_tokens": ending.usage.output_tokens,
        "cache_read_tokens": ending.usage.cache_read_tokens,
        "cache_write_tokens": ending.usage.cache_write_tokens,
        "usage_estimated": ending.usage.estimated,
        "model_used": ending.candidate.provider_model_id,
        "model_slug": ending.candidate.slug,
        "provider": ending.candidate.provider,
        "simulated": deps.providers[ending.candidate.provider].simulated,
        "billing_rule": owed.rule,
        "billing_basis": owed.basis.value,
        "outcome": ending.outcome.value,
    }
