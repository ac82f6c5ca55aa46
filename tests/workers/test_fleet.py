"""The claim loop on a real Valkey: every job once, none lost, none kept by a dead worker."""

import asyncio
from typing import Any
from uuid import uuid4

import orjson
from redis.asyncio import Redis

from shared.queue import Envelope, InferenceQueue
from tests.workers.running import KEYS, Running, envelope, keys_left, until


async def test_each_job_runs_once_with_its_payload_and_leaves_nothing_behind(
    redis: Redis, redis_url: str
) -> None:
    seen: list[tuple[str, bytes]] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        seen.append((inference_id, Envelope.unpack(ctx["payload"]).body))

    one, other = Running(redis_url, job), Running(redis_url, job)
    queue = InferenceQueue(redis)
    sent = [envelope(orjson.dumps({"n": n})) for n in range(300)]
    taken = await asyncio.gather(*[queue.enqueue(each) for each in sent])
    assert {each.result for each in taken} == {"QUEUED"}
    await until(lambda: len(seen) >= 300)
    await one.stop()
    await other.stop()
    assert sorted(seen) == sorted((str(each.inference_id), each.body) for each in sent)
    assert await keys_left(redis) == []


async def test_the_same_id_is_queued_once(redis: Redis) -> None:
    queue, twice = InferenceQueue(redis), envelope()
    assert (await queue.enqueue(twice)).result == "QUEUED"
    again = await queue.enqueue(twice)
    assert (again.result, again.depth) == ("EXISTS", 1)


async def test_the_job_carries_the_id_alone(redis: Redis) -> None:
    sent = envelope(b'{"messages":"secret words"}')
    await InferenceQueue(redis).enqueue(sent)
    hashes: Any = redis  # redis-py types its hash commands for both of its clients at once
    job = await hashes.hget(KEYS.job(str(sent.inference_id)), "job")
    assert orjson.loads(job)["a"] == [str(sent.inference_id)]
    assert b"secret" not in job
    assert b"secret" in await redis.get(KEYS.payload(str(sent.inference_id)))


async def test_a_dead_workers_job_runs_on_another_as_a_second_try(
    redis: Redis, redis_url: str
) -> None:
    tries: list[int] = []
    stuck = asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        tries.append(ctx["job_try"])
        if ctx["job_try"] == 1:
            stuck.set()
            await asyncio.Event().wait()

    first = Running(redis_url, job, lease_s=0.3)
    await InferenceQueue(redis).enqueue(envelope())
    await stuck.wait()
    await first.crash()
    second = Running(redis_url, job, lease_s=0.3)
    await until(lambda: tries == [1, 2])
    await second.stop()
    assert await keys_left(redis) == []


async def test_a_worker_that_lost_its_lease_stops_the_job(redis: Redis, redis_url: str) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    running = Running(redis_url, job, lease_s=0.3)
    sent = envelope()
    await InferenceQueue(redis).enqueue(sent)
    await started.wait()
    thief = uuid4().hex
    owners: Any = redis  # redis-py types its hash commands for both of its clients at once
    await owners.hset(KEYS.job(str(sent.inference_id)), "owner", thief)
    async with asyncio.timeout(5):
        await stopped.wait()
    await running.stop()
    # what the thief holds is the thief's: neither the owner nor the payload was touched
    assert await owners.hget(KEYS.job(str(sent.inference_id)), "owner") == thief.encode()
    assert await redis.exists(KEYS.payload(str(sent.inference_id)))


async def test_a_shutdown_hands_its_jobs_back(redis: Redis, redis_url: str) -> None:
    started = asyncio.Event()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        started.set()
        await asyncio.Event().wait()

    running = Running(redis_url, job)
    sent = envelope()
    await InferenceQueue(redis).enqueue(sent)
    await started.wait()
    await running.stop()
    assert await redis.zscore(KEYS.waiting, str(sent.inference_id)) is not None
    assert not await redis.exists(KEYS.lease)


async def test_a_failing_job_takes_nobody_with_it(redis: Redis, redis_url: str) -> None:
    seen: list[str] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        seen.append(inference_id)
        if len(seen) == 1:
            raise RuntimeError("a bug")

    running = Running(redis_url, job)
    queue = InferenceQueue(redis)
    await queue.enqueue(envelope())
    await queue.enqueue(envelope())
    await until(lambda: len(seen) == 2)
    await running.stop()
    assert await keys_left(redis) == []
