"""A store that has reached `maxmemory`: what was begun is kept, ended and seen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from shared.fleet import list_workers
from shared.lanes import RENEW
from shared.queue import InferenceQueue
from tests.workers.running import KEYS, Running, envelope, keys_left, until

LEASE_S = 0.6


@asynccontextmanager
async def full(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_full_store_renews_leases(redis: Redis) -> None:
    sent = envelope()
    owners: Any = redis
    await InferenceQueue(redis).enqueue(sent)
    await owners.hset(KEYS.job(str(sent.inference_id)), "owner", "me:1")
    await owners.zadd(KEYS.lease, {str(sent.inference_id): 1})
    async with full(redis):
        renew = redis.register_script(RENEW)
        lost = await renew(
            keys=[KEYS.queue, KEYS.lease], args=[1_000_000, "me", str(sent.inference_id), 1]
        )
    assert lost == []
    assert await owners.zscore(KEYS.lease, str(sent.inference_id)) > 1


async def test_a_full_store_takes_no_job_from_its_worker(redis: Redis, redis_url: str) -> None:
    tries: list[int] = []
    goes_on = asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        tries.append(ctx["job_try"])
        await goes_on.wait()

    running = Running(redis_url, job, lease_s=LEASE_S)
    queue = InferenceQueue(redis)
    await queue.enqueue(envelope())
    await until(lambda: tries == [1])
    (worker,) = await list_workers(redis)
    async with full(redis):
        with pytest.raises(OutOfMemoryError):
            await queue.enqueue(envelope())
        # the store's own clock says when two leases would have run out
        began = (await redis.time())[0]
        while (await redis.time())[0] - began < 2 * LEASE_S + 1:
            await asyncio.sleep(0.05)
        (seen,) = await list_workers(redis)
        assert seen.id == worker.id
        assert seen.silent_s < LEASE_S + 2
        goes_on.set()
        await until(lambda: running.worker.jobs_complete == 1)
    assert tries == [1]
    await running.stop()
    assert await keys_left(redis) == []


async def test_a_full_store_gives_out_what_waits(redis: Redis, redis_url: str) -> None:
    ran: list[str] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        ran.append(inference_id)

    sent = [envelope(tenant=f"t{n % 2}") for n in range(4)]
    for each in sent:
        await InferenceQueue(redis).enqueue(each)
    async with full(redis):
        running = Running(redis_url, job, lease_s=LEASE_S, max_jobs=2, jobs_per_tenant=1)
        await until(lambda: len(ran) == len(sent))
        await running.stop()
    assert sorted(ran) == sorted(str(each.inference_id) for each in sent)


async def test_a_full_store_notes_an_order_to_stop(redis: Redis, redis_url: str) -> None:
    stops: list[bool] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        stops.append(ctx["stop"])

    sent = envelope()
    queue = InferenceQueue(redis)
    await queue.enqueue(sent)
    async with full(redis):
        await queue.stop(sent.inference_id)
    running = Running(redis_url, job, lease_s=LEASE_S)
    await until(lambda: stops != [])
    await running.stop()
    assert stops == [True]
