"""Which model is asked, and for how much money: the rule's decision, the client's pin, a quote."""

from dataclasses import dataclass
from decimal import Decimal

from shared.domain import capture
from shared.domain.candidate import Candidate
from shared.domain.ledger import ZERO
from shared.domain.planning import (
    HeldQuote,
    Planned,
    hold_for,
    plan,
    plan_quoted,
    plan_unexplored,
    unexploring,
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

    @property
    def drawn(self) -> bool:
        """Whether exploration chose, so that the rule's own choice may be taken in its place.

        Not of a quote: its client was promised this very model.
        """
        return self.quote_id is None and self.decision is not None and self.decision.explored

    def hold_for(self, candidate: Candidate) -> Decimal:
        """The money to hold before this one of the models is asked, in USD."""
        return hold_for(self.features, candidate)


def plan_call(call: Call, deps: Deps, attempt: int | None = None) -> Plan:
    """The plan of a call; pure but for what `deps` holds.

    Only a first attempt explores. A later one does not know whether the money for what was drawn
    was held or refused, and the rule's own choice is right after both. `attempt` is the one whose
    plan is wanted, where that is not the call's own.
    """
    policy = CallerPolicy.from_json(call.envelope.caller["policy"])
    if (attempt or call.attempt) > 1:
        policy = unexploring(policy)
    now = deps.routing.situation(policy, frozenset(deps.providers), call.tenant_id)
    if call.envelope.quote is not None:
        quote = HeldQuote.from_json(call.envelope.quote)
        return _plan(plan_quoted(quote, now), quote.id)
    return _plan(plan(call.request, now, seed=call.inference_id), None)


def plan_anew(plan: Plan, deps: Deps) -> Plan:
    """The plan without its exploration: what the rule chooses by itself."""
    assert plan.decision is not None, "only a decision explores"
    return _plan(plan_unexplored(plan.decision, deps.settings.max_fallbacks), None)


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
