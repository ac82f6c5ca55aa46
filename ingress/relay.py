"""The relay: one reply channel for the whole process, subscribed before anything is enqueued.

Records that come in are handed to the `Reply` of their inference. A reply keeps its order
by attempt and `seq`: an older attempt is ignored, a repeat is dropped, and a hole, or a newer
attempt after bytes of an older one went out, ends the answer with an error, never with
text that does not belong together.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.domain.inference import Failure
from shared.errors import DeadlineExceeded, ProviderError
from shared.stream import Record, RecordKind, number_frames, pack_failure, unpack_records

log = logging.getLogger(__name__)

# what one client may leave unread before it is dropped
MAX_UNREAD_BYTES = 8 * 1024 * 1024


def _broken_off(reason: str) -> Failure:
    return ProviderError(
        f"The answer was cut off inside the gateway: {reason}. What was used is settled; "
        "the receipt says what. Send the request again."
    ).failure()


def overdue() -> Failure:
    return DeadlineExceeded(
        "The answer was not finished in time; what was used is settled."
    ).failure()


# what a client is sent next; a ping has no kind
Chunk = tuple[RecordKind | None, bytes]


class Reply:
    """One client's end of one inference: records in, chunks out."""

    def __init__(self, inference_id: bytes, *, pings: bool = False, now: float = 0.0) -> None:
        self.inference_id = inference_id
        self.pings = pings
        self.expected_at = self.last_heard = now
        self.opened: bytes | None = None
        self.ended = self.finished = False
        self.gone = self.stalled = False
        self._attempt = 0
        self._expected = 0
        self._sent_data = False
        self._chunks: deque[Chunk] = deque()
        self._unread = 0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[object] | None = None
        self._sending_since: float | None = None

    @property
    def next_seq(self) -> int:
        """The `seq` that the next record of this answer would bear."""
        return self._expected

    def feed(self, record: Record, now: float) -> None:
        """Take one record, whatever order and however often it comes."""
        if self.ended or record.attempt < self._attempt:
            return
        if record.attempt > self._attempt:
            if self._sent_data:
                self.end(_broken_off("its worker was lost after the first token"))
                return
            self._attempt, self._expected, self.opened = record.attempt, 0, None
            self._chunks.clear()
        if record.seq < self._expected:
            return
        if record.seq > self._expected:
            self.end(_broken_off("a part of it was lost on the way"))
            return
        self._expected += 1
        self.last_heard = now
        self._take(record)

    def _take(self, record: Record) -> None:
        if record.kind is RecordKind.OPEN:
            self.opened = record.body
        elif record.kind is RecordKind.DATA:
            self._sent_data = True
            self._put(RecordKind.DATA, number_frames(record.body, record.seq))
        elif record.kind is RecordKind.DONE:
            self.ended = self.finished = True
            self._put(RecordKind.DONE, number_frames(record.body, record.seq))
        else:
            self.ended = self.finished = True
            self._put(RecordKind.FAIL, record.body)
        self._notify()

    def ping(self, now: float) -> None:
        """Nothing came for long: let the client hear that somebody is still there."""
        if self.pings and not self.ended and not self._chunks:
            self.last_heard = now
            self._put(None, b"")
            self._notify()

    def _put(self, kind: RecordKind | None, body: bytes) -> None:
        self._chunks.append((kind, body))
        self._unread += len(body)
        if self._unread > MAX_UNREAD_BYTES:
            self.hang_up()

    def end(self, failure: Failure) -> None:
        """Break the answer off."""
        self.ended = True
        self._put(RecordKind.FAIL, pack_failure(failure))
        self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hang_up(self) -> None:
        """The client is gone, or too slow to be kept."""
        self.gone = True
        self._chunks.clear()
        self._notify()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around all that is sent of a stream, by one task.

        Raises `ConnectionAbortedError` if the client stalled and was cut off.
        """
        self._sender = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if not self.stalled or self._sender is None:
                raise
            self._sender.uncancel()
            raise ConnectionAbortedError from None
        finally:
            self._sender = None

    def sends(self) -> None:
        """A chunk is handed to the client's connection, which may take its time."""
        self._sending_since = self._loop.time()

    def sent(self) -> None:
        self._sending_since = None

    def cut_off(self, now: float, patience_s: float) -> None:
        """Let go of a client that has not taken a chunk for `patience_s`."""
        since = self._sending_since
        if since is not None and now - since > patience_s and self._sender is not None:
            self.stalled = True
            self.hang_up()
            self._sender.cancel()

    async def _news(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def wait_opened(self) -> None:
        """Wait until it is known what the answer will be, or for the first ping."""
        while self.opened is None and not self._chunks and not self.gone:
            await self._news()

    async def next(self) -> Chunk:
        """The next chunk, joined with those behind it.

        Raises `ConnectionAbortedError` once the client is gone.
        """
        while not self._chunks:
            if self.gone:
                raise ConnectionAbortedError
            await self._news()
        kind, body = self._chunks.popleft()
        self._unread -= len(body)
        if kind is not RecordKind.DATA or not self._chunks:
            return kind, body
        parts = [body]
        while self._chunks and self._chunks[0][0] is RecordKind.DATA:
            parts.append(self._chunks.popleft()[1])
            self._unread -= len(parts[-1])
        return kind, b"".join(parts)


class Relay:
    """The process's one subscription, and the replies that wait on it."""

    def __init__(
        self, redis: Redis, ping_interval_s: float, patience_s: float, stall_s: float
    ) -> None:
        self.channel = f"ainfera:reply:{uuid4().hex}"
        self._redis = redis
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
        ]
        await self._subscribed.wait()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open_replies(self) -> int:
        return len(self._replies)

    def expect(self, inference_id: UUID, *, pings: bool = False) -> Reply:
        """A reply that hears of `inference_id` until it is forgotten."""
        now = asyncio.get_running_loop().time()
        reply = self._replies[inference_id.bytes] = Reply(inference_id.bytes, pings=pings, now=now)
        return reply

    def forget(self, reply: Reply) -> None:
        if self._replies.get(reply.inference_id) is reply:
            del self._replies[reply.inference_id]

    async def _look_after(self) -> None:
        """One timer for all replies.

        Pings for the silent, an end for those nobody answers and for clients that stall.
        """
        while True:
            await asyncio.sleep(self._ping_interval_s / 4)
            now = asyncio.get_running_loop().time()
            for reply in list(self._replies.values()):
                reply.cut_off(now, self._stall_s)
                if now - reply.expected_at > self._patience_s and not reply.ended:
                    reply.end(overdue())
                elif now - reply.last_heard >= self._ping_interval_s * 3 / 4:
                    reply.ping(now)

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
            self._subscribed.set()
        elif kind == b"message" and isinstance(message, bytes):
            now = asyncio.get_running_loop().time()
            for record in unpack_records(message):
                reply = self._replies.get(record.inference_id)
                if reply is not None:
                    reply.feed(record, now)
