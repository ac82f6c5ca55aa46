"""The arq worker made fast and safe.

arq's API, job format, cron and hooks stay. Ours are: a doorbell instead of a poll (a slow
poll remains as fall-back), a claim that is one Lua call and brings job, payload and try
along, a short lease per job that only its owner can renew or end, and batched finishes.
All times are the store's own.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from arq.connections import create_pool, log_redis_info
from arq.constants import job_key_prefix, retry_key_prefix
from arq.jobs import deserialize_job_raw
from arq.worker import Retry, Worker
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from shared.queue import BELL_SUFFIX, PAYLOAD_PREFIX

log = logging.getLogger(__name__)

CLAIM_LIMIT = 64
FINISH_LIMIT = 128
FALL_BACK_POLL_S = 0.5
RETRY_KEY_TTL_S = 90_000

# KEYS: queue, leases by expiry, owners. Jobs whose lease ran out go back first.
_CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit = tonumber(ARGV[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZADD', KEYS[1], now - 1, id)
end
local claimed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZREM', KEYS[1], id)
  local job = redis.call('GET', ARGV[4] .. id)
  if job then
    redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), id)
    redis.call('HSET', KEYS[3], id, ARGV[3])
    local try = redis.call('INCR', ARGV[5] .. id)
    redis.call('EXPIRE', ARGV[5] .. id, ARGV[7])
    claimed[#claimed + 1] = {id, job, try, redis.call('GET', ARGV[6] .. id)}
  end
end
return claimed
"""

# Renews what the caller still owns; returns what it has lost.
_RENEW = """
local time = redis.call('TIME')
local expiry = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
local lost = {}
for i = 3, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[2] then
    redis.call('ZADD', KEYS[1], 'XX', expiry, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""

# Ends jobs the caller still owns: `wait` < 0 deletes all of a job, else it is due again then.
_FINISH = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ended = 0
for i = 5, #ARGV, 2 do
  local id, wait = ARGV[i], tonumber(ARGV[i + 1])
  if redis.call('HGET', KEYS[3], id) == ARGV[1] then
    redis.call('HDEL', KEYS[3], id)
    redis.call('ZREM', KEYS[2], id)
    if wait < 0 then
      redis.call('DEL', ARGV[2] .. id, ARGV[3] .. id, ARGV[4] .. id)
    else
      redis.call('ZADD', KEYS[1], now + wait, id)
      if redis.call('LLEN', KEYS[4]) == 0 then redis.call('LPUSH', KEYS[4], 1) end
    end
    ended = ended + 1
  end
end
return ended
"""

DONE = -1


@dataclass(frozen=True, slots=True)
class Claim:
    """One job as it was claimed; `attempt` counts from 1, over all workers."""

    job_id: str
    job: bytes
    attempt: int
    payload: bytes | None


