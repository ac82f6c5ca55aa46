"""A queue that no worker serves: new calls are refused, old ones are given up, none runs late."""

import asyncio
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.fleet import drain, resume
from shared.lanes import CLAIM, DRAINED_AFTER_S, SERVE
from shared.queue import (
    DRAINED_RETRY_S,
    JOB_TTL_MS,
    UNSERVED_AFTER_S,
    UNSERVED_RETRY_S,
    InferenceQueue,
    Priority,
)
from tests.workers.running import KEYS, Running, envelope, until
from workers.claims import Claim

AWAY_US = int(UNSERVED_AFTER_S * 1_000_000) + 1_000_000


@pytest_asyncio.fixture(loop_scope="session")
async def queue(redis: Redis) -> InferenceQueue:
    return InferenceQueue(redis)


async def serve(redis: Redis, word: str = "seen") -> None:
    await redis.register_script(SERVE)(keys=[KEYS.queue], args=[word])


async def pass_time(redis: Redis, word: str = "seen", away_us: int = AWAY_US) -> None:
    """As if it were so long ago that a worker said this."""
    hashes: Any = redis  # redis-py types its hash commands for both of its clients at once
    await hashes.hincrby(KEYS.served, word, -away_us)


async def claim(redis: Redis, lease_us: int = 60_000_000) -> list[Claim]:
    rows, _ = await redis.register_script(CLAIM)(
        keys=[KEYS.queue, KEYS.lease, KEYS.bell, KEYS.passed],
        args=[64, lease_us, "one", "", 1000, JOB_TTL_MS],
    )
    return [Claim.unpack(row) for row in rows]


async def test_while_a_worker_is_there_or_may_be_about_to_come_calls_are_taken(
    redis: Redis, queue: InferenceQueue
) -> None:
    assert (await queue.enqueue(envelope())).result == "QUEUED"  # nobody knows of any worker
    await serve(redis)
    assert (await queue.enqueue(envelope())).result == "QUEUED"


async def test_without_a_worker_new_calls_are_refused(redis: Redis, queue: InferenceQueue) -> None:
    first = envelope()
    await queue.enqueue(first)
    await pass_time(redis)
    refused = await queue.enqueue(envelope())
    assert (refused.result, refused.retry_after_s) == ("UNSERVED", UNSERVED_RETRY_S)
    assert refused.refusal is not None
    assert (refused.refusal.status, refused.refusal.code) == (503, "overloaded")
    assert await redis.zcard(KEYS.waiting) == 1, "nothing of it is left"
    # what is there already is there, and what was accepted may wait
    assert (await queue.enqueue(first)).result == "EXISTS"
    assert (await queue.enqueue(envelope(), limit=False)).result == "QUEUED"
    assert (await queue.enqueue(envelope(), Priority.BACKGROUND)).result == "QUEUED"
    await serve(redis)
    assert (await queue.enqueue(envelope())).result == "QUEUED"


async def test_a_drained_fleet_says_so(redis: Redis, queue: InferenceQueue) -> None:
    await serve(redis)
    await serve(redis, "drained")
    assert (await queue.enqueue(envelope())).result == "QUEUED"  # another worker may be there
    await pass_time(redis, away_us=DRAINED_AFTER_S * 1_000_000)
    refused = await queue.enqueue(envelope())
    assert (refused.result, refused.retry_after_s) == ("DRAINED", DRAINED_RETRY_S)
    assert refused.refusal is not None
    assert (refused.refusal.status, refused.refusal.code) == (503, "draining")
    await pass_time(redis)
    await pass_time(redis, "drained")
    assert (await queue.enqueue(envelope())).result == "UNSERVED"


async def test_workers_say_that_they_take_calls_and_when_they_do_not(
    redis: Redis, redis_url: str
) -> None:
    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        """Nothing."""

    hashes: Any = redis
    worker = Running(redis_url, job)
    async with asyncio.timeout(10):
        while await hashes.hkeys(KEYS.served) != [b"seen"]:
            await asyncio.sleep(0.01)
    await drain(redis, "all")
    await until(lambda: worker.worker._drained)
    await worker.worker._say_hello()
    before = await hashes.hget(KEYS.served, "seen")
    await worker.worker._say_hello()
    assert await hashes.hget(KEYS.served, "seen") == before
    assert await hashes.hexists(KEYS.served, "drained")
    await resume(redis, "all")
    await until(lambda: not worker.worker._drained)
    async with asyncio.timeout(10):  # with its next claim
        while await hashes.hget(KEYS.served, "seen") == before:
            await asyncio.sleep(0.01)
    await worker.stop()


async def test_a_worker_that_is_full_is_there(redis: Redis, redis_url: str) -> None:
    working, done = asyncio.Event(), asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        working.set()
        await done.wait()

    hashes: Any = redis
    worker = Running(redis_url, job, max_jobs=1)
    await InferenceQueue(redis).enqueue(envelope())
    async with asyncio.timeout(10):
        await working.wait()
    before = await hashes.hget(KEYS.served, "seen")
    await worker.worker._say_hello()
    assert int(await hashes.hget(KEYS.served, "seen")) > int(before)
    done.set()
    await worker.stop()


# -- calls that have waited for too long ----------------------------------------------------------


async def test_a_call_that_was_given_up_is_only_closed_and_after_all_others(
    redis: Redis, queue: InferenceQueue
) -> None:
    late, later = envelope(tenant="A"), envelope(tenant="A")
    for each in (late, later):
        await queue.enqueue(each)
    assert await queue.give_up([late.inference_id]) == ["NOT_STARTED"]
    await queue.stop(late.inference_id)  # its client leaves: it is late all the same
    background = envelope(tenant="A")
    await queue.enqueue(background, Priority.BACKGROUND)
    claims = await claim(redis)
    assert [each.job_id for each in claims] == [
        str(each.inference_id) for each in (later, background, late)
    ]
    assert [(each.late, each.stop) for each in claims] == [(False, False)] * 2 + [(True, False)]


async def test_the_last_of_a_lane_leaves_no_turn_behind(
    redis: Redis, queue: InferenceQueue
) -> None:
    late = envelope(tenant="A")
    await queue.enqueue(late)
    await queue.give_up([late.inference_id])
    assert await redis.zrange(KEYS.turns, 0, -1) == [b"2:A"]
    assert await redis.zcard(KEYS.waiting) == 1


async def test_what_is_in_work_is_left_alone_and_what_is_gone_is_gone(
    redis: Redis, queue: InferenceQueue
) -> None:
    begun, gone = envelope(), envelope()
    await queue.enqueue(begun)
    (claimed,) = await claim(redis)
    asked = [begun.inference_id, gone.inference_id]
    assert await queue.give_up(asked) == ["BEGUN", "GONE"]
    assert not claimed.late


@pytest.mark.parametrize("found", [True, False])
async def test_a_call_whose_worker_was_lost_is_not_said_to_have_cost_nothing(
    redis: Redis, queue: InferenceQueue, found: bool
) -> None:
    """Whether or not another worker has put it back into the queue by then."""
    lost = envelope(tenant="A")
    await queue.enqueue(lost)
    await claim(redis, lease_us=0)
    if found:
        rows, _ = await redis.register_script(CLAIM)(
            keys=[KEYS.queue, KEYS.lease, KEYS.bell, KEYS.passed],
            args=[1, 1, "full", "", 0, JOB_TTL_MS],
        )
        assert rows == []
    assert await queue.give_up([lost.inference_id]) == ["LOST"]
    (again,) = await claim(redis)
    assert (again.attempt, again.late) == (2, True)
