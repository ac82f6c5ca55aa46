"""Processes that do not agree on the time: a call's age is by the clocks of the stores."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from shared.killswitch import Killswitch
from shared.queue import InferenceQueue
from tests.workers.running import Running, envelope, until
from workers.asking import time_left
from workers.call import Outcome
from workers.inference import ask_until_answered, refused_before_hold

# an ingress ten minutes behind and one ten minutes ahead, as its envelopes show it
ACCEPTED_AT = [1.0, 4e9]
MINUTE_S = 60.0


@pytest.mark.parametrize("accepted_at", ACCEPTED_AT)
async def test_a_calls_age_is_by_the_stores_clock(
    redis: Redis, redis_url: str, accepted_at: float
) -> None:
    ages: list[float] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        ages.append(ctx["age_s"])

    queue = InferenceQueue(redis)
    await queue.enqueue(replace(envelope(), accepted_at=accepted_at))
    await queue.enqueue(replace(envelope(), accepted_at=accepted_at), age_s=10 * MINUTE_S)
    running = Running(redis_url, job)
    await until(lambda: len(ages) == 2)
    await running.stop()
    assert 0 <= min(ages) < MINUTE_S
    assert 10 * MINUTE_S <= max(ages) < 11 * MINUTE_S


async def test_a_job_that_comes_back_has_its_age(redis: Redis, redis_url: str) -> None:
    ages: list[float] = []
    first = asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        ages.append(ctx["age_s"])
        if len(ages) == 1:
            first.set()
            await asyncio.Event().wait()

    await InferenceQueue(redis).enqueue(envelope(), age_s=10 * MINUTE_S)
    running = Running(redis_url, job, lease_s=0.3)
    await first.wait()
    await running.crash()
    running = Running(redis_url, job, lease_s=0.3)
    await until(lambda: len(ages) == 2)
    await running.stop()
    assert 10 * MINUTE_S <= ages[0] <= ages[1]


def a_call(age_s: float, accepted_at: float, background: bool = False) -> Any:
    return SimpleNamespace(
        age_s=age_s,
        attempt=1,
        late=False,
        claimed_at=1000.0,
        tenant_id=str(uuid4()),
        envelope=SimpleNamespace(accepted_at=accepted_at, kept=background),
        request=SimpleNamespace(background=background),
    )


def deps_at(monotonic: Callable[[], float]) -> Any:
    settings = SimpleNamespace(call_deadline_s=300.0, background_deadline_s=86_400.0)
    killswitch = Killswitch(cast(Any, None))
    return SimpleNamespace(settings=settings, killswitch=killswitch, monotonic=monotonic)


@pytest.mark.parametrize("accepted_at", ACCEPTED_AT)
def test_no_call_is_too_late_by_a_clock_of_ours(accepted_at: float) -> None:
    deps = deps_at(lambda: 1010.0)
    plan = cast(Any, SimpleNamespace(refusal=None))
    assert refused_before_hold(a_call(299, accepted_at), plan, deps) is None
    late = refused_before_hold(a_call(301, accepted_at), plan, deps)
    assert late is not None
    assert late.outcome is Outcome.EXPIRED
    assert refused_before_hold(a_call(301, accepted_at, background=True), plan, deps) is None
    # it was 20 s old when it was claimed, 10 s ago
    assert time_left(a_call(20, accepted_at), deps) == 270
    assert time_left(a_call(20, accepted_at, background=True), deps) == 290
    assert 0 < time_left(a_call(299, accepted_at), deps) < 1


async def test_each_provider_is_asked_by_an_attempt_that_is_not_overtaken() -> None:
    """Who stood still, before the first or between two, may find that another has the call."""

    async def overtaken() -> None:
        raise asyncio.CancelledError

    call = SimpleNamespace(hold_on=overtaken, reached=False)
    plan = SimpleNamespace(hold_usd=1, candidates=[SimpleNamespace(slug="a model")])
    with pytest.raises(asyncio.CancelledError):
        await ask_until_answered(cast(Any, call), cast(Any, plan), cast(Any, SimpleNamespace()))
