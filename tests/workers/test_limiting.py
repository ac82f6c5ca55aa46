"""Limits of keys in the store: the same rule as in shared/domain, and slots that cannot leak."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
import redis as sync_redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared.domain.limits import (
    LARGEST_RATE,
    MINUTE_US,
    Bucket,
    KeyLimits,
    correct,
    leaked,
    remaining,
    take,
)
from shared.embedded import Servers
from shared.errors import RateLimited
from shared.lanes import DONE
from shared.limiting import ADMIT, CALL_WAIT_US, RELEASE, Admission, Standing
from shared.queue import InferenceQueue, Queued, QueueLimits
from tests.workers.running import KEYS, envelope
from tests.workers.test_queue import Claimer

# the clock is fed: all else is what the queue's own scripts run
FED = """
local q, now = KEYS[1], tonumber(ARGV[1])
local function job_key(id) return q .. ':job:' .. id end
"""
LUA_ADMIT = FED + ADMIT + "return admit(ARGV[2], ARGV[3], 60000)"
LUA_RELEASE = FED + RELEASE + "settle_limits(ARGV[2], ARGV[3], tonumber(ARGV[4]))"

NOW = 1_800_000_000_000_000
RATE = st.one_of(st.just(0), st.integers(1, 30), st.integers(1, LARGEST_RATE))
# how far the clock goes (or goes back), what is reserved, what is used (-1: not known)
STEP = st.tuples(
    st.integers(-1_000_000, 3 * MINUTE_US),
    st.one_of(st.integers(0, 60), st.integers(0, LARGEST_RATE)),
    st.one_of(st.none(), st.integers(-1, 100), st.integers(0, 2 * LARGEST_RATE)),
)


@pytest.fixture
def queue(redis: Redis) -> InferenceQueue:
    return InferenceQueue(redis)


@pytest_asyncio.fixture(loop_scope="session")
async def claimer(redis: Redis) -> Claimer:
    return Claimer(redis)


@pytest.fixture(scope="module")
def store(servers: Servers) -> Iterator[sync_redis.Redis]:
    with sync_redis.Redis.from_url(f"{servers.redis_url}?db=0") as client:
        yield client


@settings(max_examples=120)
@given(requests=RATE, tokens=RATE, steps=st.lists(STEP, max_size=12))
def test_the_store_counts_as_the_rule_does(
    store: Any, requests: int, tokens: int, steps: list[tuple[int, int, int | None]]
) -> None:
    name, now = f"{{limits-{uuid.uuid4()}}}", NOW
    asked, used = Bucket(), Bucket()
    limits = KeyLimits(requests, tokens)
    for passed, reserved, spent in steps:
        now += passed
        spec = Admission("k", limits, reserved).pack()
        told = Standing.read(limits, store.eval(LUA_ADMIT, 1, name, now, "job", spec))
        one, wait = take(asked, requests, 1, now) if requests else (asked, 0)
        two, other = take(used, tokens, reserved, now) if tokens else (used, 0)
        assert told.wait_us == max(wait, other)
        assert told.refused == (
            "" if not (wait or other) else "tokens" if other > wait else "requests"
        )
        if told.refused:
            one, two = leaked(asked, requests, now), leaked(used, tokens, now)
        else:
            asked, used = one, two
        assert (told.requests_level, told.tokens_level) == (one.level, two.level)
        if not told.refused and spent is not None:
            store.eval(LUA_RELEASE, 1, name, now, "job", spec, spent)
            if tokens and spent >= 0:
                # both buckets are as of one time
                asked = leaked(asked, requests, now)
                used = correct(used, tokens, reserved, spent, now)
    store.delete(f"{name}:limit:k", f"{name}:job:job")


def asking(limits: KeyLimits, tokens: int = 0, key: str = "key") -> Admission:
    return Admission(key, limits, tokens)


async def put(queue: InferenceQueue, admission: Admission) -> Queued:
    return await queue.enqueue(envelope(), admission=admission)


async def test_one_too_many_is_refused_with_the_time_to_wait(
    redis: Redis,
    queue: InferenceQueue,
) -> None:
    limits = KeyLimits(requests_per_minute=3)
    for left in (2, 1, 0):
        queued = await put(queue, asking(limits))
        assert queued.result == "QUEUED"
        assert queued.standing is not None
        assert remaining(queued.standing.requests_level, 3) == left
    refused = await put(queue, asking(limits))
    assert (refused.result, refused.depth) == ("KEY_LIMIT", 3)
    assert refused.standing is not None
    assert 0 < refused.standing.wait_us <= 20_000_000
    with pytest.raises(RateLimited) as told:
        refused.ensure_taken()
    assert told.value.retry_after == refused.standing.wait_us / 1_000_000
    assert await redis.zcard(KEYS.waiting) == 3
    # another key is not concerned, and one without limits leaves no trace
    assert (await put(queue, asking(limits, key="other"))).result == "QUEUED"
    assert (await queue.enqueue(envelope())).result == "QUEUED"


async def test_what_is_enqueued_twice_counts_once(
    redis: Redis,
    queue: InferenceQueue,
) -> None:
    limits, call = KeyLimits(requests_per_minute=2, concurrent_calls=2), envelope()
    for result in ("QUEUED", "EXISTS", "EXISTS"):
        assert (await queue.enqueue(call, admission=asking(limits))).result == result
    queued = await put(queue, asking(limits))
    assert queued.standing is not None
    assert (queued.result, queued.standing.calls) == ("QUEUED", 2)


async def test_what_the_queue_refuses_costs_the_key_nothing(redis: Redis) -> None:
    queue = InferenceQueue(redis, QueueLimits(depth=1))
    limits = KeyLimits(requests_per_minute=1)
    await queue.enqueue(envelope())
    assert (await put(queue, asking(limits))).result == "BUSY"
    await redis.delete(KEYS.waiting)
    assert (await put(queue, asking(limits))).result == "QUEUED"


async def test_tokens_are_reserved_and_corrected_at_the_end(
    queue: InferenceQueue,
    claimer: Claimer,
) -> None:
    limits = KeyLimits(tokens_per_minute=1_000_000)
    queued = await put(queue, asking(limits, 900_000))
    assert queued.standing is not None
    assert remaining(queued.standing.tokens_level, 1_000_000) == 100_000
    assert (await put(queue, asking(limits, 600_000))).result == "KEY_LIMIT"
    (got,) = await claimer.claim(1)
    await claimer.finish(got, DONE, tokens=100_000)
    after = await put(queue, asking(limits, 600_000))
    assert after.standing is not None
    assert 300_000 <= remaining(after.standing.tokens_level, 1_000_000) < 400_000


async def test_a_slot_is_held_until_its_job_ends(
    redis: Redis,
    queue: InferenceQueue,
    claimer: Claimer,
) -> None:
    limits = asking(KeyLimits(concurrent_calls=2))
    assert [(await put(queue, limits)).result for _ in range(2)] == ["QUEUED", "QUEUED"]
    refused = await put(queue, limits)
    assert refused.standing is not None
    assert (refused.result, refused.standing.wait_us) == ("KEY_LIMIT", CALL_WAIT_US)
    one, two = await claimer.claim(2)
    await claimer.finish(one, 0)  # handed back: it waits again
    assert (await put(queue, limits)).result == "KEY_LIMIT"
    await claimer.finish(two)
    assert (await put(queue, limits)).result == "QUEUED"
    assert (await put(queue, limits)).result == "KEY_LIMIT"


async def test_a_slot_whose_job_is_gone_is_given_to_the_next(
    redis: Redis,
    queue: InferenceQueue,
) -> None:
    """More are in front of it than are looked at: each look goes on where the last one ended."""
    most = 40
    limits = asking(KeyLimits(concurrent_calls=most))
    calls = [envelope() for _ in range(most)]
    for call in calls:
        assert (await queue.enqueue(call, admission=limits)).result == "QUEUED"
    await redis.delete(KEYS.job(str(calls[-1].inference_id)))
    results = [(await put(queue, limits)).result for _ in range(3)]
    assert results.count("QUEUED") == 1


async def test_calls_that_come_at_once_never_pass_the_limit(
    queue: InferenceQueue,
) -> None:
    limits = asking(KeyLimits(requests_per_minute=20, concurrent_calls=5))
    results = await asyncio.gather(*[put(queue, limits) for _ in range(64)])
    assert [each.result for each in results].count("QUEUED") == 5


async def test_what_a_key_used_is_forgotten_when_it_has_leaked(
    redis: Redis,
    queue: InferenceQueue,
) -> None:
    await put(queue, asking(KeyLimits(requests_per_minute=5, concurrent_calls=5)))
    assert 0 < await redis.pttl("{ainfera:inference}:limit:key") <= 3 * MINUTE_US // 1000
    assert await redis.pttl("{ainfera:inference}:calls:key") > 0
