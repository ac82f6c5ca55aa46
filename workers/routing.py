"""Which model is asked, and for how much money: the rule's decision, the client's pin, a quote."""

from dataclasses import dataclass
from decimal import Decimal

from shared.domain import capture
from shared.domain.candidate import Candidate
from shared.domain.ledger import ZERO
from shared.domain.planning import (
    HeldQuote,
    Planned,
    Situation,
    hold_for,
    plan,
    plan_quoted,
)
from shared.domain.routing import Decision, Rule
from shared.domain.routing_policy import CallerPolicy, RequestFeatures
from workers.call import Call, Ending, Outcome
from workers.deps import Deps


@dataclass(frozen=True, slots=True)
class Plan:
    """The models to ask in order, and the money to hold for the first of them, in USD.

    `decision`, and `record` of what it was made from, are None for a pinned model. `refusal` is
    set, and `candidates` empty, where no model can be asked. `quote_id` names the quote whose
    choice and prices these are.
    """

    features: RequestFeatures
    decision: Decision | None = None
    candidates: tuple[Candidate, ...] = ()
    projected_usd: Decimal = ZERO
    hold_usd: Decimal = ZERO
    refusal: Ending | None = None
    record: capture.Record | None = None
    quote_id: str | None = None

    @property
    def estimated_input_tokens(self) -> int:
        return self.features.input_tokens

    def hold_for(self, candidate: Candidate) -> Decimal:
        """The money to hold before this one of the models is asked, in USD."""
        return hold_for(self.features, candidate)


def plan_call(call: Call, deps: Deps) -> Plan:
    """The plan of a call; pure but for what `deps` holds."""
    now = Situation(
        deps.catalog,
        CallerPolicy.from_json(call.envelope.caller["policy"]),
        frozenset(deps.providers),
        deps.policies.preference_live,
        deps.settings.max_fallbacks,
        call.tenant_id,
        deps.latencies.by_model,
        deps.empirical,
    )
    if call.envelope.quote is not None:
        quote = HeldQuote.from_json(call.envelope.quote)
        return _plan(plan_quoted(quote, now), quote.id)
    return _plan(plan(call.request, now, seed=call.inference_id), None)


def _plan(planned: Planned, quote_id: str | None) -> Plan:
    refusal = None
    if planned.failure is not None:
        refusal = Ending(_rejection(planned.decision), failure=planned.failure)
    return Plan(
        features=planned.features,
        decision=planned.decision,
        candidates=planned.candidates,
        projected_usd=planned.projected_usd,
        hold_usd=planned.hold_usd,
        refusal=refusal,
        quote_id=quote_id,
        record=None if planned.decision is None else capture.record(planned.decision),
    )


def _rejection(decision: Decision | None) -> Outcome:
    if decision is not None and decision.rule is Rule.NONE_CLEARS_FLOOR:
        return Outcome.REJECTED_FLOOR
    return Outcome.REJECTED_NOT_ENROLLED
