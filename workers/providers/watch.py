"""Two deadlines on one stream: for the whole of it, and for the silence between two frames."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class OutOfTime(Exception):
    """The whole call took too long."""


class Silent(Exception):
    """No whole frame came for too long, though single bytes may have."""


class Watch:
    """Interrupts a wait that outlives a deadline.

    `asyncio.timeout` around every read would cost more than the read. Here one timer looks
    again only when the earliest deadline may have passed. Time in which nobody waits (the reader
    is busy with what it has) is no silence; a total deadline that passes in it is told at the
    next wait.
    """

    def __init__(self, total_s: float, idle_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._progress_at = self._left_at = self._loop.time()
        self._ends_at = self._progress_at + total_s
        self._waiting: asyncio.Task[object] | None = None
        self._expired: type[OutOfTime | Silent] | None = None
        self._timer = self._loop.call_at(self._due(), self._look)

    def progress(self) -> None:
        """Something worth waiting for has come."""
        self._progress_at = self._left_at = self._loop.time()

    def remaining_s(self) -> float:
        return self._ends_at - self._loop.time()

    def close(self) -> None:
        self._timer.cancel()

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Its result, unless a deadline passes first: then `OutOfTime` or `Silent`."""
        now = self._loop.time()
        if now >= self._ends_at:
            self._expired = OutOfTime
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise OutOfTime
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        self._progress_at += now - self._left_at
        self._waiting = task
        try:
            return await awaitable
        finally:
            self._waiting = None
            self._left_at = self._loop.time()
            if self._expired is not None and task.uncancel() <= cancelling:
                raise self._expired

    def _due(self) -> float:
        return min(self._ends_at, self._progress_at + self._idle_s)

    def _look(self) -> None:
        now, due = self._loop.time(), self._due()
        if now >= due and self._waiting is not None:
            self._expired = OutOfTime if now >= self._ends_at else Silent
            self._waiting.cancel()
            return
        if now < self._ends_at:
            again = due if now < due else min(self._ends_at, now + self._idle_s / 4)
            self._timer = self._loop.call_at(again, self._look)
