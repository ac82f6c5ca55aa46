"""`python -m tests.bench.queue`: how fast jobs are picked up, and what becomes of a dead worker's.

The same jobs go through our worker and through arq's own, as it ships and with a poll of 10 ms,
on one Valkey of their own in one run. Nothing but the queue is measured: the jobs do nothing.

    pick-up        from just before the enqueue to the job's first line, on one machine's clock
    200 in flight  the same while 200 other jobs run in the same worker
    no-op jobs/s   a worker is held, jobs are enqueued, and it is let go until all have ended
    idle CPU       of a worker that has nothing to do, in percent of one core
    recovery       from a kill -9 of the worker that has the job to its first line in another
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import UUID

import psutil
import uvloop
from arq.connections import ArqRedis, create_pool
from arq.worker import Worker, func
from redis.asyncio import Redis

from shared.domain.inference import Dialect
from shared.embedded import embedded_servers
from shared.fleet import quantile
from shared.ids import mint_id
from shared.lanes import QueueKeys
from shared.queue import (
    INFERENCE_QUEUE,
    RUN_INFERENCE,
    Envelope,
    InferenceQueue,
    deserialize_job,
    redis_settings,
    serialize_job,
)
from tests.bench.report import aligned
from tests.bench.stack import Child, start_child
from workers.fleet import FleetWorker

STARTED, RELEASE = "bench:started", "bench:release"
IN_FLIGHT, MAX_JOBS = 200, 256
ARQ_TIMEOUT_S = 5
KINDS = {"ours": 0.0, "arq as it ships": 0.5, "arq, 10 ms poll": 0.01}


# -- the worker's side --------------------------------------------------------------------------


async def run_inference(ctx: dict[str, Any], job_id: str, what: str = "") -> None:
    """`note` says that it started, `hold` also stays until it is released, `noop` is neither."""
    what = what or Envelope.unpack(ctx["payload"]).body.decode()
    if what == "noop":
        return
    redis: Any = ctx["redis"]
    await redis.rpush(STARTED, f"{job_id} {time.time()}")
    while what == "hold" and not await redis.exists(RELEASE):
        await asyncio.sleep(0.25)


def work(kind: str, url: str) -> None:
    """Be one worker, until killed."""
    asyncio.set_event_loop(uvloop.new_event_loop())
    options: dict[str, Any] = {
        "redis_settings": redis_settings(url),
        "job_serializer": serialize_job,
        "job_deserializer": deserialize_job,
        "keep_result": 0,
        "max_jobs": MAX_JOBS,
        "log_results": False,
    }
    if kind == "ours":
        function = func(cast(Any, run_inference), name=RUN_INFERENCE)
        FleetWorker([function], queue_name=INFERENCE_QUEUE, arq_jobs="", **options).run()
    else:
        function = func(cast(Any, run_inference), name=RUN_INFERENCE, timeout=ARQ_TIMEOUT_S)
        Worker([function], poll_delay=KINDS[kind], job_timeout=ARQ_TIMEOUT_S, **options).run()


# -- the two queues -------------------------------------------------------------------------------


class Queue(Protocol):
    """What the measurements need of a queue."""

    async def put(self, what: str) -> UUID: ...

    async def empty(self) -> bool: ...


class Ours:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._queue = InferenceQueue(redis)

    async def put(self, what: str) -> UUID:
        caller = {"tenant_id": "bench"}
        job_id = mint_id()
        body = what.encode()
        sent = Envelope(job_id, mint_id(), Dialect.NATIVE, "none", caller, time.time(), "-", body)
        await self._queue.enqueue(sent, limit=False)
        return job_id

    async def empty(self) -> bool:
        keys = QueueKeys(INFERENCE_QUEUE)
        return not await self._redis.exists(keys.waiting, keys.lease)


class Arqs:
    def __init__(self, pool: ArqRedis) -> None:
        self._pool = pool

    async def put(self, what: str) -> UUID:
        job_id = mint_id()
        await self._pool.enqueue_job(RUN_INFERENCE, str(job_id), what, _job_id=str(job_id))
        return job_id

    async def empty(self) -> bool:
        return not await self._pool.exists("arq:queue")


# -- the measurements ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """What one kind of worker did; latencies in seconds, sorted."""

    idle: list[float]
    busy: list[float]
    per_second: float
    idle_cpu: float
    recovery_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """One queue on an empty store, and a way to start workers on it."""

    kind: str
    redis: Redis
    queue: Queue
    url: str
    logs: Path

    @contextlib.contextmanager
    def worker(self) -> Any:
        command = [
            sys.executable,
            "-m",
            "tests.bench.queue",
            "--work",
            self.kind,
            "--url",
            self.url,
        ]
        child = start_child(f"worker-{random.randrange(10**6)}", command, self.logs)
        try:
            yield child
        finally:
            child.process.kill()
            child.process.wait()

    async def started(self, timeout_s: float = 60) -> tuple[UUID, float]:
        """The next job that started, and when."""
        lists: Any = self.redis
        said = await lists.blpop([STARTED], timeout=timeout_s)
        if said is None:
            raise RuntimeError(f"{self.kind}: a job did not start within {timeout_s} s")
        job_id, _, at = said[1].decode().partition(" ")
        return UUID(job_id), float(at)

    async def pick_ups(self, jobs: int) -> list[float]:
        """One job at a time, at no fixed beat: a poll must not be met always at its best."""
        dice, waits = random.Random(1), []
        for _ in range(jobs):
            await asyncio.sleep(dice.uniform(0.01, 0.06 + KINDS[self.kind]))
            began = time.time()
            job_id = await self.queue.put("note")
            picked, at = await self.started()
            if picked != job_id:
                raise RuntimeError(f"{self.kind}: another job started")
            waits.append(at - began)
        return sorted(waits)

    async def hold(self, jobs: int) -> None:
        await self.redis.delete(RELEASE)
        for _ in range(jobs):
            await self.queue.put("hold")
        for _ in range(jobs):
            await self.started()

    async def release(self) -> None:
        await self.redis.set(RELEASE, 1)
        await self.until_empty()

    async def until_empty(self) -> None:
        async with asyncio.timeout(120):
            while not await self.queue.empty():
                await asyncio.sleep(0.01)

    async def noops(self, worker: Child, jobs: int) -> float:
        """Jobs a second, from when the worker is let go until the last one has ended."""
        worker.process.send_signal(signal.SIGSTOP)
        for _ in range(jobs // 100):
            await asyncio.gather(*[self.queue.put("noop") for _ in range(100)])
        worker.process.send_signal(signal.SIGCONT)
        began = time.perf_counter()
        await self.until_empty()
        return jobs / (time.perf_counter() - began)

    async def recovery(self) -> float:
        """How long a job of a killed worker is nobody's."""
        await self.redis.delete(RELEASE)
        with self.worker() as first:
            job_id = await self.queue.put("hold")
            await self.started()
            with self.worker() as second:
                await asyncio.sleep(2)  # the second one is up, and both hold what they hold
                second.alive()
                first.process.kill()
                killed = time.time()
                again, at = await self.started()
                if again != job_id:
                    raise RuntimeError(f"{self.kind}: another job started")
        return at - killed


