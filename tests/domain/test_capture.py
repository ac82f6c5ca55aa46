"""The decision as stored, and the receipt that is made of it."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given

from shared.domain.candidate import Catalog
from shared.domain.capture import columns, dashboard_candidate, receipt
from shared.domain.evidence import Empirical, Evidence
from shared.domain.routing import Decision, decide, replay
from shared.domain.routing_policy import CallerPolicy, RequestFeatures
from tests.domain.routing_cases import (
    ANCHORS,
    active_sets,
    asked,
    catalogs,
    decided,
    model,
    policies,
    requests,
    steady,
)

# what clients of the decision receipt read
RECEIPT_FIELDS = {
    "inference_id",
    "task_type",
    "cell",
    "decision_rule",
    "policy_version",
    "ruleset_hash",
    "min_quality",
    "candidates",
    "m_allowed_set",
    "q_prior_used",
    "chosen_model_slug",
    "cost_projected",
    "cost_actual",
    "observed_latency_ms",
    "ttft_ms",
    "outcome_status",
    "fallback_chain",
    "seed",
    "router",
    "inputs",
    "dashboard_candidates",
}
CANDIDATE_FIELDS = {
    "model_slug",
    "brand_slug",
    "q_prior",
    "price_in_per_mtok_usd",
    "price_out_per_mtok_usd",
    "m_allowed",
    "projected_cost_usd",
    "drop_reason",
    "rank",
}


def stored(decision: Decision, **fate: Any) -> dict[str, Any]:
    """A row of `routing_outcomes` as the database gives it back."""
    row: dict[str, Any] = json.loads(json.dumps(columns(decision)))
    for money in ("min_quality", "cost_projected"):
        row[money] = None if row[money] is None else Decimal(row[money])
    unknown = dict.fromkeys(("cost_actual", "observed_latency_ms", "ttft_ms"))
    return row | unknown | {"inference_id": "i", "outcome_status": "succeeded"} | fate


def receipt_of(decision: Decision, **fate: Any) -> dict[str, Any]:
    snapshot = json.loads(json.dumps(decision.catalog.to_json()))
    made = receipt(stored(decision, **fate), snapshot)
    sent: dict[str, Any] = json.loads(json.dumps(made))
    return sent


def test_a_receipt_says_all_that_was_promised() -> None:
    veto = model("odd", "0.1", "0.1", "0.99", brand="acme", verdict="VETO")
    decision = decided(asked(), Catalog.of([*ANCHORS.candidates, veto]))
    made = receipt_of(
        decision, cost_actual=Decimal("0.001230000"), observed_latency_ms=812, ttft_ms=95
    )
    assert made.keys() >= RECEIPT_FIELDS
    assert {**made, "inputs": 0, "candidates": 0, "dashboard_candidates": 0} == {
        "inference_id": "i",
        "task_type": "general",
        "cell": "general:mistral-large-3:balanced",
        "decision_rule": "m_allowed_veto_applied",
        "policy_version": "flat-1",
        "ruleset_hash": decision.ruleset_hash,
        "min_quality": 0.5,
        "floor_source": "default",
        "candidates": 0,
        "m_allowed_set": [
            "claude-opus-4-7",
            "gemini-3-1-pro",
            "gpt-5-5",
            "grok-4",
            "mistral-large-3",
        ],
        "q_prior_used": 0.74,
        "chosen_model_slug": "mistral-large-3",
        "cost_projected": "0.008000000",
        "cost_actual": "0.001230000",
        "observed_latency_ms": 812,
        "ttft_ms": 95,
        "outcome_status": "succeeded",
        "fallback_chain": [],
        "explored": False,
        "seed": "seed",
        "router": "ainfera-inference",
        "inputs": 0,
        "dashboard_candidates": 0,
        "audit_event": None,
    }
    first, *_, last = made["candidates"]
    assert first == {
        "model_slug": "mistral-large-3",
        "brand_slug": "mistral",
        "q_prior": 0.74,
        "price_in_per_mtok_usd": "2.00",
        "price_out_per_mtok_usd": "6.00",
        "m_allowed": True,
        "projected_cost_usd": "0.008000000",
        "drop_reason": None,
        "rank": 1,
    }
    assert (last["model_slug"], last["m_allowed"]) == ("odd", False)
    assert last["drop_reason"] == "m_allowed_veto"
    chosen, *_, vetoed = made["dashboard_candidates"]
    assert chosen == {
        "model_slug": "mistral-large-3",
        "brand_slug": "mistral",
        "q_prior": 0.74,
        "projected_cost_usd": "0.008000000",
        "chosen": True,
        "excluded": None,
    }
    assert (vetoed["chosen"], vetoed["excluded"]) == (False, "m_allowed_veto")


def test_a_rejected_call_has_a_receipt_too() -> None:
    made = receipt_of(decided(asked(min_quality=Decimal(1))), outcome_status="rejected_floor")
    assert made["decision_rule"] == "no_candidate_clears_floor"
    assert made["chosen_model_slug"] is None
    assert made["q_prior_used"] is None
    assert made["cost_projected"] is None
    assert {c["drop_reason"] for c in made["candidates"]} == {"below_quality_floor"}


@steady
@given(catalogs, requests, policies, active_sets)
def test_a_receipt_replays_offline_to_the_same_receipt(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, active: frozenset[str]
) -> None:
    made = receipt_of(decide(features, catalog, policy, active, False, "s"))
    assert all(c.keys() == CANDIDATE_FIELDS for c in made["candidates"])
    again = replay(made["inputs"])
    assert again.catalog.hash == made["inputs"]["catalog_hash"]
    assert receipt_of(again) == made


def test_nothing_stored_is_a_float() -> None:
    def floats(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [f for v in value.values() for f in floats(v)]
        if isinstance(value, list | tuple):
            return [f for v in value for f in floats(v)]
        return [value] if isinstance(value, float) else []

    assert floats(columns(decided(asked(budget_cap_usd=Decimal("0.5"))))) == []


@pytest.mark.parametrize(
    ("drop_reason", "m_allowed", "quality", "excluded"),
    [
        ("exceeds_budget_cap", False, 0.1, "exceeds_budget_cap"),
        (None, False, 0.9, "ineligible"),
        (None, True, 0.4, "below_floor"),
        (None, True, None, "below_floor"),
        (None, True, 0.5, None),
    ],
)
def test_why_the_dashboard_leaves_one_out(
    drop_reason: str | None, m_allowed: bool, quality: float | None, excluded: str | None
) -> None:
    candidate = {
        "model_slug": "m",
        "brand_slug": "b",
        "q_prior": quality,
        "projected_cost_usd": None,
        "drop_reason": drop_reason,
        "m_allowed": m_allowed,
    }
    shown = dashboard_candidate(candidate, None, Decimal("0.50"))
    assert shown["excluded"] == excluded


def test_the_dashboard_shows_one_that_was_ranked_by_its_measured_quality() -> None:
    found = Evidence(empirical={"gpt-5-5": Empirical(Decimal("0.99"), Decimal("0.97"), 500)})
    policy = CallerPolicy(q_source="empirical")
    decision = decided(asked(min_quality=Decimal("0.96")), policy=policy, evidence=found)
    shown = {each["model_slug"]: each for each in receipt_of(decision)["dashboard_candidates"]}
    assert shown["gpt-5-5"]["chosen"]
    assert shown["gpt-5-5"]["excluded"] is None  # though its prior is 0.90
    assert shown["claude-opus-4-7"]["excluded"] == "below_quality_floor"
