"""How a call ends that nobody will finish: of it only its row and its routing event are left.

The event tells what the decision was made from, so that the rule is run again for its capture.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.domain import capture
from shared.domain.audit import EventType, draft
from shared.domain.inference import ROUTING_TARGET
from shared.domain.routing import Decision


def closing_item(
    row: Mapping[str, Any],
    routed_event: Mapping[str, Any],
    outcome: str,
    code: str,
    models: Iterable[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The settlement that ends the call: nothing charged, one capture if it was routed.

    `row` has the columns `id, tenant_id, agent_id, attempt, routed, dialect, model` of
    `inferences`, `routed_event` the payload of its newest `inference.routed` event, empty where
    there is none. `outcome` is one of the contract's `outcome_status`, `code` an error's code.
    `models` is the catalogue whose hash the event names, as it was stored.
    """
    inference_id, agent_id = str(row["id"]), str(row["agent_id"])
    decision = capture.recorded_decision(routed_event.get("decision"), models)
    data = {
        "inference_id": inference_id,
        "router": ROUTING_TARGET if row["routed"] else "direct",
        "model": routed_event.get("model", row["model"]),
        "provider": routed_event.get("provider"),
        "code": code,
        "outcome": outcome,
    }
    if decision is not None:
        data["decision_sha256"] = capture.record(decision).digest
    return {
        "inference_id": inference_id,
        "tenant_id": str(row["tenant_id"]),
        "agent_id": agent_id,
        # one more than its last worker's: should that one come late, it finds itself fenced off
        "attempt": row["attempt"] + 1,
        "refused": False,
        "charge": "0",
        "routed": row["routed"],
        "dialect": row["dialect"],
        "model": row["model"],
        "events": [draft(EventType.PROVIDER_FAILED, agent_id, data).wire()],
        "outcome": _capture(row, routed_event, outcome, decision) if row["routed"] else None,
        "receipt": None,
    }


def _capture(
    row: Mapping[str, Any],
    routed_event: Mapping[str, Any],
    outcome: str,
    decision: Decision | None,
) -> dict[str, Any]:
    """The capture of a routed call; as far as its routing event tells, where that is all."""
    quote_id = routed_event.get("quote_id")
    if decision is not None:
        told = capture.columns(decision, quote_id)
    else:
        told = {
            "task_type": routed_event.get("task_type", "general"),
            "cell": routed_event.get("cell"),
            "decision_rule": routed_event.get("decision_rule", "unknown"),
            "policy_version": routed_event.get("policy_version", "unknown"),
            "ruleset_hash": routed_event.get("ruleset_hash", "unknown"),
            "min_quality": routed_event.get("min_quality", "0"),
            "chosen_model_slug": routed_event.get("model"),
            "provider": routed_event.get("provider"),
            "cost_projected": routed_event.get("cost_projected"),
            "decision": {} if quote_id is None else {"quote_id": quote_id},
        }
    return {
        **told,
        "inference_id": str(row["id"]),
        "tenant_id": str(row["tenant_id"]),
        "agent_id": str(row["agent_id"]),
        "cost_actual": "0",
        "outcome_status": outcome,
        "fallback_chain": [],
    }
