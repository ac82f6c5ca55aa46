"""What a worker says of itself every second: its line in the registry, and what it counted."""

import os
import secrets
import socket
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from shared.config import VERSION
from shared.fleet import Registry, WorkerState
from shared.metrics import FLEET, JOBS, PICK_UP, counts

# the rate and the pick-up latency are those of the last moments
RECENT_S = 10.0
RECENT_PICK_UPS = 64


class Presence:
    """One worker's own record: how many jobs ended and how, and how long they had waited."""

    def __init__(self, kind: str, queue: str) -> None:
        self.kind = kind
        self.queue = queue
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._ended = {"done": 0, "failed": 0, "retried": 0}
        self._at: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._pick_ups: deque[tuple[float, float]] = deque(maxlen=RECENT_PICK_UPS)
        self._told: dict[bytes, float] = {}
        self._registry: Registry | None = None

    def open(self, redis: Redis) -> None:
        self._registry = Registry(redis, self.worker_id)

    def picked_up(self, waited_us: int) -> None:
        PICK_UP.labels(kind=self.kind).observe(waited_us / 1e6)
        self._pick_ups.append((time.monotonic(), waited_us / 1e3))

    def ended(self, outcome: str) -> None:
        JOBS.labels(kind=self.kind, outcome=outcome).inc()
        self._ended[outcome] += 1

    async def beat(self, state: WorkerState, jobs: int, max_jobs: int) -> bool:
        """Write the line and what was counted since the last one; whether we are to drain."""
        assert self._registry is not None, "open() comes first"
        now = counts(FLEET)
        new = {name: n - self._told.get(name, 0.0) for name, n in now.items()}
        counted = {name: n for name, n in new.items() if n or name not in self._told}
        told_to_drain = await self._registry.beat(self._says(state, jobs, max_jobs), counted)
        self._told = now
        return told_to_drain

    async def leave(self) -> None:
        if self._registry is not None:
            await self._registry.leave()

    def _says(self, state: WorkerState, jobs: int, max_jobs: int) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "id": self.worker_id,
            "kind": self.kind,
            "queue": self.queue,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": VERSION,
            "started_at": self._started_at,
            "state": state,
            "jobs": jobs,
            "max_jobs": max_jobs,
            **self._ended,
            "per_second": self._per_second(now),
            "picked_up_ms": [round(ms, 2) for at, ms in self._pick_ups if now - at < 6 * RECENT_S],
        }

    def _per_second(self, now: float) -> float:
        ended = sum(self._ended.values())
        self._at.append((now, ended))
        while len(self._at) > 2 and now - self._at[1][0] >= RECENT_S:
            self._at.popleft()
        began, before = self._at[0]
        return round((ended - before) / (now - began), 2) if now > began else 0.0
