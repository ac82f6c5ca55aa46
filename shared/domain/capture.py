"""The decision as it is stored, and the decision receipt made of what was stored.

Stored is a compact form: the inputs less the catalogue (which is stored once, under its
hash) and each candidate's fate. A receipt joins the two again.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from shared.domain.candidate import Candidate, price_text
from shared.domain.inference import ROUTING_TARGET
from shared.domain.pricing import nano_text
from shared.domain.routing import Decision


def compact(decision: Decision) -> dict[str, Any]:
    """Plain JSON without floats: `{terms, catalog_hash, floor_source, outcomes}`.

    `outcomes` maps slug to `[m_allowed, projected nano-USD, drop reason, rank]`, in order.
    """
    return {
        "terms": decision.terms(),
        "catalog_hash": decision.catalog.hash,
        "floor_source": decision.floor_source,
        "outcomes": [
            [
                o.candidate.slug,
                o.m_allowed,
                o.projected,
                None if o.drop_reason is None else o.drop_reason.value,
                o.rank,
            ]
            for o in decision.outcomes
        ],
    }


def columns(decision: Decision, quote_id: str | None = None) -> dict[str, Any]:
    """The decision's columns of `routing_outcomes`, as JSON; the call's fate is the caller's.

    `quote_id` names the quote whose decision this is, where the call named one.
    """
    chosen, projected = decision.chosen, decision.projected_cost
    stored = compact(decision)
    if quote_id is not None:
        stored["quote_id"] = quote_id
    return {
        "task_type": decision.task_type,
        "cell": decision.cell,
        "decision_rule": decision.rule.value,
        "policy_version": decision.policy_version,
        "ruleset_hash": decision.ruleset_hash,
        "min_quality": f"{decision.min_quality:f}",
        "chosen_model_slug": chosen.slug if chosen else None,
        "provider": chosen.provider if chosen else None,
        "cost_projected": None if projected is None else f"{projected:f}",
        "fallback_chain": [c.slug for c in decision.fallbacks],
        "decision": stored,
    }


def receipt(row: Mapping[str, Any], snapshot: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The decision receipt of one routed call.

    `row` is its `routing_outcomes` row, with `decision` parsed; `snapshot` holds the models of
    the catalogue whose hash the row names. Money is decimal strings, quality numbers in 0..1.
    """
    decision = row["decision"]
    models = {m["slug"]: Candidate.from_json(m) for m in snapshot}
    candidates = [_candidate(models[slug], *rest) for slug, *rest in decision["outcomes"]]
    chosen, floor = row["chosen_model_slug"], Decimal(str(row["min_quality"]))
    inputs = {
        **decision["terms"],
        "catalog_hash": decision["catalog_hash"],
        "candidates": [models[slug].to_json() for slug in sorted(models)],
    }
    return {
        "inference_id": str(row["inference_id"]),
        "task_type": row["task_type"],
        "cell": row["cell"],
        "decision_rule": row["decision_rule"],
        "policy_version": row["policy_version"],
        "ruleset_hash": row["ruleset_hash"],
        "min_quality": _number(floor),
        "floor_source": decision["floor_source"],
        "candidates": candidates,
        "m_allowed_set": sorted(c["model_slug"] for c in candidates if c["m_allowed"]),
        "q_prior_used": _number(models[chosen].q_prior) if chosen in models else None,
        "chosen_model_slug": chosen,
        "cost_projected": _money(row["cost_projected"]),
        "cost_actual": _money(row["cost_actual"]),
        "observed_latency_ms": row["observed_latency_ms"],
        "ttft_ms": row["ttft_ms"],
        "outcome_status": row["outcome_status"],
        "fallback_chain": list(row["fallback_chain"] or ()),
        "seed": decision["terms"]["seed"],
        "router": ROUTING_TARGET,
        "inputs": inputs,
        "dashboard_candidates": [dashboard_candidate(c, chosen, floor) for c in candidates],
        **({"quote_id": decision["quote_id"]} if "quote_id" in decision else {}),
    }


def _candidate(
    model: Candidate, m_allowed: bool, projected: int | None, drop_reason: str | None, rank: Any
) -> dict[str, Any]:
    return {
        "model_slug": model.slug,
        "brand_slug": model.brand,
        "q_prior": _number(model.q_prior),
        "price_in_per_mtok_usd": price_text(model.price_in),
        "price_out_per_mtok_usd": price_text(model.price_out),
        "m_allowed": m_allowed,
        "projected_cost_usd": None if projected is None else nano_text(projected),
        "drop_reason": drop_reason,
        "rank": rank,
    }


def dashboard_candidate(
    candidate: Mapping[str, Any], chosen: str | None, floor: Decimal
) -> dict[str, Any]:
    """`excluded`: the drop reason; else `ineligible`, else `below_floor`, else null."""
    excluded = candidate["drop_reason"]
    quality = candidate["q_prior"]
    if excluded is None and not candidate["m_allowed"]:
        excluded = "ineligible"
    if excluded is None and (quality is None or Decimal(str(quality)) < floor):
        excluded = "below_floor"
    return {
        "model_slug": candidate["model_slug"],
        "brand_slug": candidate["brand_slug"],
        "q_prior": quality,
        "projected_cost_usd": candidate["projected_cost_usd"],
        "chosen": candidate["model_slug"] == chosen,
        "excluded": excluded,
    }


def _number(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _money(value: Any) -> str | None:
    return None if value is None else format(Decimal(str(value)), "f")
