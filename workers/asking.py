"""One provider asked once: its events told as they come, metered against the hold."""

import logging
from contextlib import aclosing
from decimal import Decimal

from shared.domain.billing import NOTHING, Work, owed
from shared.domain.candidate import Candidate
from shared.domain.inference import (
    CallInfo,
    Completed,
    Failed,
    Failure,
    Forwarded,
    Started,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from shared.domain.ledger import ZERO
from shared.domain.pricing import Prices, cost, estimated_usage
from shared.errors import ProviderError
from shared.holding import outgrown
from shared.metrics import PROVIDER_CALLS
from workers.call import Asked, Call, Ending, Outcome
from workers.deps import Deps
from workers.providers import ProviderCall
from workers.routing import Plan

log = logging.getLogger(__name__)


class Asking:
    """What has come of asking `candidate` so far. `held_usd` is the hold it is metered against."""

    def __init__(
        self, call: Call, plan: Plan, candidate: Candidate, held_usd: Decimal, deps: Deps
    ) -> None:
        self.call = call
        self.plan = plan
        self.candidate = candidate
        self.held_usd = held_usd
        self.written = 0
        self.last: StreamEvent | None = None
        self.first_word_at: float | None = None
        self._prices = prices_of(candidate)
        self._clock = deps.monotonic
        self._asked_at = deps.monotonic()
        self._metered_until = 0
        self._at_start = NOTHING
        self.lease_s = deps.settings.hold_ttl_s
        self._renew_at = self._asked_at + self.lease_s / 2

    def note(self, event: StreamEvent) -> None:
        """Count what the model wrote, and when it first did."""
        self.last = event
        self.written += size_of(event)
        if isinstance(event, Started):
            self._at_start = event.usage
        if self.first_word_at is None and not isinstance(event, Started | Completed | Failed):
            self.first_word_at = self._clock()

    def outgrows_hold(self) -> bool:
        """Whether the answer so far may cost more than is held; cheap between two tokens."""
        if self.written < self._metered_until:
            return False
        used = cost(self.estimate(), self._prices)
        self._metered_until = self.written + 512
        return used > self.held_usd

    def lease_half_over(self) -> bool:
        """Whether it is time to lease the hold anew, lest it expire under an answer that goes on.

        Half of it is left then: longer than a provider may be silent, so a word comes in time.
        """
        return self._clock() >= self._renew_at

    def leased(self) -> None:
        """The hold was leased anew."""
        self._renew_at = self._clock() + self.lease_s / 2

    def estimate(self) -> Usage:
        return estimated_usage(self.plan.estimated_input_tokens, self.written)

    def usage(self) -> Usage:
        """What is owed for the work so far; shared/domain/billing.py has the rule."""
        counted = None
        match self.last:
            case Completed(usage=usage) if not usage.estimated:
                counted = usage
            case Failed(usage=Usage() as usage):
                counted = usage
        return owed(
            Work(
                self.plan.estimated_input_tokens,
                self.written,
                spoke=self.first_word_at is not None,
                ended=isinstance(self.last, Completed),
                counted=counted,
                at_start=self._at_start,
            )
        )

    def ending(self, outcome: Outcome, failure: Failure | None) -> Ending:
        began = self._asked_at
        first = self.first_word_at
        return Ending(
            outcome=outcome,
            failure=failure,
            completed=self.last if isinstance(self.last, Completed) else None,
            candidate=self.candidate,
            usage=self.usage(),
            held_usd=self.held_usd,
            latency_ms=round((self._clock() - began) * 1000),
            ttft_ms=None if first is None else round((first - began) * 1000),
        )

    def broken(self) -> Outcome:
        """How an answer that broke off is called."""
        spoke = self.first_word_at is not None
        return Outcome.FAILED_MIDSTREAM if spoke else Outcome.FAILED_PROVIDER

    def in_vain(self, failure: Failure) -> Asked:
        status = failure.detail.get("upstream_status")
        return Asked(self.candidate.slug, self.candidate.provider, failure.code, status)


def prices_of(candidate: Candidate) -> Prices:
    """The prices of a model that was planned; a model without prices never is."""
    if candidate.prices is None:
        raise ValueError(f"{candidate.slug} has no price")
    return candidate.prices


def size_of(event: StreamEvent) -> int:
    """Characters the model wrote, at most."""
    match event:
        case TextDelta(text=text):
            return len(text)
        case ThinkingDelta(text=text):
            return len(text)
        case ToolCallDelta(arguments=arguments):
            return len(arguments)
        case Forwarded(size=size):
            return size
    return 0


async def ask(asking: Asking, deps: Deps) -> Completed | Failed:
    """Ask one provider and tell what it says, word by word; returns its last event, untold.

    It is counted however that ends, for it may have to be paid.
    """
    outcome = Outcome.CANCELLED
    try:
        last = await _hear(asking, deps)
        outcome = Outcome.SUCCEEDED if isinstance(last, Completed) else asking.broken()
        return last
    except Exception:
        outcome = asking.broken()
        raise
    finally:
        provider = asking.candidate.provider
        PROVIDER_CALLS.labels(provider=provider, outcome=outcome.value).inc()


async def _hear(asking: Asking, deps: Deps) -> Completed | Failed:
    call, candidate = asking.call, asking.candidate
    provider = deps.providers[candidate.provider]
    forward = provider.dialect is not None and provider.dialect is call.request.dialect
    call.answer.begin(call_info(call, candidate, provider.simulated, deps))
    asked = ProviderCall(
        request=call.request,
        model=candidate.provider_model_id,
        slug=candidate.slug,
        max_output_tokens=candidate.max_output_tokens,
        forward=forward,
        seed=call.inference_id,
        headers=call.envelope.headers,
        deadline_s=time_left(call, deps),
    )
    async with aclosing(provider.stream(asked)) as events:
        async for event in events:
            asking.note(event)
            if isinstance(event, Completed | Failed):
                return event
            call.answer.tell(event)
            if asking.outgrows_hold():
                refused = await extend(asking, asking.held_usd, deps)
                if refused is not None:
                    return Failed(refused)
            elif asking.lease_half_over():
                await extend(asking, ZERO, deps)
    return Failed(
        ProviderError(
            f"{candidate.provider} ended the answer without saying so.",
            provider=candidate.provider,
            upstream_status=None,
        ).failure()
    )


def time_left(call: Call, deps: Deps) -> float:
    """Seconds until the call's own deadline, which no fallback prolongs; never quite none.

    What runs in the background has its time from when a worker takes it up.
    """
    used_s = deps.monotonic() - call.claimed_at + (0 if call.request.background else call.age_s)
    return max(deps.settings.call_deadline_s - used_s, 0.001)


def call_info(call: Call, candidate: Candidate, simulated: bool, deps: Deps) -> CallInfo:
    return CallInfo(
        inference_id=call.inference_id,
        receipt_id=call.receipt_id,
        agent_id=call.agent_id,
        audit_url=deps.settings.audit_url(call.agent_id),
        model=candidate.provider_model_id,
        provider=candidate.provider,
        created=int(call.envelope.accepted_at),
        include_usage=call.request.include_usage,
        simulated=simulated,
    )


async def hold_covers(needed_usd: Decimal, asking: Asking, deps: Deps) -> bool:
    """Whether a fallback may be asked: it can be dearer than what was held for the first."""
    missing = needed_usd - asking.held_usd
    return missing <= 0 or await extend(asking, missing, deps) is None


async def extend(asking: Asking, extra: Decimal, deps: Deps) -> Failure | None:
    """Enlarge the hold by `extra` USD and lease it anew; why not, where that is refused.

    An answer that outgrows its hold doubles it. By nothing, it is only leased anew.
    """
    call = asking.call
    held = await deps.ledger.extend(call.inference_id, call.attempt, extra, asking.lease_s)
    asking.leased()
    if held.result == "EXTENDED":
        asking.held_usd += extra
        return None
    log.warning("hold_not_extended", extra={"result": held.result})
    return outgrown(held, extra)
