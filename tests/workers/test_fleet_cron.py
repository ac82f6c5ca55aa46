"""arq's own enqueue and cron, on a queue that takes them."""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

import arq.connections
import arq.worker
import pytest
from arq import cron
from arq.utils import timestamp_ms
from redis.asyncio import Redis

from shared.fleet import ALL, drain, resume
from shared.queue import BOOKS_QUEUE
from tests.workers.running import Running, keys_left, until


async def test_what_arq_itself_enqueues_is_claimed_and_cleared(
    redis: Redis, redis_url: str
) -> None:
    seen: list[tuple[str, int]] = []

    async def job(ctx: dict[str, Any], name: str) -> None:
        seen.append((name, ctx["job_try"]))
        if ctx["job_try"] == 1:
            raise asyncio.CancelledError

    worker = Running(redis_url, job, queue_name=BOOKS_QUEUE, arq_jobs="arq:job:")
    await until(lambda: worker.worker._pool is not None)
    pool = worker.worker.pool
    for name in ("first", "second"):
        assert await pool.enqueue_job("run_inference", name, _job_id=name)
    await until(lambda: len(seen) == 4)
    async with asyncio.timeout(5):
        while await keys_left(redis):
            await asyncio.sleep(0.02)
    assert await pool.enqueue_job("run_inference", "first", _job_id="first"), "its id is free again"
    await worker.stop()
    assert set(seen) == {(name, n) for name in ("first", "second") for n in (1, 2)}


async def test_a_fire_that_another_worker_enqueues_late_is_not_run_again(
    redis: Redis, redis_url: str
) -> None:
    fires: list[str] = []

    async def fire(ctx: dict[str, Any]) -> None:
        fires.append(ctx["job_id"])

    async def job(ctx: dict[str, Any], name: str) -> None:
        return None

    rarely = cron(fire, name="cron:fire", month=1, day=1, hour=0, minute=0)
    worker = Running(
        redis_url, job, queue_name=BOOKS_QUEUE, arq_jobs="arq:job:", cron_jobs=[rarely]
    )
    await until(lambda: worker.worker._pool is not None)
    pool = worker.worker.pool
    assert await pool.enqueue_job("cron:fire", _job_id="cron:fire:1")
    await until(lambda: len(fires) == 1)
    async with asyncio.timeout(5):
        while await keys_left(redis) != [b"arq:job:cron:fire:1"]:
            await asyncio.sleep(0.02)
    assert await pool.enqueue_job("cron:fire", _job_id="cron:fire:1") is None
    assert 0 < await redis.ttl("arq:job:cron:fire:1") <= 60
    await worker.stop()


async def test_a_drained_worker_does_not_make_up_for_the_fires_it_missed(
    redis: Redis, redis_url: str
) -> None:
    fires: list[str] = []

    async def fire(ctx: dict[str, Any]) -> None:
        fires.append(ctx["job_id"])

    async def job(ctx: dict[str, Any], name: str) -> None:
        return None

    each_second = cron(fire, name="cron:fire", second=set(range(60)))
    worker = Running(
        redis_url, job, queue_name=BOOKS_QUEUE, arq_jobs="arq:job:", cron_jobs=[each_second]
    )
    await until(lambda: len(fires) >= 1)
    await drain(redis, ALL)
    await until(lambda: worker.worker.state == "drained")
    missed_from = time.time() + 1  # what is due within a second is enqueued already
    await asyncio.sleep(4)  # long enough that there is something to miss
    missed_to = time.time()
    await resume(redis, ALL)
    seen = len(fires)
    await until(lambda: len(fires) >= seen + 3)
    due = [int(each.rpartition(":")[2]) / 1000 for each in fires]
    assert [at for at in due if missed_from < at < missed_to] == []
    await worker.stop()


class Clock:
    """A host's time of day, which is wrong by some minutes."""

    def __init__(self) -> None:
        self.minutes = 0

    def datetime(self) -> type[datetime]:
        clock = self

        class Wrong(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return datetime.now(tz) + timedelta(minutes=clock.minutes)

        return Wrong

    def stamp(self, honest: Callable[[], int]) -> Callable[[], int]:
        return lambda: honest() + self.minutes * 60_000


@pytest.mark.parametrize(("at_first", "then"), [(10, 10), (-10, -10), (0, -10), (0, 10)])
async def test_cron_goes_by_the_stores_clock(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, at_first: int, then: int
) -> None:
    """Whether the host's own is wrong from the start, or is set while the worker runs."""
    clock, fires = Clock(), list[str]()
    clock.minutes = at_first
    monkeypatch.setattr(arq.worker, "datetime", clock.datetime())
    monkeypatch.setattr("workers.fleet.datetime", clock.datetime(), raising=False)
    stamp = clock.stamp(timestamp_ms)
    monkeypatch.setattr(arq.connections, "timestamp_ms", stamp)

    async def fire(ctx: dict[str, Any]) -> None:
        fires.append(ctx["job_id"])

    async def job(ctx: dict[str, Any], name: str) -> None:
        return None

    each_second = cron(fire, name="cron:fire", second=set(range(60)))
    worker = Running(
        redis_url, job, queue_name=BOOKS_QUEUE, arq_jobs="arq:job:", cron_jobs=[each_second]
    )
    await until(lambda: len(fires) >= 2)
    clock.minutes = then
    seen = len(fires)
    await until(lambda: len(fires) >= seen + 3)
    assert len(set(fires)) == len(fires)
    now_s = (await redis.time())[0]
    assert all(abs(int(each.rpartition(":")[2]) / 1000 - now_s) < 60 for each in fires)
    await worker.stop()
