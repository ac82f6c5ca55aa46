"""Which models would be asked for a request, in order, and for how much money: a call's plan.

The one rule behind a call and behind its quote, so that a quote says what a call does. Pure: what
is live (the catalogue, who is active) comes in as arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from shared.domain.candidate import Candidate, Catalog
from shared.domain.evidence import Empirical, Evidence
from shared.domain.inference import Failure, InferenceRequest
from shared.domain.ledger import ZERO
from shared.domain.pinning import pinned
from shared.domain.policy_version import NO_EXPLORATION
from shared.domain.pricing import hold_amount, projected_cost
from shared.domain.routing import Decision, conditions_hold, decide, refusal, replay
from shared.domain.routing_policy import CallerPolicy, RequestFeatures, features

WITHDRAWN = "The model that was quoted may no longer be asked. Ask for a new quote."


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on besides the request: all of it as it is now.

    `active` are the slugs of the providers that can be asked; `most_fallbacks` of the ranked
    models are asked after the chosen one. `latencies` are p95 in milliseconds by slug, `empirical`
    what is known of models' quality by task type and slug.
    """

    catalog: Catalog
    policy: CallerPolicy
    active: frozenset[str]
    preference_live: bool
    most_fallbacks: int
    tenant_id: str
    latencies: Mapping[str, int] = field(default_factory=dict)
    empirical: Mapping[str, Mapping[str, Empirical]] = field(default_factory=dict)

    def evidence(self, task_type: str) -> Evidence:
        return Evidence(self.latencies, self.empirical.get(task_type, {}))


@dataclass(frozen=True, slots=True)
class Planned:
    """The models to ask in order, and what the first of them costs, in USD.

    `decision` is None for a pinned model. `failure` is set, and `candidates` empty, where no model
    can be asked.
    """

    features: RequestFeatures
    decision: Decision | None = None
    candidates: tuple[Candidate, ...] = ()
    failure: Failure | None = None

    @property
    def projected_usd(self) -> Decimal:
        return projected_for(self.features, self.candidates[0]) if self.candidates else ZERO

    @property
    def hold_usd(self) -> Decimal:
        return hold_for(self.features, self.candidates[0]) if self.candidates else ZERO


def plan(request: InferenceRequest, now: Situation, seed: str) -> Planned:
    """Decide for a routed call, look up for a pinned one."""
    asked = features(request, now.policy, now.tenant_id)
    if not request.routed:
        return _pinned(asked, pinned(request.model, now.catalog, asked, now.active))
    decision = decide(
        asked,
        now.catalog,
        now.policy,
        now.active,
        now.preference_live,
        seed,
        now.evidence(asked.task_type),
    )
    return _decided(decision, now.most_fallbacks)


def plan_for_quote(request: InferenceRequest, now: Situation, seed: str) -> Planned:
    """The plan of a call that does not explore: who asks again gets the same answer, not another
    draw. The decision records that it did not."""
    return plan(request, replace(now, policy=unexploring(now.policy)), seed)


def plan_unexplored(decision: Decision, most_fallbacks: int) -> Planned:
    """The plan of a decision less its exploration: from the very inputs, but for a share of 0."""
    again = decide(
        decision.features,
        decision.catalog,
        unexploring(decision.policy),
        decision.active_providers,
        decision.preference_live,
        decision.seed,
        decision.evidence,
    )
    return _decided(again, most_fallbacks)


def unexploring(policy: CallerPolicy) -> CallerPolicy:
    """The policy, recorded with no share that explores: the call was not left to the dice."""
    return replace(policy, exploration_share=NO_EXPLORATION)


@dataclass(frozen=True, slots=True)
class HeldQuote:
    """A quote as the call that names it carries it: the choice and the prices that were promised.

    `terms` and `models` are the inputs of the quoted decision; of a pinned model's, `terms` are
    the request's features alone. `models` is the catalogue as it was.
    """

    id: str
    routed: bool
    model_slug: str
    terms: Mapping[str, Any]
    models: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "routed": self.routed,
            "model_slug": self.model_slug,
            "terms": self.terms,
            "models": self.models,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HeldQuote":
        return cls(**{name: data[name] for name in cls.__slots__})


def terms_of(planned: Planned) -> dict[str, Any]:
    """What a quote keeps of a plan besides the catalogue."""
    if planned.decision is not None:
        return planned.decision.terms()
    return {"features": planned.features.to_json()}


