"""Whatever the queue or the wire loses, an accepted call is answered: here is who sees to it.

A hole in an answer, or a subscription that stood still for a moment, is mended from the
inference's replay. A call that has heard nothing for long is looked for: in the queue, in its
replay, in the database. One that nobody has heard of is enqueued again under its own id; the
database's claim sees to it that it is not carried out twice.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col

from ingress.reply import Reply, broken_off
from shared.db import TRANSIENT, Database
from shared.errors import DeadlineExceeded
from shared.metrics import REENQUEUED, STREAM_GAPS
from shared.models import InferenceRow
from shared.queue import InferenceQueue
from shared.stream import read_replays

log = logging.getLogger(__name__)

MEND_EVERY_S = 0.05
# A replay lags behind by a step; what has not come by then will not come.
MEND_FOR_S = 2.0
MENDED_AT_ONCE = 64
# Nothing heard for so long is worth a look, later looks are rarer.
QUIET_S = 3.0
RAREST_LOOK_S = 15.0
# After a reconnection workers get a moment to tell the store what they are working on.
RECONNECTION_S = 2.0
# An answer that has begun, and of which no job and no new word is known, is given up then.
GIVEN_UP_S = 30.0

NOT_STARTED = (
    "The call was not started in time: no worker was free. Nothing was charged, and it will not be "
    "run any more. Retry."
)
LOST_AT_ONCE = (
    "The worker that began the call was lost, and no other was free in time. It will not be run "
    "any more; what was used, if anything, is settled. Retry."
)


def begun(reply: Reply) -> bool:
    """Whether there is an answer that a worker can have left behind.

    A kept call that was not queued yet, because the store is full, waits to be driven there: it was
    accepted, no worker had it, and to say that it is over would be wrong.
    """
    return reply.follows or reply.position is not None


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a call."""

    attempt: int
    state: str


