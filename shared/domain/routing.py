"""The decision rule: enrol, gate, rank, choose. Pure: same inputs, same bytes.

No clock, no randomness, no I/O. Comparisons are between whole numbers (billionths of a
dollar, billionths of quality), so that no float can make two machines disagree.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from shared.domain.audit import canonical_json
from shared.domain.candidate import Candidate, Catalog, decimal_text
from shared.domain.evidence import NO_EVIDENCE, Evidence
from shared.domain.exploration import drawn
from shared.domain.inference import ROUTING_TARGET, Failure
from shared.domain.pinning import unroutable
from shared.domain.pricing import cap_to_nano, floor_to_nano, from_nano, projected_nano
from shared.domain.routing_policy import (
    DEFAULT_FLOOR,
    POLICY_VERSIONS,
    PREFERENCE_HIGH,
    PREFERENCE_LOW,
    PREFERENCE_STEP,
    TIERS,
    CallerPolicy,
    RequestFeatures,
    resolve_floor,
)


class DropReason(StrEnum):
    """Why a candidate is out; the first that applies, in this order of checking."""

    NO_PROVIDER = "not_enrolled_no_provider"
    NO_PRICE = "not_enrolled_no_price"
    NO_Q_PRIOR = "not_enrolled_no_q_prior"
    VETO = "m_allowed_veto"
    MISSING_CAPABILITY = "missing_capability"
    DENIED = "denied_by_request"
    BELOW_FLOOR = "below_quality_floor"
    OVER_BUDGET = "exceeds_budget_cap"
    TOO_SLOW = "exceeds_latency_cap"


class Rule(StrEnum):
    CHEAPEST = "cheapest_clearing_floor"
    VETO_APPLIED = "m_allowed_veto_applied"
    NONE_CLEARS_FLOOR = "no_candidate_clears_floor"
    NONE_ENROLLED = "no_candidate_enrolled"


# Past enrolment: a candidate out for one of these was enrolled and then gated.
_GATED = frozenset({DropReason.BELOW_FLOOR, DropReason.OVER_BUDGET, DropReason.TOO_SLOW})

RULESET: Mapping[str, Any] = {
    "name": "cheapest-clearing-floor",
    "version": 2,
    "order": [reason.value for reason in DropReason],
    "pick": ["projected_cost asc", "q_prior desc", "slug asc"],
    "projected_cost": "input estimate x price in + reserved output x price out, 9 places half up",
    "conditional": "allowed where all conditions of the brand hold on the request: opt_in (the "
    "allow list names the model or its brand), data_class, region, tenant; opt_in where none is",
    "tenant": "listed by its id, or by sha256('ainfera tenant ' + id)[0:16] in hex",
    "quality": "the lower bound of q_empirical where the policy's q_source is empirical and there "
    "is one, else q_prior",
    "latency": "the observed p95 where there is one, else what the catalogue expects",
    "exploration": "digest = sha256(seed + ':explore'); where digest[0:8] / 2^64 is under the "
    "policy's exploration_share, ranked[1 + digest[8:16] mod (ranked - 1)] goes first; explored "
    "says so, and the rule that fired is that of the ranking",
    "default_floor": decimal_text(DEFAULT_FLOOR),
    "tiers": {name: decimal_text(floor) for name, floor in TIERS.items()},
    "policies": {
        version: {task: decimal_text(floor) for task, floor in floors.items()}
        for version, floors in POLICY_VERSIONS.items()
    },
    "preference": {
        "step": decimal_text(PREFERENCE_STEP),
        "low": decimal_text(PREFERENCE_LOW),
        "high": decimal_text(PREFERENCE_HIGH),
    },
}
RULESET_HASH = hashlib.sha256(canonical_json(RULESET).encode()).hexdigest()[:16]


class CandidateOutcome(NamedTuple):
    """One candidate's fate. `projected` is nano-USD, None without a price; `rank` counts from 1.

    `q` is the quality that counted, in billionths; -1 without one.
    """

    candidate: Candidate
    m_allowed: bool
    projected: int | None
    drop_reason: DropReason | None = None
    rank: int | None = None
    q: int = -1

    @property
    def projected_cost(self) -> Decimal | None:
        return None if self.projected is None else from_nano(self.projected)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rule said. `outcomes`: the ranked by cost, then the dropped by slug.

    `evidence` is what the decision was made from of what was observed.
    """

    chosen: Candidate | None
    fallbacks: tuple[Candidate, ...]
    outcomes: tuple[CandidateOutcome, ...]
    rule: Rule
    min_quality: Decimal
    floor_source: str
    cell: str
    projected_cost: Decimal | None
    features: RequestFeatures
    policy: CallerPolicy
    active_providers: frozenset[str]
    preference_live: bool
    seed: str
    catalog: Catalog
    evidence: Evidence

    ruleset_hash = RULESET_HASH

    @property
    def task_type(self) -> str:
        return self.features.task_type

    @property
    def explored(self) -> bool:
        """Whether the seed put another model before the one that ranks first."""
        return self.chosen is not None and self.chosen is not self.outcomes[0].candidate

    @property
    def policy_version(self) -> str:
        return self.policy.version

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything `replay` needs, as plain JSON."""
        return {
            **self.terms(),
            "catalog_hash": self.catalog.hash,
            "candidates": self.catalog.to_json(),
        }

    def terms(self) -> dict[str, Any]:
        """The inputs without the catalogue."""
        return {
            "features": self.features.to_json(),
            "policy": self.policy.to_json(),
            "active_providers": sorted(self.active_providers),
            "preference_live": self.preference_live,
            "seed": self.seed,
            "ruleset_hash": self.ruleset_hash,
            **self.evidence.to_json(),
        }


def decide(
    features: RequestFeatures,
    catalog: Catalog,
    policy: CallerPolicy,
    active_providers: frozenset[str],
    preference_live: bool,
    seed: str,
    evidence: Evidence = NO_EVIDENCE,
) -> Decision:
    """Choose the cheapest candidate that clears the floor, and say why of every other.

    Of the evidence counts what the request and its policy ask for. Where the policy explores, the
    seed may put another of those that clear everything before the cheapest. That a higher floor
    lowers neither quality nor price holds of the rule's own choice; of one that was drawn holds
    that it clears floor and budget.
    """
    floor, source = resolve_floor(features, policy, preference_live)
    seen = evidence.of(
        catalog.names, features.latency_cap_ms is not None, policy.q_source == "empirical"
    )
    gates = _Gates(
        floor_to_nano(floor),
        None if features.budget_cap_usd is None else cap_to_nano(features.budget_cap_usd),
        features.latency_cap_ms,
        seen,
    )
    alive: list[CandidateOutcome] = []
    dropped: list[CandidateOutcome] = []
    for candidate in catalog.candidates:
        outcome = enrol(candidate, features, active_providers, seen)
        if outcome.drop_reason is None:
            outcome = gate(outcome, gates)
        (alive if outcome.drop_reason is None else dropped).append(outcome)
    ranked = rank(alive)
    rule = choose(ranked, dropped, features, gates)
    order = explore(ranked, policy, seed)
    chosen = order[0].candidate if order else None
    band = features.routing_preference if preference_live else "balanced"
    return Decision(
        chosen=chosen,
        fallbacks=tuple(o.candidate for o in order[1:]),
        outcomes=(*ranked, *dropped),
        rule=rule,
        min_quality=floor.normalize(),
        floor_source=source,
        cell=f"{features.task_type}:{chosen.slug if chosen else 'none'}:{band}",
        projected_cost=order[0].projected_cost if order else None,
        features=features,
        policy=policy,
        active_providers=active_providers,
        preference_live=preference_live,
        seed=seed,
        catalog=catalog,
        evidence=seen,
    )


@dataclass(frozen=True, slots=True)
class _Gates:
    """Floor in billionths, budget in nano-USD, latency in milliseconds."""

    floor: int
    budget: int | None
    latency_ms: int | None
    seen: Evidence


def enrol(
    candidate: Candidate,
    features: RequestFeatures,
    active_providers: frozenset[str],
    seen: Evidence,
) -> CandidateOutcome:
    """Whether this model may serve this request at all."""
    reserved = min(features.reserved_output_tokens, candidate.max_output_tokens)
    prices = candidate.prices
    projected = None if prices is None else projected_nano(prices, features.input_tokens, reserved)
    allowed = candidate.verdict == "PASS" or conditions_hold(candidate, features)
    reason: DropReason | None = None
    if candidate.provider not in active_providers:
        reason = DropReason.NO_PROVIDER
    elif prices is None:
        reason = DropReason.NO_PRICE
    elif candidate.q_prior is None:
        reason = DropReason.NO_Q_PRIOR
    elif not allowed:
        reason = DropReason.VETO
    else:
        reason = _unfit(candidate, features, reserved)
    q = candidate.q_nano
    if seen.empirical and (found := seen.empirical.get(candidate.slug)):
        q = found.lower_nano
    return CandidateOutcome(candidate, allowed, projected, reason, None, q)


def _unfit(candidate: Candidate, features: RequestFeatures, reserved: int) -> DropReason | None:
    """Capabilities, room in the context window, and the request's own lists."""
    if not features.capabilities <= candidate.capabilities:
        return DropReason.MISSING_CAPABILITY
    if features.input_tokens + reserved > candidate.context_window:
        return DropReason.MISSING_CAPABILITY
    if features.deny and _named(candidate, features.deny):
        return DropReason.DENIED
    if features.allow and not _named(candidate, features.allow):
        return DropReason.DENIED
    return None


