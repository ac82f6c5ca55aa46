"""Workers in this process, and what the tests of the queue put into it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from redis.asyncio import Redis

from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.lanes import QueueKeys
from shared.queue import (
    INFERENCE_QUEUE,
    Envelope,
    deserialize_job,
    redis_settings,
    serialize_job,
)
from workers.fleet import FleetWorker

KEYS = QueueKeys(INFERENCE_QUEUE)
Job = Callable[..., Awaitable[None]]


def envelope(body: bytes = b'{"model":"m"}', tenant: str = "t") -> Envelope:
    caller = {"tenant_id": tenant}
    return Envelope(mint_id(), mint_id(), Dialect.NATIVE, "reply", caller, 1.0, "trace", body)


class Running:
    """A worker in this process, stopped as a shutdown or as a crash stops it.

    One that its test left behind is crashed at the end, or it would work for the next test.
    """

    left: ClassVar[list["Running"]] = []

    def __init__(self, redis_url: str, job: Job, **kwargs: Any) -> None:
        job.__qualname__ = "run_inference"
        options = {
            "queue_name": INFERENCE_QUEUE,
            "arq_jobs": "",
            "redis_settings": redis_settings(redis_url),
            "job_serializer": serialize_job,
            "job_deserializer": deserialize_job,
            "handle_signals": False,
            "keep_result": 0,
        }
        self.worker = FleetWorker(functions=[job], **{**options, **kwargs})
        self._task = asyncio.create_task(self.worker.async_run())
        self.left.append(self)

    async def crash(self) -> None:
        """Stop without a word to the store, as kill -9 would."""
        self.left.remove(self)
        for task in [self._task, *self.worker._background]:
            task.cancel()
        worker: Any = self.worker
        worker._finish_all = _nothing
        for running in list(self.worker.tasks.values()):
            running.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        self.left.remove(self)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.worker.close()


async def _nothing(*_: Any) -> None:
    return None


async def until(condition: Callable[[], bool], patience_s: float = 10) -> None:
    ends_at = asyncio.get_running_loop().time() + patience_s
    while not condition():
        assert asyncio.get_running_loop().time() < ends_at, "it did not come about"
        await asyncio.sleep(0.005)


async def keys_left(redis: Redis) -> list[bytes]:
    """All that is of jobs: not the bell, the last turn, the rate, nor of the workers."""
    of_all = (b":bell", b":passed", b":turn", b":claims", b":served")
    keys: list[bytes] = await redis.keys("*")
    return sorted(k for k in keys if not k.endswith(of_all) and b"fleet" not in k)
