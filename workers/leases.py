"""The leases of one worker's runs: renewed while they last, and asked for after a standstill.

Times are those of the event loop, which go on while the process is stopped: a lease that may have
run out by them is one that another worker may have by now.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from shared.lanes import RENEW, QueueKeys

log = logging.getLogger(__name__)


class Leases:
    """`Leases(keys, lease_s, worker_id, runs)`, where `runs` are the tasks by `Claim.key`.

    A run that turns out to be another worker's is cancelled.
    """

    def __init__(
        self,
        keys: QueueKeys,
        lease_s: float,
        worker_id: str,
        runs: Mapping[str, asyncio.Task[Any]],
    ) -> None:
        self.lease_us = int(lease_s * 1_000_000)
        self._keys = keys
        self._worker_id = worker_id
        self._runs = runs
        self._until: dict[str, float] = {}
        self._renew: AsyncScript | None = None

    def open(self, pool: Any) -> None:
        self._renew = pool.register_script(RENEW)

    def from_now(self) -> float:
        """Until when a lease lasts at least that is asked for at this moment."""
        return asyncio.get_running_loop().time() + self.lease_us / 1_000_000

    def begin(self, key: str, until: float) -> None:
        self._until[key] = until

    def end(self, key: str) -> None:
        self._until.pop(key, None)

    async def keep(self) -> None:
        """Renew all, thrice per lease, for ever."""
        while True:
            await asyncio.sleep(self.lease_us / 3_000_000)
            if self._runs:
                with contextlib.suppress(RedisError, OSError):
                    await self._renew_all(list(self._runs))

    async def hold_on(self, key: str) -> None:
        """End a run that has become another's; only where its lease may be over is that asked.

        A store that is away has given it to nobody: then the run goes on.
        """
        if asyncio.get_running_loop().time() < self._until.get(key, 0):
            return
        with contextlib.suppress(RedisError, OSError):
            await self._renew_all([key])
            await asyncio.sleep(0)  # where the cancellation of a lost run takes effect

    async def _renew_all(self, keys: Iterable[str]) -> None:
        assert self._renew is not None
        until = self.from_now()
        runs = [part for key in keys for part in key.rsplit(":", 1)]
        answer = await self._renew(
            keys=[self._keys.queue, self._keys.lease], args=[self.lease_us, self._worker_id, *runs]
        )
        lost = {key.decode() for key in answer}
        for key in keys:
            task = self._runs.get(key)
            if task is None or task.done():
                continue
            if key in lost:
                log.warning("lease_lost", extra={"job_id": key.rpartition(":")[0]})
                task.cancel()
            else:
                self._until[key] = until