def conditions_hold(candidate: Candidate, features: RequestFeatures, *, pin: bool = False) -> bool:
    """Whether the brand is CONDITIONAL, and all its conditions hold; who pins a model opts in."""
    if candidate.verdict != "CONDITIONAL":
        return False
    opted_in = pin or _named(candidate, features.allow)
    said = features.data_class, features.region, features.tenant_id
    return candidate.unmet_condition(opted_in, *said) is None


def _named(candidate: Candidate, names: frozenset[str]) -> bool:
    return not names.isdisjoint((candidate.slug, candidate.brand, candidate.provider_model_id))


def gate(outcome: CandidateOutcome, gates: _Gates) -> CandidateOutcome:
    """Drop an enrolled candidate that misses the floor, the budget or the latency cap."""
    reason = _gated(outcome, gates)
    if reason is None:
        return outcome
    candidate, allowed, projected, _, _, q = outcome
    return CandidateOutcome(candidate, allowed, projected, reason, None, q)


def _gated(outcome: CandidateOutcome, gates: _Gates) -> DropReason | None:
    if outcome.q < gates.floor:
        return DropReason.BELOW_FLOOR
    projected = outcome.projected
    if gates.budget is not None and (projected is None or projected > gates.budget):
        return DropReason.OVER_BUDGET
    if gates.latency_ms is not None:
        candidate = outcome.candidate
        latency = gates.seen.latencies.get(candidate.slug, candidate.expected_latency_ms)
        if latency is not None and latency > gates.latency_ms:
            return DropReason.TOO_SLOW
    return None


