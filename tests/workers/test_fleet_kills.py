"""Workers that die at random moments: no try of a job runs twice, and every job ends."""

import asyncio
import os
import random
import time
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.queue import InferenceQueue, Priority
from tests.workers.running import KEYS, Running, envelope, keys_left, until

JOBS = 250
SEED = int(os.environ.get("KILLS_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)


async def test_no_try_runs_twice_and_none_is_lost(redis: Redis, redis_url: str) -> None:
    print(f"KILLS_SEED={SEED}")  # noqa: T201 - shown where the test fails
    dice = random.Random(SEED)
    runs: Counter[tuple[str, int]] = Counter()
    alive: Counter[str] = Counter()
    ended: set[str] = set()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        runs[inference_id, ctx["job_try"]] += 1
        alive[inference_id] += 1
        try:
            assert alive[inference_id] == 1, "two runs at once"
            await asyncio.sleep(dice.choice([0, 0, 0.005, 0.05]))
            if dice.random() < 0.05:
                raise asyncio.CancelledError
            ended.add(inference_id)
        finally:
            alive[inference_id] -= 1

    queue = InferenceQueue(redis)
    sent = [envelope(tenant=dice.choice("AABC")) for _ in range(JOBS)]
    for each in sent[::2] * 2:  # every other one twice, before any could have ended
        await queue.enqueue(each, dice.choice(list(Priority)))
    workers = [Running(redis_url, job, lease_s=0.3, max_jobs=8) for _ in range(2)]

    async def feed() -> None:
        for each in sent[1::2]:
            await queue.enqueue(each, dice.choice(list(Priority)))

    async def kill() -> None:
        for _ in range(6):
            await asyncio.sleep(dice.uniform(0.02, 0.2))
            victim = dice.randrange(2)
            await workers[victim].crash()
            workers[victim] = Running(redis_url, job, lease_s=0.3, max_jobs=8)

    await asyncio.gather(feed(), kill())
    wanted = {str(each.inference_id) for each in sent}
    await until(lambda: ended == wanted, 30)
    async with asyncio.timeout(10):
        while await keys_left(redis):
            await asyncio.sleep(0.05)
    for worker in workers:
        await worker.stop()
    assert max(runs.values()) == 1, f"a try ran twice; KILLS_SEED={SEED}"


async def test_a_job_that_comes_back_to_its_own_worker_has_one_run(
    redis: Redis, redis_url: str
) -> None:
    running_now: list[int] = []
    tries: list[int] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        tries.append(ctx["job_try"])
        running_now.append(ctx["job_try"])
        try:
            if ctx["job_try"] == 1:
                await asyncio.Event().wait()
        finally:
            running_now.remove(ctx["job_try"])

    worker = Running(redis_url, job, lease_s=600)  # no renewal will tell it in time
    sent = envelope()
    await InferenceQueue(redis).enqueue(sent)
    await until(lambda: tries == [1])
    await redis.zadd(KEYS.lease, {str(sent.inference_id): 1})
    await until(lambda: tries == [1, 2])
    await until(lambda: running_now == [])
    async with asyncio.timeout(5):
        while await keys_left(redis):
            await asyncio.sleep(0.02)
    await worker.stop()


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_a_workers_own_clock_has_no_say(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """It neither claims too early nor too late, and its leases hold as long as it renews them."""
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + minutes * 60)
    tries: list[int] = []
    release = asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        tries.append(ctx["job_try"])
        await release.wait()

    workers = [Running(redis_url, job, lease_s=0.3) for _ in range(2)]
    sent = envelope()
    await InferenceQueue(redis).enqueue(sent)
    await until(lambda: tries == [1])
    leases: set[float | None] = set()
    async with asyncio.timeout(10):
        while len(leases) < 5:
            leases.add(await redis.zscore(KEYS.lease, str(sent.inference_id)))
            await asyncio.sleep(0.02)
    release.set()
    for worker in workers:
        await worker.stop()
    assert tries == [1]


async def test_who_stood_still_past_its_lease_does_nothing_twice(
    redis: Redis, redis_url: str
) -> None:
    """What it was about to do when it was stopped, another worker may have done by now."""
    done: list[int] = []
    stopped, woken = asyncio.Event(), asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        await ctx["hold_on"]()  # asks nobody: the lease is young
        if ctx["job_try"] == 1:
            stopped.set()
            await woken.wait()
        await ctx["hold_on"]()
        done.append(ctx["job_try"])

    frozen = Running(redis_url, job, lease_s=600)  # no renewal tells it before it wakes
    sent = envelope()
    await InferenceQueue(redis).enqueue(sent)
    await stopped.wait()
    await redis.zadd(KEYS.lease, {str(sent.inference_id): 1})
    frozen.worker.allow_pick_jobs = False
    other = Running(redis_url, job, lease_s=600)
    await until(lambda: done == [2])
    leases = frozen.worker._leases
    leases.begin(f"{sent.inference_id}:1", asyncio.get_running_loop().time())
    woken.set()
    await until(lambda: not frozen.worker.tasks)
    await frozen.stop()
    await other.stop()
    assert done == [2]


async def test_a_store_that_is_away_ends_no_run(redis: Redis, redis_url: str) -> None:
    done: list[int] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        leases = worker.worker._leases
        renew, leases._renew = leases._renew, away  # type: ignore[assignment]
        leases.begin(f"{inference_id}:1", 0)
        await ctx["hold_on"]()
        leases._renew = renew
        done.append(ctx["job_try"])

    async def away(**_: Any) -> None:
        raise RedisConnectionError("nobody is there")

    worker = Running(redis_url, job)
    await InferenceQueue(redis).enqueue(envelope())
    await until(lambda: done == [1])
    await worker.stop()