def plan_quoted(quote: HeldQuote, now: Situation) -> Planned:
    """The quoted plan: its decision is made again from the very inputs, catalogue included.

    A promise does not outlive the permission: what is not active any more, or whose brand may not
    be asked now, is left out, and without the quoted model nothing is asked at all.
    """
    if quote.routed:
        planned = _decided(
            replay({**quote.terms, "candidates": quote.models}), most=now.most_fallbacks
        )
    else:
        models = Catalog.of(map(Candidate.from_json, quote.models))
        chosen = next(each for each in models.candidates if each.slug == quote.model_slug)
        planned = Planned(RequestFeatures.from_json(quote.terms["features"]), None, (chosen,))
    pinned_model = None if quote.routed else quote.model_slug
    allowed = tuple(
        each
        for each in planned.candidates
        if still_allowed(each, planned.features, now, pin=each.slug == pinned_model)
    )
    if not allowed or allowed[0].slug != quote.model_slug:
        gone = None if planned.decision is None else decide_again(planned.decision, now)
        return Planned(planned.features, gone, failure=withdrawn(quote.model_slug))
    return Planned(planned.features, planned.decision, allowed)


def decide_again(quoted: Decision, now: Situation) -> Decision:
    """The decision of a call whose quoted model may no longer be asked: nobody is chosen.

    Made of the models and providers of now, all others denied: so it says why of the quoted one,
    and replays like any other. One that is another provider's by now is denied too.
    """
    assert quoted.chosen is not None, "what is quoted has a model"
    chosen = quoted.chosen
    others = frozenset(
        each.slug
        for each in now.catalog.candidates
        if (each.slug, each.provider) != (chosen.slug, chosen.provider)
    )
    return decide(
        replace(quoted.features, deny=quoted.features.deny | others),
        now.catalog,
        quoted.policy,
        now.active,
        quoted.preference_live,
        quoted.seed,
        quoted.evidence,
    )


def still_allowed(
    candidate: Candidate, asked: RequestFeatures, now: Situation, *, pin: bool
) -> bool:
    """Whether a model that was quoted may still be asked, whatever it costs now."""
    known = now.catalog.find(candidate.slug)
    return (
        known is not None
        and candidate.provider in now.active
        and (known.verdict == "PASS" or conditions_hold(known, asked, pin=pin))
    )


def withdrawn(model: str) -> Failure:
    detail = {"model": model, "provider": None, "hint": "Ask for a new quote."}
    return Failure("model_unavailable", 422, f"{model}: {WITHDRAWN}", detail)


def _pinned(asked: RequestFeatures, found: Candidate | Failure) -> Planned:
    if isinstance(found, Failure):
        return Planned(asked, failure=found)
    return Planned(asked, None, (found,))


def _decided(decision: Decision, most: int) -> Planned:
    if decision.chosen is None:
        return Planned(decision.features, decision, failure=refusal(decision))
    candidates = (decision.chosen, *decision.fallbacks[:most])
    return Planned(decision.features, decision, candidates)


def hold_for(asked: RequestFeatures, candidate: Candidate) -> Decimal:
    """The money to hold before this model is asked, in USD."""
    assert candidate.prices is not None, "no model without a price passes enrolment or the pin"
    return hold_amount(candidate.prices, asked.input_tokens, reserved_tokens(asked, candidate))


def maximum_for(asked: RequestFeatures, candidate: Candidate, max_tokens: int | None) -> Decimal:
    """The most that this model can cost, in USD, as far as the input's estimate and margin hold.

    Without `max_tokens` the provider is told no limit, or the model's own: that is the bound.
    """
    assert candidate.prices is not None, "no model without a price passes enrolment or the pin"
    own = candidate.max_output_tokens
    most = own if max_tokens is None else min(max_tokens, own)
    return hold_amount(candidate.prices, asked.input_tokens, most)


def projected_for(asked: RequestFeatures, candidate: Candidate) -> Decimal:
    """What this model is expected to cost at most for its output, in USD."""
    assert candidate.prices is not None, "no model without a price passes enrolment or the pin"
    return projected_cost(candidate.prices, asked.input_tokens, reserved_tokens(asked, candidate))


def reserved_tokens(asked: RequestFeatures, candidate: Candidate) -> int:
    """Output tokens that money is held for: the model's own limit cuts what was asked for."""
    return min(asked.reserved_output_tokens, candidate.max_output_tokens)