def rank(alive: list[CandidateOutcome]) -> list[CandidateOutcome]:
    """Cheapest first; then higher quality, then slug."""
    alive.sort(key=_order)
    return [
        CandidateOutcome(candidate, allowed, projected, None, place, q)
        for place, (candidate, allowed, projected, _, _, q) in enumerate(alive, 1)
    ]


def explore(
    ranked: list[CandidateOutcome], policy: CallerPolicy, seed: str
) -> list[CandidateOutcome]:
    """The order to ask in: as ranked, or with another than the cheapest before it.

    All that are ranked clear the floor and the request's caps, so that exploring never leaves
    them. An agent's caps and its wallet are not known here: what they refuse is planned anew.
    """
    place = drawn(seed, policy.exploration_share, len(ranked) - 1)
    if place is None:
        return ranked
    return [ranked[place + 1], *ranked[: place + 1], *ranked[place + 2 :]]


def _order(outcome: CandidateOutcome) -> tuple[int, int, str]:
    return outcome.projected or 0, -outcome.q, outcome.candidate.slug


def choose(
    ranked: list[CandidateOutcome],
    dropped: list[CandidateOutcome],
    features: RequestFeatures,
    gates: _Gates,
) -> Rule:
    """The rule that fired. A veto is named only where it changed the answer."""
    if not ranked:
        gated = any(o.drop_reason in _GATED for o in dropped)
        return Rule.NONE_CLEARS_FLOOR if gated else Rule.NONE_ENROLLED
    best = _order(ranked[0])
    for outcome in dropped:
        if (
            outcome.drop_reason is DropReason.VETO
            and _order(outcome) < best
            and _clears_all_else(outcome, features, gates)
        ):
            return Rule.VETO_APPLIED
    return Rule.CHEAPEST


def _clears_all_else(outcome: CandidateOutcome, features: RequestFeatures, gates: _Gates) -> bool:
    candidate = outcome.candidate
    reserved = min(features.reserved_output_tokens, candidate.max_output_tokens)
    return _unfit(candidate, features, reserved) is None and _gated(outcome, gates) is None


def replay(inputs: Mapping[str, Any]) -> Decision:
    """Run the rule again on a receipt's `inputs`."""
    return replay_on(Catalog.of(Candidate.from_json(c) for c in inputs["candidates"]), inputs)


def replay_on(catalog: Catalog, inputs: Mapping[str, Any]) -> Decision:
    """Run the rule again on a receipt's `inputs`, with their candidates as a catalogue."""
    return decide(
        RequestFeatures.from_json(inputs["features"]),
        catalog,
        CallerPolicy.from_json(inputs["policy"]),
        frozenset(inputs["active_providers"]),
        inputs["preference_live"],
        inputs["seed"],
        Evidence.from_json(inputs),
    )


def refusal(decision: Decision) -> Failure:
    """The 422 of a decision that chose nothing."""
    if decision.rule is Rule.NONE_ENROLLED:
        message = "No model is enrolled for this request."
        hint = (
            "No active provider has an allowed model with what the request asks for; "
            "relax its capabilities, its allow or deny list, or configure a provider."
        )
    else:
        message = f"No model clears the quality floor of {decimal_text(decision.min_quality)}"
        message += " within the request's budget and latency caps."
        hint = f"Lower min_quality (this one is from: {decision.floor_source})"
        hint += " or raise budget_cap_usd or latency_cap_ms."
    return unroutable(decision.rule.value, ROUTING_TARGET, None, message, hint)