class Keeper:
    """Mends answers and finds lost calls; one round trip for all that need it, none otherwise."""

    def __init__(
        self,
        redis: Redis,
        queue: InferenceQueue,
        db: Database,
        *,
        start_within_s: float = 60.0,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._redis = redis
        self._queue = queue
        self._db = db
        self._start_within_s = start_within_s
        self._quiet_s = quiet_s
        self._broken: dict[Reply, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="mender")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # -- holes ------------------------------------------------------------------------------

    def mend(self, reply: Reply) -> None:
        """Something is missing in this answer, or may be."""
        if reply not in self._broken:
            self._broken[reply] = asyncio.get_running_loop().time()
            self._wake.set()

    def suspect(self, replies: Iterable[Reply], now: float) -> None:
        """The subscription was away: any of these may have missed anything, its end too."""
        for reply in replies:
            if not reply.ended:
                reply.last_record = min(reply.last_record, now - self._quiet_s)
                reply.check_at = now + RECONNECTION_S
                self.mend(reply)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._broken:
                try:
                    await self._mend(list(self._broken)[:MENDED_AT_ONCE])
                except (RedisError, OSError) as error:
                    log.warning("replay_unreadable", extra={"error": repr(error)})
                self._give_up()
                if self._broken:
                    await asyncio.sleep(MEND_EVERY_S)

    async def _mend(self, broken: Sequence[Reply]) -> None:
        lacking = [reply for reply in broken if reply.lacking]
        await self._read_replays(broken)
        for reply in broken:
            if not reply.lacking:
                del self._broken[reply]
        STREAM_GAPS.labels(filled="yes").inc(sum(not reply.lacking for reply in lacking))

    def _give_up(self) -> None:
        now = asyncio.get_running_loop().time()
        for reply, since in list(self._broken.items()):
            if now - since > MEND_FOR_S:
                del self._broken[reply]
                if reply.lacking:
                    STREAM_GAPS.labels(filled="no").inc()
                    reply.end(broken_off("a part of it was lost on the way"))

    async def _read_replays(self, replies: Sequence[Reply]) -> list[Reply]:
        """Hand over what the replays have; returns those of whom they have nothing new."""
        found = await read_replays(self._redis, [(reply.id, reply.position) for reply in replies])
        now = asyncio.get_running_loop().time()
        unheard = []
        for reply, records in zip(replies, found, strict=True):
            before = reply.position
            for record in records:
                reply.feed(record, now)
            if reply.position == before:
                unheard.append(reply)
        return unheard

    # -- calls ------------------------------------------------------------------------------

    async def check(self, replies: Iterable[Reply], now: float) -> None:
        """Look for the calls of those who have heard nothing for long."""
        replies = list(replies)
        if late := [reply for reply in replies if self._is_late(reply, now)]:
            await self._give_up_late(late, now)
        silent = [reply for reply in replies if self._is_silent(reply, now)]
        for reply in silent:
            reply.check_at = now + min(now - reply.last_record, RAREST_LOOK_S)
        if not silent:
            return
        try:
            held = await self._queue.holding([reply.id for reply in silent])
            lost = [reply for reply in silent if reply.id not in held]
            if lost and (unheard := await self._read_replays(lost)):
                await self._look_for(unheard, now)
        except (RedisError, SQLAlchemyError, *TRANSIENT) as error:
            log.warning("lost_calls_not_found", extra={"error": repr(error)})

    def _is_late(self, reply: Reply, now: float) -> bool:
        """Whether this call should have been begun by now; one that is kept may take its time."""
        waits = reply.envelope is not None and not reply.ended and not reply.gone
        return waits and now - reply.start_looked_at > self._start_within_s

    async def _give_up_late(self, late: Sequence[Reply], now: float) -> None:
        """End those that no worker has; the store sees to it that none will have them later."""
        try:
            said = await self._queue.give_up([reply.id for reply in late])
        except (RedisError, OSError) as error:
            log.warning("late_calls_wait", extra={"error": repr(error)})
            return
        for reply, standing in zip(late, said, strict=True):
            if reply.ended:
                continue
            if standing == "BEGUN":
                reply.start_looked_at = now - self._start_within_s + RAREST_LOOK_S
            elif standing != "GONE":
                told = NOT_STARTED if standing == "NOT_STARTED" else LOST_AT_ONCE
                reply.end(DeadlineExceeded(told).failure(), over=True)

    def _is_silent(self, reply: Reply, now: float) -> bool:
        quiet = now - reply.last_record >= self._quiet_s and now >= reply.check_at
        return quiet and not reply.ended and not reply.gone

    async def _look_for(self, replies: Sequence[Reply], now: float) -> None:
        """Neither the queue nor a replay knows more of these: what does the database say?"""
        known = await self._known(replies)
        for reply in replies:
            call = known.get(reply.id)
            if reply.ended or reply.gone or reply.kept:  # a kept call is over when its row says so
                continue
            if call is not None and call.state != "held":
                reply.end(broken_off("it is over, but its end was lost"))
            elif reply.envelope is not None:
                await self._enqueue_again(reply, call.attempt if call is not None else 0, now)
            elif begun(reply) and now - reply.last_record > GIVEN_UP_S:
                reply.end(broken_off("its worker was lost"))

    async def _known(self, replies: Sequence[Reply]) -> Mapping[UUID, Known]:
        wanted = [(reply.id, UUID(reply.tenant_id)) for reply in replies if reply.tenant_id]
        query = select(
            col(InferenceRow.id), col(InferenceRow.attempt), col(InferenceRow.state)
        ).where(tuple_(col(InferenceRow.id), col(InferenceRow.tenant_id)).in_(wanted))
        async with self._db.everyone() as session:
            rows = (await session.execute(query)).all()
        return {row.id: Known(row.attempt, row.state) for row in rows}

    async def _enqueue_again(self, reply: Reply, attempts: int, now: float) -> None:
        """Its next attempt is numbered behind all that there may have been."""
        assert reply.envelope is not None
        log.warning("call_enqueued_again", extra={"inference_id": str(reply.id)})
        queued = await self._queue.enqueue(
            reply.envelope,
            attempts=max(attempts, reply.enqueued),
            limit=False,
            age_s=now - reply.expected_at,
        )
        if queued.result == "QUEUED":
            reply.enqueued += 1
            REENQUEUED.inc()