async def measure(bench: Bench, quick: bool) -> Figures:
    """All figures of one kind of worker."""
    jobs = 20 if quick else 100
    with bench.worker() as worker:
        await bench.pick_ups(5)  # the first ones wait for the worker to be up
        process = psutil.Process(worker.pid)
        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
        await asyncio.sleep(2 if quick else 8)
        idle_cpu = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began)
        idle = await bench.pick_ups(jobs)
        per_second = await bench.noops(worker, 1000 if quick else 5000)
        # arq ends a job after its time-out: what is measured beside held ones has to be quick
        await bench.hold(IN_FLIGHT)
        busy = await bench.pick_ups(jobs if bench.kind == "ours" else 8)
        await bench.release()
    return Figures(idle, busy, per_second, idle_cpu * 100, await bench.recovery())


@asynccontextmanager
async def opened(kind: str, url: str, logs: Path) -> AsyncIterator[Bench]:
    async with Redis.from_url(url) as redis:
        await redis.flushall()
        if kind == "ours":
            yield Bench(kind, redis, Ours(redis), url, logs)
            return
        pool = await create_pool(
            redis_settings(url), job_serializer=serialize_job, job_deserializer=deserialize_job
        )
        try:
            yield Bench(kind, redis, Arqs(pool), url, logs)
        finally:
            await pool.aclose()


def table(figures: dict[str, Figures]) -> str:
    def row(title: str, cell: Any) -> list[str]:
        return [title, *[cell(each) for each in figures.values()]]

    def wait(values: Sequence[float], share: float) -> str:
        return f"{1000 * (quantile(values, share) or 0):.1f}"

    return aligned(
        [
            ["", *figures],
            row("pick-up, idle, p50 ms", lambda f: wait(f.idle, 0.5)),
            row("pick-up, idle, p99 ms", lambda f: wait(f.idle, 0.99)),
            row("pick-up, 200 in flight, p50 ms", lambda f: wait(f.busy, 0.5)),
            row("pick-up, 200 in flight, p99 ms", lambda f: wait(f.busy, 0.99)),
            row("no-op jobs/s", lambda f: f"{f.per_second:,.0f}"),
            row("idle CPU, % of a core", lambda f: f"{f.idle_cpu:.2f}"),
            row("recovery after kill -9, s", lambda f: f"{f.recovery_s:.1f}"),
        ]
    )


async def run(quick: bool) -> None:
    figures = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-queue-")))
        servers = stack.enter_context(embedded_servers(home, postgres=False))
        for kind in KINDS:
            async with opened(kind, servers.redis_url, home) as bench:
                figures[kind] = await measure(bench, quick)
                sys.stderr.write(f"{kind}: done\n")
    sys.stdout.write(table(figures) + "\n\n")
    sys.stdout.write(
        f"arq waits for the longest job time-out (here {ARQ_TIMEOUT_S} s, in production minutes) "
        "plus 10 s; we for a lease of 5 s.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tests.bench.queue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer jobs, a first look")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.url)
    else:
        asyncio.run(run(arguments.quick))


if __name__ == "__main__":
    main()
