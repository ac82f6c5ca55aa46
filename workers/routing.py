"""Which model is asked, and for how much money: the rule's decision, or the client's own pin."""

from dataclasses import dataclass
from decimal import Decimal

from shared.domain import capture
from shared.domain.candidate import Candidate
from shared.domain.evidence import Evidence
from shared.domain.inference import Failure
from shared.domain.ledger import ZERO
from shared.domain.pinning import pinned
from shared.domain.pricing import hold_amount, projected_cost
from shared.domain.routing import Decision, Rule, decide, refusal
from shared.domain.routing_policy import CallerPolicy, RequestFeatures, features
from workers.call import Call, Ending, Outcome
from workers.deps import Deps

REJECTIONS = {
    Rule.NONE_CLEARS_FLOOR: Outcome.REJECTED_FLOOR,
    Rule.NONE_ENROLLED: Outcome.REJECTED_NOT_ENROLLED,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The models to ask in order, and the money to hold for the first of them, in USD.

    `decision`, and `record` of what it was made from, are None for a pinned model. `refusal` is
    set, and `candidates` empty, where no model can be asked.
    """

    features: RequestFeatures
    decision: Decision | None = None
    candidates: tuple[Candidate, ...] = ()
    projected_usd: Decimal = ZERO
    hold_usd: Decimal = ZERO
    refusal: Ending | None = None
    record: capture.Record | None = None

    @property
    def estimated_input_tokens(self) -> int:
        return self.features.input_tokens

    def hold_for(self, candidate: Candidate) -> Decimal:
        """The money to hold before this one of the models is asked, in USD."""
        return _hold_for(self.features, candidate)


def plan_call(call: Call, deps: Deps) -> Plan:
    """Decide for a routed call, look up for a pinned one; pure but for what `deps` holds."""
    policy = CallerPolicy.from_json(call.envelope.caller["policy"])
    asked = features(call.request, policy, call.tenant_id)
    active = frozenset(deps.providers)
    if not call.request.routed:
        return _pinned_plan(call, asked, pinned(call.request.model, deps.catalog, asked, active))
    decision = decide(
        asked,
        deps.catalog,
        policy,
        active,
        deps.policies.preference_live,
        seed=call.inference_id,
        evidence=Evidence(deps.latencies.by_model, deps.empirical.get(asked.task_type, {})),
    )
    if decision.chosen is None:
        ending = Ending(REJECTIONS[decision.rule], failure=refusal(decision))
        return Plan(asked, decision, refusal=ending, record=capture.record(decision))
    fallbacks = decision.fallbacks[: deps.settings.max_fallbacks]
    return _priced(asked, decision, (decision.chosen, *fallbacks))


def _pinned_plan(call: Call, asked: RequestFeatures, found: Candidate | Failure) -> Plan:
    if isinstance(found, Failure):
        return Plan(asked, refusal=Ending(Outcome.REJECTED_NOT_ENROLLED, failure=found))
    return _priced(asked, None, (found,))


def _priced(
    asked: RequestFeatures, decision: Decision | None, candidates: tuple[Candidate, ...]
) -> Plan:
    chosen = candidates[0]
    assert chosen.prices is not None, "no model without a price passes enrolment or the pin"
    reserved = min(asked.reserved_output_tokens, chosen.max_output_tokens)
    return Plan(
        features=asked,
        decision=decision,
        candidates=candidates,
        projected_usd=projected_cost(chosen.prices, asked.input_tokens, reserved),
        hold_usd=_hold_for(asked, chosen),
        record=None if decision is None else capture.record(decision),
    )


def _hold_for(asked: RequestFeatures, candidate: Candidate) -> Decimal:
    assert candidate.prices is not None, "no model without a price is ever planned"
    reserved = min(asked.reserved_output_tokens, candidate.max_output_tokens)
    return hold_amount(candidate.prices, asked.input_tokens, reserved)
