"""The arq worker made fast and safe.

arq's API, job format, cron and hooks stay. Ours are: a doorbell instead of a poll (a slow
poll remains as fall-back), a claim that is one Lua call and brings job, payload and try
along, a short lease per job that only its owner can renew or end, batched finishes, fair
turns between tenants (see shared/lanes.py), and a drain that an operator orders from afar.
All times are the store's own.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, cast

from arq.connections import create_pool, log_redis_info
from arq.constants import job_key_prefix, keep_cronjob_progress
from arq.cron import CronJob
from arq.jobs import deserialize_job_raw
from arq.utils import to_unix_ms
from arq.worker import Retry, Worker
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from shared.fleet import BEAT_S, WorkerState
from shared.lanes import CLAIM, DONE, DONE_KEEP, FINISH, HANDED_BACK, SERVE, QueueKeys
from shared.queue import JOB_TTL_MS
from shared.valkey import reachable
from workers.claims import Claim, End
from workers.leases import Leases
from workers.presence import Presence

log = logging.getLogger(__name__)

CLAIM_LIMIT = 64
FINISH_LIMIT = 128
FALL_BACK_POLL_S = 0.5
START_PATIENCE_S = 60.0
BELL_PATIENCE_S = 5


class FleetWorker(Worker):
    """A worker of the fleet: `FleetWorker(functions, lease_s=5.0, **arq's own settings)`.

    `ctx` of a job has arq's `job_id` and `job_try`, `payload`: the bytes enqueued beside the
    job, or None, `stop`, `late` and `handed_back` as in `Claim`, `age_s`: how long ago it was
    accepted, by the store's clock, `used`, where the job may say how many `tokens` it used, for
    the limits of the key that asked, and `hold_on`, to be awaited before what is better not done
    twice: it ends a job that another worker has by now. A job that raises `Retry`, or is
    cancelled by a shutdown, is due again; any other end deletes it.
    `jobs_per_tenant` of the slots are one tenant's at most.
    `arq_jobs` is the prefix of the jobs that arq's own `enqueue_job` makes (cron does), or ""
    for a queue that takes none, whose keys then all are in one slot of a cluster.
    """

    def __init__(
        self,
        *args: Any,
        lease_s: float = 5.0,
        kind: str = "worker",
        jobs_per_tenant: int | None = None,
        arq_jobs: str = job_key_prefix,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.presence = Presence(kind, self.queue_name)
        self.worker_id = self.presence.worker_id
        self._tenant_slots = min(jobs_per_tenant or self.max_jobs, self.max_jobs)
        self._arq_jobs = arq_jobs
        self._keys = QueueKeys(self.queue_name)
        self._leases = Leases(self._keys, lease_s, self.worker_id, self.job_tasks)
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._drained = self._gave_turn_away = False
        self._held: Counter[str] = Counter()
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._finished: asyncio.Queue[End] = asyncio.Queue()
        self._background: list[asyncio.Task[None]] = []
        self._last_cron = 0.0

    async def main(self) -> None:
        """Claim and run jobs until cancelled."""
        if self._pool is None:
            self._pool = await create_pool(
                self.redis_settings,
                job_deserializer=self.job_deserializer,
                job_serializer=self.job_serializer,
                default_queue_name=self.queue_name,
                expires_extra_ms=self.expires_extra_ms,
            )
        await reachable(self.pool, START_PATIENCE_S)
        self._claim: AsyncScript = self.pool.register_script(CLAIM)
        self._leases.open(self.pool)
        self._finish: AsyncScript = self.pool.register_script(FINISH)
        self._serve: AsyncScript = self.pool.register_script(SERVE)
        self.presence.open(self.pool)
        await log_redis_info(self.pool, log.info)
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        # a drain that was ordered before we started holds before the first claim
        await self._say_hello()
        self._background = [
            self.loop.create_task(self._listen(), name="bell"),
            self.loop.create_task(self._leases.keep(), name="leases"),
            self.loop.create_task(self._finisher(), name="finisher"),
            self.loop.create_task(self._keep_saying(), name="presence"),
        ]
        while True:
            try:
                await self._poll_iteration()
            except (RedisError, OSError) as error:
                log.warning("queue_unreachable", extra={"error": repr(error)})
                await asyncio.sleep(0.5)

    # -- claiming -------------------------------------------------------------------------

    @property
    def _may_claim(self) -> bool:
        return self.allow_pick_jobs and not self._drained and self.job_counter < self.max_jobs

    def _note_room(self) -> None:
        """Whether to listen for the bell: a ring that we cannot follow is another's to hear."""
        if self._may_claim:
            self._room.set()
        else:
            self._room.clear()

    async def _poll_iteration(self) -> None:
        self._wake.clear()
        room = min(self.max_jobs - self.job_counter, CLAIM_LIMIT)
        claims = await self._claim_up_to(room) if self._may_claim else []
        for claim in claims:
            self._start(claim)
        await self._keep_time()
        if len(claims) < room or room <= 0:
            # not wait_for: on Python 3.11 it can swallow the cancellation that ends us
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FALL_BACK_POLL_S):
                    await self._wake.wait()

    async def _claim_up_to(self, limit: int) -> list[Claim]:
        keys = self._keys
        leased_until = self._leases.from_now()
        free = [
            part
            for tenant, held in self._held.items()
            if self._tenant_slots - held < limit
            for part in (tenant, self._tenant_slots - held)
        ]
        rows, gave_turn_away = await self._claim(
            keys=[keys.queue, keys.lease, keys.bell, keys.passed],
            args=[
                limit,
                self._leases.lease_us,
                self.worker_id,
                self._arq_jobs,
                self._tenant_slots,
                JOB_TTL_MS,
                *free,
            ],
        )
        self._gave_turn_away = bool(gave_turn_away)
        claims = [Claim.unpack(row) for row in rows]
        for claim in claims:
            self._leases.begin(claim.key, leased_until)
        return claims

    async def _keep_time(self) -> None:
        """arq's cron by the store's clock, as is what is due; a host's own may jump, or be wrong.

        A fire that was missed is not made up for, nor is one while the worker is drained.
        """
        if not self.cron_jobs or self.loop.time() - self._last_cron < FALL_BACK_POLL_S:
            return
        self._last_cron = self.loop.time()
        seconds, us = await self.pool.time()
        now = datetime.fromtimestamp(seconds + us / 1_000_000, self.timezone)
        for job in self.cron_jobs:
            if self._drained:
                job.next_run = None
            elif job.next_run is None and not job.run_at_startup:
                job.calculate_next(now)
            elif (due := job.next_run or now) <= now:
                job.calculate_next(now)
                await self.pool.enqueue_job(
                    job.name, _job_id=f"{job.name}:{to_unix_ms(due)}", _defer_until=due
                )

    async def _listen(self) -> None:
        """Wait for the bell while there is room for a job."""
        while self.allow_pick_jobs:
            await self._room.wait()
            bells = [self._keys.bell]
            if not self._gave_turn_away:
                bells.append(self._keys.passed)
            try:
                heard = await cast(Awaitable[Any], self.pool.blpop(bells, timeout=BELL_PATIENCE_S))
                if heard and not self._may_claim:
                    await cast(Awaitable[Any], self.pool.lpush(heard[0], 1))
            except (RedisError, OSError):
                await asyncio.sleep(0.3)
            self._wake.set()

    # -- running --------------------------------------------------------------------------

    def _start(self, claim: Claim) -> None:
        if (older := self._runs.get(claim.job_id)) is not None:
            # our own lease ran out and the job came back to us: there is one run of it only
            older.cancel()
        self.job_counter += 1
        self._held[claim.tenant] += 1
        self._note_room()
        self.presence.picked_up(claim.waited_us)
        task = self.loop.create_task(self._run_claimed(claim))
        self._runs[claim.job_id] = task
        self.tasks[claim.key] = self.job_tasks[claim.key] = task

    async def _run_claimed(self, claim: Claim) -> None:
        wait, outcome = DONE, "done"
        used: dict[str, int] = {}
        try:
            wait = await self._call_function(claim, used)
            self.jobs_complete += 1
        except Retry as retry:
            self.jobs_retried += 1
            wait, outcome = int(retry.defer_score or 0), "retried"
        except asyncio.CancelledError:
            self.jobs_retried += 1
            wait, outcome = 0 if self.allow_pick_jobs else HANDED_BACK, "retried"
        except Exception:  # the edge of a job: whatever it was, the worker goes on
            self.jobs_failed += 1
            outcome = "failed"
            log.exception("job_failed", extra={"job_id": claim.job_id, "attempt": claim.attempt})
        finally:
            was_full = self.job_counter >= self.max_jobs
            self._let_go(claim)
            self.presence.ended(outcome)
            tokens = used.get("tokens", -1)
            self._finished.put_nowait(End(claim.job_id, claim.attempt, wait, tokens))
            if was_full or self._gave_turn_away:
                self._wake.set()

    def _let_go(self, claim: Claim) -> None:
        self.job_counter -= 1
        self._held[claim.tenant] -= 1
        if not self._held[claim.tenant]:
            del self._held[claim.tenant]
        if self._runs.get(claim.job_id) is self.tasks.pop(claim.key, None):
            self._runs.pop(claim.job_id, None)
        self.job_tasks.pop(claim.key, None)
        self._leases.end(claim.key)
        self._note_room()

    async def _call_function(self, claim: Claim, used: dict[str, int]) -> int:
        name, args, kwargs, _, _ = deserialize_job_raw(
            claim.job, deserializer=self.job_deserializer
        )
        function = self.functions[name]
        if claim.attempt > (function.max_tries or self.max_tries):
            raise RuntimeError(f"{name} was tried {claim.attempt - 1} times in vain")
        limit = function.timeout_s or self.job_timeout_s
        ctx = {
            **self.ctx,
            "job_id": claim.job_id,
            "job_try": claim.attempt,
            "payload": claim.payload,
            "stop": claim.stop,
            "late": claim.late,
            "handed_back": claim.handed_back,
            "used": used,
            "age_s": claim.age_us / 1_000_000,
            "hold_on": partial(self._leases.hold_on, claim.key),
        }
        if self.on_job_start:
            await self.on_job_start(ctx)
        async with asyncio.timeout(limit):
            await function.coroutine(ctx, *args, **kwargs)
        if self.on_job_end:
            await self.on_job_end(ctx)
        # another worker's clock may bring it to the same fire of a cron job a little later
        return DONE_KEEP if isinstance(function, CronJob) else DONE

    # -- ends -------------------------------------------------------------------------------

    async def _finisher(self) -> None:
        while True:
            ended = [await self._finished.get()]
            while len(ended) < FINISH_LIMIT and not self._finished.empty():
                ended.append(self._finished.get_nowait())
            try:
                await self._finish_all(ended)
            except (RedisError, OSError, asyncio.CancelledError) as error:
                # ending a job twice does nothing; not ending it would run it again
                for end in ended:
                    self._finished.put_nowait(end)
                if isinstance(error, asyncio.CancelledError):
                    raise
                await asyncio.sleep(0.2)

    async def _finish_all(self, ended: Iterable[End]) -> None:
        parts = [part for end in ended for part in (end.job_id, end.attempt, end.wait, end.tokens)]
        if parts:
            keys = self._keys
            await self._finish(
                keys=[keys.queue, keys.lease, keys.bell],
                args=[self.worker_id, self._arq_jobs, keep_cronjob_progress * 1000, *parts],
            )

    # -- what operators see and order -------------------------------------------------------

    @property
    def state(self) -> WorkerState:
        if not self.allow_pick_jobs:
            return "stopping"
        if self._drained:
            return "draining" if self.tasks else "drained"
        return "running"

    async def _keep_saying(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._say_hello()

    async def _say_hello(self) -> None:
        try:
            drained = await self.presence.beat(self.state, self.job_counter, self.max_jobs)
            if self.allow_pick_jobs and (drained or self.job_counter >= self.max_jobs):
                await self._serve(keys=[self._keys.queue], args=["drained" if drained else "seen"])
        except (RedisError, OSError) as error:
            log.warning("presence_not_said", extra={"error": repr(error)})
            return
        if drained != self._drained:
            self._drained = drained
            log.info("drained" if drained else "resumed", extra={"jobs": self.job_counter})
            self._note_room()
            self._wake.set()

    async def close(self) -> None:
        """Hand back what still runs, end what has ended, then close as arq does."""
        self.allow_pick_jobs = False
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        running = list(self.tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        ended = []
        while not self._finished.empty():
            ended.append(self._finished.get_nowait())
        if self._pool is not None:
            try:
                await self._finish_all(ended)
                await self.presence.leave()
            except (RedisError, OSError) as error:
                log.warning("hand_back_failed", extra={"jobs": len(ended), "error": repr(error)})
        await super().close()
