"""The decision as it is stored, and the decision receipt made of what was stored.

Stored is a compact form: the inputs less the catalogue (which is stored once, under its
hash) and each candidate's fate. A receipt joins the two again.

The audit chain binds a decision by the digest of its recorded inputs: since the rule is pure and
the catalogue has its hash among them, nothing of the decision can be other than it was.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shared.domain.audit import Canonical, canonical_json
from shared.domain.candidate import Candidate, price_text
from shared.domain.inference import ROUTING_TARGET
from shared.domain.pricing import nano_text
from shared.domain.routing import RULESET_HASH, Decision, replay

# A client's lists may be long, and a chain is kept for ever: what is longer is bound by its digest
# alone.
LONGEST_RECORD = 4096

LOST_REASONS = (
    "The worker that decided was lost, and what it decided from was recorded nowhere: the outcome "
    "is known, the reasons are not."
)


@dataclass(frozen=True, slots=True)
class Record:
    """What a decision was made from, as the audit chain has it.

    `inputs` are all but the candidates, which `catalog_hash` names; `digest` is the SHA-256 of
    their canonical JSON, in hex. `told` is that JSON, or None where it is too long for an event.
    """

    inputs: Mapping[str, Any]
    digest: str
    told: Canonical | None


def record(decision: Decision) -> Record:
    """The inputs of a decision and their digest."""
    inputs = {**decision.terms(), "catalog_hash": decision.catalog.hash}
    text = canonical_json(inputs)
    told = Canonical(text) if len(text) <= LONGEST_RECORD else None
    return Record(inputs, hashlib.sha256(text.encode()).hexdigest(), told)


def recorded_decision(
    told: Mapping[str, Any] | None, models: Iterable[Mapping[str, Any]] | None
) -> Decision | None:
    """The decision that a routing event tells the inputs of, made anew.

    `models` is the catalogue that they name. None where either is unknown, or the rule is another
    by now.
    """
    if not told or not models or told.get("ruleset_hash") != RULESET_HASH:
        return None
    decision = replay({**told, "candidates": list(models)})
    return decision if record(decision).inputs == told else None


def compact(decision: Decision) -> dict[str, Any]:
    """Plain JSON without floats: `{terms, catalog_hash, floor_source, outcomes}`.

    `outcomes` maps slug to `[m_allowed, projected nano-USD, drop reason, rank]`, in order.
    `explored` is there, and true, where exploration chose.
    """
    return {
        **({"explored": True} if decision.explored else {}),
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

    `fallback_chain` is who was asked in vain, nobody yet: whom the rule would ask next is in the
    ranks of the outcomes.
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
        "fallback_chain": [],
        "decision": stored,
    }


def receipt(
    row: Mapping[str, Any],
    snapshot: Iterable[Mapping[str, Any]],
    event: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The decision receipt of one routed call, not yet signed.

    `row` is its `routing_outcomes` row, with `decision` parsed; `snapshot` holds the models of
    the catalogue whose hash the row names, as they are stored; `event` is the audit event that
    was written with the row. Money is decimal strings, quality numbers in 0..1.

    Where nobody knows why a call got its model, `inputs` is null and `undocumented` says why.
    """
    decision = row["decision"]
    if "terms" not in decision:
        return {**_undocumented(row, event), **_quoted(decision)}
    listed = sorted(snapshot, key=lambda m: str(m["slug"]))
    models = {m["slug"]: Candidate.from_json(m) for m in listed}
    candidates = [_candidate(models[slug], *rest) for slug, *rest in decision["outcomes"]]
    chosen, floor = row["chosen_model_slug"], Decimal(str(row["min_quality"]))
    return {
        **_outcome(row),
        "explored": decision.get("explored", False),
        "floor_source": decision["floor_source"],
        "candidates": candidates,
        "m_allowed_set": sorted(c["model_slug"] for c in candidates if c["m_allowed"]),
        "q_prior_used": _number(models[chosen].q_prior) if chosen in models else None,
        "seed": decision["terms"]["seed"],
        "inputs": {
            **decision["terms"],
            "catalog_hash": decision["catalog_hash"],
            "candidates": listed,
        },
        "dashboard_candidates": [dashboard_candidate(c, chosen, floor) for c in candidates],
        "audit_event": event,
        **_quoted(decision),
    }


def _quoted(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Names the quote that the call was served by; nothing of most calls."""
    return {"quote_id": decision["quote_id"]} if "quote_id" in decision else {}


def _outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the columns of the row say."""
    return {
        "inference_id": str(row["inference_id"]),
        "task_type": row["task_type"],
        "cell": row["cell"],
        "decision_rule": row["decision_rule"],
        "policy_version": row["policy_version"],
        "ruleset_hash": row["ruleset_hash"],
        "min_quality": _number(Decimal(str(row["min_quality"]))),
        "chosen_model_slug": row["chosen_model_slug"],
        "cost_projected": _money(row["cost_projected"]),
        "cost_actual": _money(row["cost_actual"]),
        "observed_latency_ms": row["observed_latency_ms"],
        "ttft_ms": row["ttft_ms"],
        "outcome_status": row["outcome_status"],
        "fallback_chain": list(row["fallback_chain"] or ()),
        "router": ROUTING_TARGET,
    }


def _undocumented(row: Mapping[str, Any], event: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        **_outcome(row),
        "explored": None,
        "floor_source": None,
        "candidates": [],
        "m_allowed_set": [],
        "q_prior_used": None,
        "seed": None,
        "inputs": None,
        "undocumented": LOST_REASONS,
        "dashboard_candidates": [],
        "audit_event": event,
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
    """`excluded`: the drop reason; else `ineligible`, else `below_floor`, else null.

    What is ranked cleared the floor, if not by its prior then by the quality that was measured.
    """
    excluded = candidate["drop_reason"]
    quality = candidate["q_prior"]
    if excluded is None and not candidate["m_allowed"]:
        excluded = "ineligible"
    ranked = candidate.get("rank") is not None
    if excluded is None and not ranked and (quality is None or Decimal(str(quality)) < floor):
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
    """Whole numbers as such: `1.0` and `1` are one number and have one canonical text, `1`."""
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _money(value: Any) -> str | None:
    return None if value is None else format(Decimal(str(value)), "f")
