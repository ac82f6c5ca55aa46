"""A call that waited in the queue when the killswitch was engaged is not started."""

from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from shared.holding import Held, outgrown
from shared.killswitch import Killswitch
from workers.call import Outcome
from workers.inference import refused_before_hold, refused_by_ledger


def waiting(tenant_id: str, *, background: bool = False, kept: bool = False) -> Any:
    return SimpleNamespace(
        tenant_id=tenant_id,
        attempt=1,
        age_s=1.0,
        late=False,
        envelope=SimpleNamespace(kept=kept),
        request=SimpleNamespace(background=background),
    )


async def test_it_is_refused_with_a_capture_and_before_any_money_is_held() -> None:
    killswitch = Killswitch(cast(Any, None))
    settings = SimpleNamespace(call_deadline_s=600.0, background_deadline_s=600.0)
    deps = cast(Any, SimpleNamespace(settings=settings, killswitch=killswitch))
    plan = cast(Any, SimpleNamespace(refusal=None))
    mine, other = str(uuid4()), str(uuid4())
    assert refused_before_hold(waiting(mine), plan, deps) is None
    killswitch.obey({"type": "killswitch", "scope": mine, "engaged": True})
    refused = refused_before_hold(waiting(mine), plan, deps)
    assert refused is not None
    assert refused.outcome is Outcome.REJECTED_CAP
    assert refused.failure_or_bug().code == "cost_killswitch_engaged"
    assert refused_before_hold(waiting(other), plan, deps) is None
    # its ingress heard of the killswitch before we did: it would be kept else
    early = refused_before_hold(waiting(other, background=True), plan, deps)
    assert early is not None
    assert early.outcome is Outcome.REJECTED_CAP
    assert refused_before_hold(waiting(other, background=True, kept=True), plan, deps) is None


def test_a_hold_that_it_refuses_ends_the_call_as_it_would_have_before() -> None:
    refused = refused_by_ledger(Held("KILLSWITCH", 1), cast(Any, SimpleNamespace(hold_usd=1)))
    assert refused is not None
    assert refused.outcome is Outcome.REJECTED_CAP
    assert refused.failure_or_bug().code == "cost_killswitch_engaged"
    assert refused.failure_or_bug().status == 503


def test_an_answer_that_would_outgrow_a_threshold_is_ended_for_it() -> None:
    failure = outgrown(Held("KILLSWITCH", 1), Decimal(1))
    assert failure.code == "cost_killswitch_engaged"
    assert "what was written is settled" in failure.message
