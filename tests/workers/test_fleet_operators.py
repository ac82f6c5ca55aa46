"""The registry, the drain, and where a job is: what operators see and order, on a real Valkey."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from shared.fleet import (
    ALL,
    BEAT_S,
    COUNTERS_KEY,
    DRAIN_KEY,
    SEEN_KEY,
    FleetStatus,
    NoSuchWorker,
    drain,
    list_workers,
    quantile,
    read_status,
    resume,
    show_job,
    wait_until_drained,
)
from shared.ids import mint_id
from shared.queue import BOOKS_QUEUE, INFERENCE_QUEUE, InferenceQueue, Priority
from tests.workers.running import Running, envelope, until
from workers import fleet
from workers.presence import Presence


class Gate:
    """A job that stays until it is let go."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.open = asyncio.Event()

    async def __call__(self, ctx: dict[str, Any], inference_id: str) -> None:
        self.started.append(inference_id)
        await self.open.wait()


def gated(redis_url: str, **kwargs: Any) -> tuple[Gate, Running]:
    gate = Gate()

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        await gate(ctx, inference_id)

    return gate, Running(redis_url, job, **kwargs)


async def states(redis: Redis) -> dict[str, str]:
    return {worker.id: worker.state for worker in await list_workers(redis)}


async def until_status(redis: Redis, wanted: Callable[[FleetStatus], bool]) -> FleetStatus:
    async with asyncio.timeout(10):
        while not wanted(status := await read_status(redis)):
            await asyncio.sleep(0.02)
    return status


async def test_a_drained_worker_claims_nothing_until_it_is_resumed(
    redis: Redis, redis_url: str
) -> None:
    gate, running = gated(redis_url, kind="inference")
    queue, worker_id = InferenceQueue(redis), running.worker.worker_id
    await queue.enqueue(envelope())
    await until(lambda: len(gate.started) == 1)

    assert [each.id for each in await drain(redis, worker_id[:-2])] == [worker_id]
    await until(lambda: running.worker.state == "draining")
    late = envelope()
    await queue.enqueue(late)
    assert not await wait_until_drained(redis, [worker_id], BEAT_S)
    assert await states(redis) == {worker_id: "draining"}

    gate.open.set()
    assert await wait_until_drained(redis, [worker_id], 10)
    assert await states(redis) == {worker_id: "drained"}
    assert len(gate.started) == 1, "claimed while drained"
    assert (await show_job(redis, late.inference_id)).state == "waiting"

    await resume(redis, worker_id)
    await until(lambda: len(gate.started) == 2)
    await running.stop()


