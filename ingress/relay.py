"""The relay: one reply channel for the whole process, subscribed before anything is enqueued.

Records that come in are handed to the `Reply` of their inference. What the channel loses is
read again from the inference's replay; readers that come later follow the replay alone.
"""

import asyncio
import logging
from uuid import UUID, uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ingress.following import Followers
from ingress.keeping import Keeper
from ingress.reply import Reply
from shared.domain.inference import Failure
from shared.errors import DeadlineExceeded
from shared.queue import Envelope
from shared.stream import Position, unpack_records

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0


def overdue(reply: Reply) -> Failure:
    if reply.kept:
        said = (
            "The call has not ended yet. It is kept and goes on: repeat the request with its "
            f"Idempotency-Key, or read GET /v1/inferences/{reply.id}."
        )
    else:
        said = "The answer was not finished in time; what was used, if anything, is settled."
    return DeadlineExceeded(said).failure()


def is_overdue(reply: Reply, now: float, patience_s: float) -> bool:
    """Whether nobody should wait any longer.

    A kept call may wait for a worker for long, and does not end before its end is in the database:
    a client that is pinged meanwhile stays.
    """
    patient = reply.kept and reply.pings
    return now - reply.expected_at > patience_s and not reply.ended and not patient


class Relay:
    """The process's one subscription, and the replies that wait on it."""

    def __init__(
        self,
        redis: Redis,
        ping_interval_s: float,
        patience_s: float,
        stall_s: float,
        *,
        keeper: Keeper,
        followers: Followers,
    ) -> None:
        self.channel = f"ainfera:reply:{uuid4().hex}"
        self._redis = redis
        self._keeper = keeper
        self._followers = followers
        self._ping_interval_s = ping_interval_s
        self._patience_s = patience_s
        self._stall_s = stall_s
        self._replies: dict[bytes, Reply] = {}
        self._subscribed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Subscribe; returns when the store has confirmed it."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="relay"),
            asyncio.create_task(self._look_after(), name="pings"),
            asyncio.create_task(self._keep_whole(), name="keeper"),
        ]
        self._keeper.start()
        self._followers.start()
        await self._subscribed.wait()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._followers.aclose()
        await self._keeper.aclose()

    @property
    def open_replies(self) -> int:
        return len(self._replies)

    def expect(
        self,
        inference_id: UUID,
        *,
        pings: bool = False,
        envelope: Envelope | None = None,
        kept: bool = False,
    ) -> Reply:
        """A reply that hears of `inference_id` until it is forgotten.

        With its envelope, a call that is lost before its first record is enqueued again.
        """
        now = asyncio.get_running_loop().time()
        reply = Reply(inference_id.bytes, pings=pings, now=now, envelope=envelope, kept=kept)
        self._replies[inference_id.bytes] = reply
        return reply

    async def follow(
        self,
        inference_id: UUID,
        tenant_id: str,
        *,
        since: Position,
        after: Position | None = None,
        opened: bytes | None = None,
        kept: bool = False,
    ) -> Reply:
        """One more reader of a call, whoever caused it, until it is forgotten.

        It reads the replay's entries behind `since` and is given the records behind `after`.
        """
        now = asyncio.get_running_loop().time()
        reply = Reply(inference_id.bytes, pings=True, now=now, after=after, follows=True, kept=kept)
        reply.tenant_id, reply.opened = tenant_id, opened
        await self._followers.add(reply, since)
        return reply

    def forget(self, reply: Reply) -> None:
        if reply.follows:
            self._followers.forget(reply)
        elif self._replies.get(reply.inference_id) is reply:
            del self._replies[reply.inference_id]

    def everybody(self) -> list[Reply]:
        """All that wait for records, the calls' own clients and those who follow."""
        return [*self._replies.values(), *self._followers.replies]

    async def _look_after(self) -> None:
        """One timer for all replies.

        Pings for the silent, an end for those nobody answers and for clients that stall.
        """
        while True:
            await asyncio.sleep(self._ping_interval_s / 4)
            now = asyncio.get_running_loop().time()
            for reply in self.everybody():
                reply.cut_off(now, self._stall_s)
                if is_overdue(reply, now, self._patience_s):
                    reply.end(overdue(reply))
                elif now - reply.last_heard >= self._ping_interval_s * 3 / 4:
                    reply.ping(now)

    async def _keep_whole(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            await self._keeper.check(self.everybody(), asyncio.get_running_loop().time())

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(self.channel)
                    while True:
                        await self._hear(await subscription.parse_response(block=True))
            except (RedisError, OSError) as error:
                log.warning("relay_reconnects", extra={"error": repr(error)})
                await asyncio.sleep(0.2)

    async def _hear(self, response: list[object] | None) -> None:
        if response is None:
            return
        kind, message = response[0], response[-1]
        if kind == b"subscribe":
            if self._subscribed.is_set():
                self._keeper.suspect(self._replies.values(), asyncio.get_running_loop().time())
            self._subscribed.set()
        elif kind == b"message" and isinstance(message, bytes):
            now = asyncio.get_running_loop().time()
            for record in unpack_records(message):
                reply = self._replies.get(record.inference_id)
                if reply is not None:
                    reply.feed(record, now)
                    if reply.lacking:
                        self._keeper.mend(reply)
