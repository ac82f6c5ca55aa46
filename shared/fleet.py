"""The fleet as its operators see it: who works, who is drained, what waits, where a job is.

Each worker writes a line about itself every second and hears in the same call whether it is to
drain; one that is silent for `DEAD_AFTER_S` is gone. All times are the store's own, and all keys
share one slot of a cluster:

    {ainfera:fleet}:workers    hash: worker id -> what it says of itself
    {ainfera:fleet}:seen       sorted set: worker ids, by when they were last heard (us)
    {ainfera:fleet}:drain      set: ids of workers that are to drain, or `all` but the books
    {ainfera:fleet}:counters   hash: what all workers together ever counted
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from uuid import UUID

import orjson
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared.lanes import CLASS_SPAN, WHEN_FULL, WINDOW_S, QueueKeys
from shared.queue import INFERENCE_QUEUE, Priority

log = logging.getLogger(__name__)

WORKERS_KEY = "{ainfera:fleet}:workers"
SEEN_KEY = "{ainfera:fleet}:seen"
DRAIN_KEY = "{ainfera:fleet}:drain"
COUNTERS_KEY = "{ainfera:fleet}:counters"

ALL = "all"
# What keeps the books takes no calls: without it no hold is released and no head is signed.
BOOKS = "books"
BEAT_S = 0.75  # less than the second within which a worker has to have heard of a drain
DEAD_AFTER_S = 10.0

# running; told to drain with jobs in flight, and without; asked to end by a signal
WorkerState = Literal["running", "draining", "drained", "stopping"]
JobState = Literal["waiting", "deferred", "leased", "lease lost", "unknown"]

# KEYS: workers, seen, drain, counters. ARGV: id, what it says, patience (us), the word besides its
# id that means it, then what it counted since: names and amounts. Returns 1 if it is to drain.
BEAT = (
    WHEN_FULL
    + """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])) do
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
end
for i = 5, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[4], ARGV[i], ARGV[i + 1]) end
if redis.call('SISMEMBER', KEYS[3], ARGV[4]) == 1 then return 1 end
return redis.call('SISMEMBER', KEYS[3], ARGV[1])
"""
)


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as it said itself; `silent_s` ago, by the store's clock.

    `picked_up_ms` are the latest waits of jobs it claimed, `per_second` the jobs it ended.
    """

    id: str
    kind: str
    queue: str
    host: str
    pid: int
    version: str
    started_at: str
    state: WorkerState
    jobs: int
    max_jobs: int
    done: int
    failed: int
    retried: int
    per_second: float
    picked_up_ms: list[float] = field(default_factory=list, repr=False)
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The queue of calls and those who work on it. By priority: `depth`, `oldest_age_s`.

    `ready` is what could be claimed now (what an autoscaler scales on), `deferred` waits for
    its time, `leased` is in work. The rates and the pick-up are of the queue's own workers.
    `drained` says that `all` are told to drain.
    """

    depth: dict[str, int]
    oldest_age_s: dict[str, float]
    ready: int
    deferred: int
    leased: int
    claims_per_second: float
    jobs_per_second: float
    pick_up_p50_ms: float | None
    pick_up_p99_ms: float | None
    drained: bool
    workers: list[WorkerView]


@dataclass(frozen=True, slots=True)
class JobView:
    """Where one job is. Never what it carries.

    Waiting: in which lane, at which place (from 1), of how many lanes of its priority. Leased:
    by which worker, for how long from now. `attempts` counts claims so far.
    """

    id: str
    state: JobState
    priority: str | None = None
    lane: str | None = None
    place: int | None = None
    lanes: int | None = None
    attempts: int | None = None
    age_s: float | None = None
    due_in_s: float | None = None
    worker: str | None = None
    lease_ends_in_s: float | None = None


def as_json(view: FleetStatus | WorkerView | JobView) -> dict[str, Any]:
    """A view for programs, without the single waits that its quantiles are made of."""
    fields = asdict(view)
    for worker in fields.get("workers", (fields,)):
        worker.pop("picked_up_ms", None)
    return fields


class NoSuchWorker(ValueError):
    """No worker that is alive is meant; the message says which are."""


class Registry:
    """A worker's own line in the registry."""

    def __init__(self, redis: Redis, worker_id: str) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._beat: AsyncScript = redis.register_script(BEAT)

    async def beat(self, says: Mapping[str, Any], counted: Mapping[bytes, float]) -> bool:
        """Say that we are there, and add what was counted since; whether we are to drain."""
        amounts = [part for pair in counted.items() for part in pair]
        told = await self._beat(
            keys=[WORKERS_KEY, SEEN_KEY, DRAIN_KEY, COUNTERS_KEY],
            args=[
                self._worker_id,
                orjson.dumps(says),
                int(DEAD_AFTER_S * 1e6),
                "" if says["kind"] == BOOKS else ALL,
                *amounts,
            ],
        )
        return bool(told)

    async def leave(self) -> None:
        """An orderly end: nobody has to wait until the silence is noticed."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(WORKERS_KEY, self._worker_id)
            pipe.zrem(SEEN_KEY, self._worker_id)
            pipe.srem(DRAIN_KEY, self._worker_id)
            await pipe.execute()


def now_us(time: Sequence[int]) -> int:
    """The answer to TIME in microseconds."""
    return time[0] * 1_000_000 + time[1]


async def list_workers(redis: Redis) -> list[WorkerView]:
    """All workers that are alive, by kind and start; one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(WORKERS_KEY)
        pipe.zrange(SEEN_KEY, 0, -1, withscores=True)
        pipe.time()
        said, seen, time = await pipe.execute()
    return _alive(said, dict(seen), now_us(time))


