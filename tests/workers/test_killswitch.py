"""A call that waited in the queue when the killswitch was engaged is not started."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from shared.killswitch import Killswitch
from workers.call import Outcome
from workers.inference import refused_before_hold


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
