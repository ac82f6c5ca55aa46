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
from shared.errors import ProviderError
from shared.stream import Record, RecordKind, number_frames, pack_failure, unpack_records

log = logging.getLogger(__name__)

# what one client may leave unread before it is dropped
MAX_UNREAD_BYTES = 8 * 1024 * 1024


def _broken_off(reason: str) -> Failure:
    return ProviderError(
        f"The answer was cut off inside the gateway: {reason}. What was used is settled; "
        "the receipt says what. Send the request again."
    ).failure()


class Reply:
    """One client's end of one inference: records in, chunks out."""

    def __init__(self, inference_id: bytes) -> None:
        self.inference_id = inference_id
        self.opened: bytes | None = None
        self.ended = False
        self.gone = False
        self._attempt = 0
        self._expected = 0
        self._sent_data = False
        self._chunks: deque[tuple[RecordKind, bytes]] = deque()
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self.last_heard = 0.0

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
                self._end(_broken_off("its worker was lost after the first token"))
                return
            self._attempt, self._expected, self.opened = record.attempt, 0, None
            self._chunks.clear()
        if record.seq < self._expected:
            return
        if record.seq > self._expected:
            self._end(_broken_off("a part of it was lost on the way"))
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
            self.ended = True
            self._put(RecordKind.DONE, number_frames(record.body, record.seq))
        else:
            self.ended = True
            self._put(RecordKind.FAIL, record.body)
        self._notify()

    def _put(self, kind: RecordKind, body: bytes) -> None:
        self._chunks.append((kind, body))
        self._unread += len(body)
        if self._unread > MAX_UNREAD_BYTES:
            self.hang_up()

    def _end(self, failure: Failure) -> None:
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

    async def _news(self, timeout: float | None) -> bool:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if timeout is None:
                await self._waiter
            else:
                async with asyncio.timeout(timeout):
                    await self._waiter
        except TimeoutError:
            return False
        finally:
            self._waiter = None
        return True

    async def wait_opened(self, timeout: float) -> bool:
        """Wait until it is known what the answer will be; False if `timeout` seconds passed."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.opened is None and not self._chunks and not self.gone:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await self._news(left):
                return self.opened is not None or bool(self._chunks) or self.gone
        return True

    async def next(self, timeout: float | None) -> tuple[RecordKind, bytes] | None:
        """The next chunk, joined with those behind it; None after `timeout` seconds of silence.

        Raises `ConnectionAbortedError` once the client is gone.
        """
        while not self._chunks:
            if self.gone:
                raise ConnectionAbortedError
            if not await self._news(timeout):
                return None
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

    def __init__(self, redis: Redis) -> None:
        self.channel = f"ainfera:reply:{uuid4().hex}"
        self._redis = redis
        self._replies: dict[bytes, Reply] = {}
        self._subscribed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe; returns when the store has confirmed it."""
        self._task = asyncio.create_task(self._listen(), name="relay")
        await self._subscribed.wait()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def open_replies(self) -> int:
        return len(self._replies)

    @contextmanager
    def reply(self, inference_id: UUID) -> Iterator[Reply]:
        """A reply that hears of `inference_id` until the block ends."""
        reply = self.expect(inference_id)
        try:
            yield reply
        finally:
            self.forget(reply)

    def expect(self, inference_id: UUID) -> Reply:
        reply = self._replies[inference_id.bytes] = Reply(inference_id.bytes)
        return reply

    def forget(self, reply: Reply) -> None:
        self._replies.pop(reply.inference_id, None)

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