@pytest.fixture
def bell_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the bell wakes a worker: its slow poll comes too late for any test."""
    monkeypatch.setattr(fleet, "FALL_BACK_POLL_S", 600)
    monkeypatch.setattr(fleet, "BELL_PATIENCE_S", 600)


async def until_listening(redis: Redis, workers: int) -> None:
    clients: Any = redis.client_list
    async with asyncio.timeout(10):
        # not those that other suites left at the bell of another database
        while sum(c["db"] == "0" and "b" in c["flags"] for c in await clients()) < workers:
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("bell_alone")
async def test_a_ring_that_a_drained_worker_hears_is_passed_on(
    redis: Redis, redis_url: str
) -> None:
    one_gate, one = gated(redis_url)
    await until_listening(redis, 1)
    await drain(redis, one.worker.worker_id)
    await until(lambda: one.worker.state == "drained")
    other_gate, other = gated(redis_url)
    await until_listening(redis, 2)
    # the one that waits longest hears it first
    await InferenceQueue(redis).enqueue(envelope())
    await until(lambda: len(other_gate.started) == 1)
    assert one_gate.started == []
    for gate in (one_gate, other_gate):
        gate.open.set()
    await one.stop()
    await other.stop()


@pytest.mark.usefixtures("bell_alone")
async def test_a_tenant_gets_its_next_slot_as_soon_as_one_is_free(
    redis: Redis, redis_url: str
) -> None:
    gate, running = gated(redis_url, max_jobs=4, jobs_per_tenant=1)
    await until_listening(redis, 1)
    for tenant in "AAB":
        await InferenceQueue(redis).enqueue(envelope(tenant=tenant))
    await until(lambda: len(gate.started) == 2)
    gate.open.set()
    await until(lambda: len(gate.started) == 3)
    await running.stop()


async def test_a_full_worker_leaves_the_bell_alone(redis: Redis, redis_url: str) -> None:
    gate, running = gated(redis_url, max_jobs=1)
    for _ in range(3):
        await InferenceQueue(redis).enqueue(envelope())
    await until(lambda: len(gate.started) == 1)
    await redis.config_resetstat()
    for _ in range(2):  # as long as it takes to say twice that it is there
        said = (await list_workers(redis))[0].silent_s
        async with asyncio.timeout(10):
            while (await list_workers(redis))[0].silent_s >= said:
                said = (await list_workers(redis))[0].silent_s
                await asyncio.sleep(0.05)
    asked = (await redis.info("commandstats")).get("cmdstat_blpop", {"calls": 0})
    assert asked["calls"] <= 2
    gate.open.set()
    await until(lambda: len(gate.started) == 3)
    await running.stop()


async def test_all_holds_for_workers_that_start_later(redis: Redis, redis_url: str) -> None:
    await drain(redis, ALL)
    gate, running = gated(redis_url)
    await InferenceQueue(redis).enqueue(envelope())
    await until(lambda: running.worker.state == "drained")
    status = await until_status(redis, lambda now: len(now.workers) == 1)
    assert (status.drained, status.ready, gate.started) == (True, 1, [])
    with pytest.raises(NoSuchWorker, match="resume `all`"):
        await resume(redis, running.worker.worker_id)
    await resume(redis, ALL)
    await until(lambda: len(gate.started) == 1)
    gate.open.set()
    await running.stop()
    assert not await redis.exists(DRAIN_KEY)


async def test_all_spares_the_books_unless_they_are_named(redis: Redis) -> None:
    caller, books = Presence("inference", INFERENCE_QUEUE), Presence("books", BOOKS_QUEUE)
    for each in (caller, books):
        each.open(redis)
        await each.beat("running", 0, 1)

    async def told() -> tuple[bool, bool]:
        return await caller.beat("running", 0, 1), await books.beat("running", 0, 1)

    assert [each.id for each in await drain(redis, ALL)] == [caller.worker_id]
    assert await told() == (True, False), "holds are released, replays driven, heads signed"
    assert [each.id for each in await drain(redis, books.worker_id)] == [books.worker_id]
    assert await told() == (True, True)
    await resume(redis, books.worker_id)
    assert await told() == (True, False)
    await drain(redis, books.worker_id)
    assert {each.id for each in await resume(redis, ALL)} == {caller.worker_id, books.worker_id}
    assert await told() == (False, False)


async def test_only_workers_that_are_alive_can_be_meant(redis: Redis, redis_url: str) -> None:
    with pytest.raises(NoSuchWorker, match="Alive: none"):
        await drain(redis, "nobody")
    one, other = Presence("inference", INFERENCE_QUEUE), Presence("inference", INFERENCE_QUEUE)
    for each in (one, other):
        each.open(redis)
        await each.beat("running", 0, 1)
    with pytest.raises(NoSuchWorker, match="2 workers begin with"):
        await drain(redis, one.worker_id[:4])
    with pytest.raises(NoSuchWorker, match="No worker is called ''"):
        await resume(redis, "")
    assert not await redis.exists(DRAIN_KEY)


async def test_the_silent_vanish_and_the_orderly_leave_at_once(redis: Redis) -> None:
    dead, alive, leaving = (Presence("inference", INFERENCE_QUEUE) for _ in range(3))
    for each in (dead, alive, leaving):
        each.open(redis)
        await each.beat("running", 0, 1)
    await redis.zincrby(SEEN_KEY, -9_000_000, dead.worker_id)
    assert len(await list_workers(redis)) == 3
    await redis.zincrby(SEEN_KEY, -1_000_000, dead.worker_id)
    await leaving.leave()
    assert set(await states(redis)) == {alive.worker_id}
    await alive.beat("running", 0, 1)
    assert await redis.zcard(SEEN_KEY) == 1, "what is dead is cleared away by the living"


async def test_status_counts_what_is_there(redis: Redis, redis_url: str) -> None:
    queue = InferenceQueue(redis)
    for n in range(6):
        await queue.enqueue(envelope(tenant=f"t{n % 2}"), Priority(n % 3))
    gate, running = gated(redis_url, kind="inference", max_jobs=2)
    await until(lambda: len(gate.started) == 2)
    status = await until_status(redis, lambda now: bool(now.workers and now.workers[0].jobs))
    assert status.depth == {"interactive": 0, "background": 2, "replay": 2}
    assert (status.ready, status.leased, status.deferred) == (4, 2, 0)
    assert status.oldest_age_s["interactive"] == 0 < status.oldest_age_s["replay"]
    assert 0 < status.claims_per_second <= 2 / 5  # two in a window of five seconds, fading
    (worker,) = status.workers
    assert (worker.kind, worker.state, worker.jobs, worker.max_jobs) == (
        "inference",
        "running",
        2,
        2,
    )
    assert len(worker.picked_up_ms) == 2
    assert status.pick_up_p50_ms is not None
    gate.open.set()
    status = await until_status(redis, lambda now: now.workers[0].done == 6)
    assert (status.ready, status.leased) == (0, 0)
    assert status.jobs_per_second > 0
    await running.stop()


def test_quantiles_of_few_values() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.99) == 3.0
    assert [quantile(list(range(100)), share) for share in (0.5, 0.99)] == [50, 99]


async def test_a_job_is_shown_wherever_it_is(redis: Redis, redis_url: str) -> None:
    queue = InferenceQueue(redis)
    sent = [envelope(tenant="A") for _ in range(3)]
    for each in sent:
        await queue.enqueue(each, Priority.BACKGROUND, attempts=2)
    await queue.enqueue(envelope(tenant="B"), Priority.BACKGROUND)
    waiting = await show_job(redis, sent[2].inference_id)
    assert (waiting.state, waiting.priority, waiting.lane) == ("waiting", "background", "1:A")
    assert (waiting.place, waiting.lanes, waiting.attempts) == (3, 2, 2)

    gate, running = gated(redis_url)
    await until(lambda: len(gate.started) == 4)
    leased = await show_job(redis, sent[0].inference_id)
    assert (leased.state, leased.attempts) == ("leased", 3)
    assert leased.worker == running.worker.worker_id
    assert leased.lease_ends_in_s is not None
    assert 0 < leased.lease_ends_in_s <= 5
    gate.open.set()
    async with asyncio.timeout(10):
        while (await show_job(redis, sent[0].inference_id)).state != "unknown":
            await asyncio.sleep(0.02)
    assert (await show_job(redis, mint_id())).state == "unknown"
    await running.stop()


async def test_what_workers_count_is_added_up_and_survives_them(redis: Redis) -> None:
    name = orjson.dumps(["ainfera_jobs_total", {"kind": "test-adding", "outcome": "done"}])

    async def total() -> float:
        hashes: Any = redis  # redis-py types its hash commands for both of its clients at once
        return float(await hashes.hget(COUNTERS_KEY, name) or 0)

    worker = Presence("test-adding", INFERENCE_QUEUE)
    worker.open(redis)
    for ended in (3, 2, 0):
        for _ in range(ended):
            worker.ended("done")
        await worker.beat("running", 0, 1)
    assert await total() == 5
    await worker.leave()
    assert await total() == 5