class FleetWorker(Worker):
    """A worker of the fleet: `FleetWorker(functions, lease_s=5.0, **arq's own settings)`.

    `ctx` of a job has arq's `job_id` and `job_try`, and `payload`: the bytes enqueued beside
    the job, or None. A job that raises `Retry`, or is cancelled by a shutdown, is due again;
    any other end deletes it. `on_lost(job_id)` hears of jobs another worker took over.
    """

    def __init__(self, *args: Any, lease_s: float = 5.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worker_id = uuid.uuid4().hex
        self._lease_ms = int(lease_s * 1000)
        self._lease_key = f"{self.queue_name}:lease"
        self._owner_key = f"{self.queue_name}:owner"
        self._bell_key = f"{self.queue_name}{BELL_SUFFIX}"
        self._wake = asyncio.Event()
        self._finished: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self._background: list[asyncio.Task[None]] = []
        self._last_heart_beat = 0.0

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
        self._claim: AsyncScript = self.pool.register_script(_CLAIM)
        self._renew: AsyncScript = self.pool.register_script(_RENEW)
        self._finish: AsyncScript = self.pool.register_script(_FINISH)
        await log_redis_info(self.pool, log.info)
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._background = [
            self.loop.create_task(self._listen(), name="bell"),
            self.loop.create_task(self._keep_leases(), name="leases"),
            self.loop.create_task(self._finisher(), name="finisher"),
        ]
        while True:
            try:
                await self._poll_iteration()
            except (RedisError, OSError) as error:
                log.warning("queue_unreachable", extra={"error": repr(error)})
                await asyncio.sleep(0.5)

    async def _poll_iteration(self) -> None:
        self._wake.clear()
        room = min(self.max_jobs - self.job_counter, CLAIM_LIMIT)
        claims = await self._claim_up_to(room) if self.allow_pick_jobs and room > 0 else []
        for claim in claims:
            self._start(claim)
        if self.loop.time() - self._last_heart_beat > FALL_BACK_POLL_S:
            self._last_heart_beat = self.loop.time()
            await self.heart_beat()
        if len(claims) < room or room <= 0:
            # not wait_for: on Python 3.11 it can swallow the cancellation that ends us
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FALL_BACK_POLL_S):
                    await self._wake.wait()

    async def _claim_up_to(self, limit: int) -> list[Claim]:
        rows = await self._claim(
            keys=[self.queue_name, self._lease_key, self._owner_key],
            args=[
                limit,
                self._lease_ms,
                self.worker_id,
                job_key_prefix,
                retry_key_prefix,
                PAYLOAD_PREFIX,
                RETRY_KEY_TTL_S,
            ],
        )
        return [Claim(row[0].decode(), row[1], row[2], row[3] or None) for row in rows]

    def _start(self, claim: Claim) -> None:
        self.job_counter += 1
        task = self.loop.create_task(self._run_claimed(claim))
        self.tasks[claim.job_id] = self.job_tasks[claim.job_id] = task

    async def _run_claimed(self, claim: Claim) -> None:
        wait = DONE
        try:
            await self._call_function(claim)
            self.jobs_complete += 1
        except Retry as retry:
            self.jobs_retried += 1
            wait = int(retry.defer_score or 0)
        except asyncio.CancelledError:
            self.jobs_retried += 1
            wait = 0
        except Exception:  # the edge of a job: whatever it was, the worker goes on
            self.jobs_failed += 1
            log.exception("job_failed", extra={"job_id": claim.job_id, "attempt": claim.attempt})
        finally:
            was_full = self.job_counter >= self.max_jobs
            self.job_counter -= 1
            self.tasks.pop(claim.job_id, None)
            self.job_tasks.pop(claim.job_id, None)
            self._finished.put_nowait((claim.job_id, wait))
            if was_full:
                self._wake.set()

    async def _call_function(self, claim: Claim) -> None:
        name, args, kwargs, _, _ = deserialize_job_raw(
            claim.job, deserializer=self.job_deserializer
        )
        function = self.functions[name]
        limit = function.timeout_s or self.job_timeout_s
        ctx = {
            **self.ctx,
            "job_id": claim.job_id,
            "job_try": claim.attempt,
            "payload": claim.payload,
        }
        async with asyncio.timeout(limit):
            await function.coroutine(ctx, *args, **kwargs)

    async def _listen(self) -> None:
        """Wait for the bell while there is room for a job."""
        while True:
            if not self.allow_pick_jobs or self.job_counter >= self.max_jobs:
                await asyncio.sleep(0.02)
                continue
            try:
                await cast(Awaitable[Any], self.pool.blpop([self._bell_key], timeout=5))
            except (RedisError, OSError):
                await asyncio.sleep(0.3)
            self._wake.set()

    async def _keep_leases(self) -> None:
        """Renew thrice per lease; a job that was lost to another worker stops here."""
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            if not self.job_tasks:
                continue
            try:
                lost = await self._renew(
                    keys=[self._lease_key, self._owner_key],
                    args=[self._lease_ms, self.worker_id, *self.job_tasks],
                )
            except (RedisError, OSError):
                continue
            self._drop_lost([job_id.decode() for job_id in lost])

    def _drop_lost(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            task = self.job_tasks.get(job_id)
            if task is not None and not task.done():
                log.warning("lease_lost", extra={"job_id": job_id})
                task.cancel()

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

    async def _finish_all(self, ended: Iterable[tuple[str, int]]) -> None:
        pairs = [part for end in ended for part in end]
        if pairs:
            await self._finish(
                keys=[self.queue_name, self._lease_key, self._owner_key, self._bell_key],
                args=[self.worker_id, job_key_prefix, retry_key_prefix, PAYLOAD_PREFIX, *pairs],
            )

    async def close(self) -> None:
        """Hand back what still runs, end what has ended, then close as arq does."""
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
            except (RedisError, OSError) as error:
                log.warning("hand_back_failed", extra={"jobs": len(ended), "error": repr(error)})
        await super().close()
