"""Waiting for calls that are kept: the end of a call comes from the database, whoever ran it.

A call with an idempotency key may have more clients than the one whose ingress is told of it by
its worker, and what a worker tells may be lost on its way. So each such client has a `Reply` that
is also fed from here, with all the records that the settlement kept. One query looks after all of
them.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from ingress.relay import is_overdue, overdue
from ingress.reply import Reply
from shared.config import Settings
from shared.db import TRANSIENT
from shared.errors import InternalError, Overloaded
from shared.kept import ACCEPTED, KeptCalls
from shared.stream import Record

log = logging.getLogger(__name__)

LOOKS_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """`alone`: nobody else pings this reply, or cuts its client off if it stalls."""

    inference_id: UUID
    tenant_id: UUID
    reply: Reply
    alone: bool


class Ends:
    """The replies of this process that wait for the results of kept calls."""

    def __init__(self, kept: KeptCalls, settings: Settings, patience_s: float) -> None:
        self._kept = kept
        self._ping_after_s = settings.ping_interval_s * 3 / 4
        self._stall_s = settings.idle_deadline_s
        self._patience_s = patience_s
        self._waiting: set[Waiting] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ends")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def wait_for(self, reply: Reply, inference_id: UUID, tenant_id: UUID, *, alone: bool) -> None:
        """Feed `reply` the end of this call; until it has ended or its client is gone."""
        self._waiting.add(Waiting(inference_id, tenant_id, reply, alone))
        self._wake.set()

    def replies(self) -> list[Reply]:
        """Those whose clients wait here and nowhere else."""
        return [each.reply for each in self._waiting if each.alone]

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(LOOKS_EVERY_S)
            try:
                await self._look()
            except (SQLAlchemyError, *TRANSIENT) as error:
                log.warning("ends_unreadable", extra={"error": type(error).__name__})
            self._look_after()
            if not self._waiting:
                self._wake.clear()

    async def _look(self) -> None:
        """One query for all; then the result of each call that has ended."""
        waiting = [each for each in self._waiting if not each.reply.ended]
        if not waiting:
            return
        states = await self._kept.states({each.inference_id: each.tenant_id for each in waiting})
        for each in waiting:
            state = states.get(each.inference_id)
            if state is None:
                each.reply.end(
                    Overloaded("The call was refused while you waited. Retry.").failure()
                )
            elif state != ACCEPTED:
                await self._feed(each)

    async def _feed(self, each: Waiting) -> None:
        result = await self._kept.result(each.inference_id, each.tenant_id)
        tell(each.reply, result.told() if result is not None else ())

    def _look_after(self) -> None:
        now = asyncio.get_running_loop().time()
        for each in list(self._waiting):
            reply = each.reply
            if reply.ended or reply.gone:
                self._waiting.discard(each)
            elif each.alone:
                reply.cut_off(now, self._stall_s)
                if is_overdue(reply, now, self._patience_s):
                    reply.end(overdue(reply))
                elif now - reply.last_heard >= self._ping_after_s:
                    reply.ping(now)


def tell(reply: Reply, records: Iterable[Record]) -> None:
    """Feed a reply all of a call that has ended; what it has heard already it knows."""
    now = asyncio.get_running_loop().time()
    for record in records:
        reply.feed(record, now)
    if not reply.ended:
        reply.end(
            InternalError(
                "The call has ended, but its answer is not kept; the receipt says what it cost."
            ).failure()
        )