def _alive(said: Mapping[bytes, bytes], seen: Mapping[bytes, float], now: int) -> list[WorkerView]:
    alive = []
    for worker_id, words in said.items():
        silent_s = (now - seen.get(worker_id, 0)) / 1e6
        if silent_s < DEAD_AFTER_S:
            view = WorkerView(**orjson.loads(words), silent_s=max(0.0, round(silent_s, 3)))
            alive.append(view)
    return sorted(alive, key=lambda worker: (worker.kind, worker.started_at, worker.id))


async def read_status(redis: Redis, queue: str = INFERENCE_QUEUE) -> FleetStatus:
    """The queue and its workers now; one round trip, O(workers)."""
    keys = QueueKeys(queue)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zcard(keys.lease)
        pipe.zcard(keys.queue)
        pipe.hgetall(keys.claims)
        pipe.hgetall(WORKERS_KEY)
        pipe.zrange(SEEN_KEY, 0, -1, withscores=True)
        pipe.sismember(DRAIN_KEY, ALL)
        for priority in Priority:
            first, end = priority * CLASS_SPAN, (priority + 1) * CLASS_SPAN - 1
            pipe.zcount(keys.waiting, first, end)
            pipe.zrangebyscore(keys.waiting, first, end, 0, 1, withscores=True)
        time, leased, deferred, claims, said, seen, drained, *classes = await pipe.execute()
    now = now_us(time)
    workers = _alive(said, dict(seen), now)
    depth, oldest_age_s = {}, {}
    for priority, count, first in zip(Priority, classes[0::2], classes[1::2], strict=True):
        name = priority.name.lower()
        since = first[0][1] - priority * CLASS_SPAN if first else now
        depth[name], oldest_age_s[name] = count, max(0.0, (now - since) / 1e6)
    theirs = [worker for worker in workers if worker.queue == queue]
    waits = sorted(wait for worker in theirs for wait in worker.picked_up_ms)
    return FleetStatus(
        depth=depth,
        oldest_age_s=oldest_age_s,
        ready=sum(depth.values()),
        deferred=deferred,
        leased=leased,
        claims_per_second=round(_rate(claims, now), 2),
        jobs_per_second=round(sum(worker.per_second for worker in theirs), 2),
        pick_up_p50_ms=quantile(waits, 0.5),
        pick_up_p99_ms=quantile(waits, 0.99),
        drained=bool(drained),
        workers=workers,
    )


def _rate(claims: Mapping[bytes, bytes], now: int) -> float:
    """Claims a second, by the two windows that the scripts in lanes.py count in."""
    window = now // (WINDOW_S * 1_000_000)
    passed = now / (WINDOW_S * 1e6) - window
    this, before = (int(claims.get(b"%d" % each, 0)) for each in (window, window - 1))
    return (this + before * (1 - passed)) / WINDOW_S


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed; None of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


async def show_job(redis: Redis, job_id: str | UUID, queue: str = INFERENCE_QUEUE) -> JobView:
    """Where a job is; two round trips at most."""
    keys, job_id = QueueKeys(queue), str(job_id)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hmget(keys.job(job_id), ["lane", "try", "at", "owner"])
        pipe.zscore(keys.lease, job_id)
        pipe.zscore(keys.queue, job_id)
        time, (lane, attempts, at, owner), lease, due = await pipe.execute()
    if lane is None:
        return JobView(job_id, "unknown")
    now, lane = now_us(time), lane.decode()
    known = {
        "id": job_id,
        "priority": Priority(int(lane[0])).name.lower(),
        "lane": lane,
        "attempts": int(attempts),
        "age_s": round((now - int(at)) / 1e6, 3),
    }
    if lease is not None:
        state: JobState = "leased" if lease > now else "lease lost"
        worker = owner.decode().rpartition(":")[0]
        return JobView(**known, state=state, worker=worker, lease_ends_in_s=(lease - now) / 1e6)
    if due is not None:
        return JobView(**known, state="deferred", due_in_s=round(due / 1e3 - now / 1e6, 3))
    async with redis.pipeline(transaction=False) as pipe:
        pipe.lpos(keys.lane(lane), job_id)
        pipe.zcount(keys.turns, int(lane[0]) * CLASS_SPAN, (int(lane[0]) + 1) * CLASS_SPAN - 1)
        place, lanes = await pipe.execute()
    place = place + 1 if place is not None else None
    return JobView(**known, state="waiting", place=place, lanes=lanes)


# -- what operators order -----------------------------------------------------------------------
# Who orders also writes it down (`shared/operators.py`); the log line needs no Postgres.


async def drain(redis: Redis, target: str, *, actor: str = "") -> list[WorkerView]:
    """Tell a worker (its id, or the beginning of it) or `all` to claim nothing more.

    It hears within a second, finishes what it has and stays, idle, until it is resumed or
    ended. `all` is also for workers that start later, and not for those that keep the books: they
    take no calls, and are drained by name. Returns those meant; raises NoSuchWorker.
    """
    meant = to_drain(await list_workers(redis), target)
    orders: Any = redis  # redis-py types its set commands for both of its clients at once
    await orders.sadd(DRAIN_KEY, *([ALL] if target == ALL else [worker.id for worker in meant]))
    log.info("operator_act", extra={"act": "drain", "target": target, "actor": actor})
    return meant


async def resume(redis: Redis, target: str, *, actor: str = "") -> list[WorkerView]:
    """Take a drain back. Raises NoSuchWorker, also for one worker while all are drained."""
    meant = named_by(await list_workers(redis), target)
    orders: Any = redis
    if target == ALL:
        await orders.delete(DRAIN_KEY)
    elif meant[0].kind != BOOKS and await orders.sismember(DRAIN_KEY, ALL):
        raise NoSuchWorker("The whole fleet is drained: resume `all`.")
    else:
        await orders.srem(DRAIN_KEY, *[worker.id for worker in meant])
    log.info("operator_act", extra={"act": "resume", "target": target, "actor": actor})
    return meant


async def wait_until_drained(redis: Redis, worker_ids: Sequence[str], timeout_s: float) -> bool:
    """Wait until these workers are idle or gone; False if they were not in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                alive = await list_workers(redis)
                if all(each.state == "drained" for each in alive if each.id in worker_ids):
                    return True
                await asyncio.sleep(BEAT_S / 3)
    return False


def to_drain(workers: Sequence[WorkerView], target: str) -> list[WorkerView]:
    """As `named_by`, less those that `all` spares."""
    meant = named_by(workers, target)
    return [worker for worker in meant if target != ALL or worker.kind != BOOKS]


def named_by(workers: Sequence[WorkerView], target: str) -> list[WorkerView]:
    """Those whose id is `target`, or begins so, or all. Raises NoSuchWorker."""
    if target == ALL:
        return list(workers)
    exact = [worker for worker in workers if worker.id == target]
    meant = exact or [worker for worker in workers if target and worker.id.startswith(target)]
    if len(meant) == 1:
        return meant
    what = f"{len(meant)} workers begin with" if meant else "No worker is called"
    known = ", ".join(worker.id for worker in workers) or "none"
    raise NoSuchWorker(f"{what} {target!r}. Alive: {known}.")
