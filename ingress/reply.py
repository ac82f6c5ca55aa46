"""A reply: one client's end of one inference. Records come in, chunks for the client go out.

It keeps its order by attempt and `seq`: an older attempt is ignored, a repeat is dropped, and a
newer attempt after bytes of an older one went out ends the answer with an error, never with
text that does not belong together. After a hole nothing is passed on until it is filled.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from shared.domain.inference import Failure
from shared.errors import ProviderError
from shared.queue import Envelope
from shared.stream import Position, Record, RecordKind, number_frames, pack_failure

# what one client may leave unread before it is dropped
MAX_UNREAD_BYTES = 8 * 1024 * 1024
# what is kept of the records behind a hole; the rest is read again from the replay
MAX_AHEAD_BYTES = 1024 * 1024


def broken_off(reason: str) -> Failure:
    return ProviderError(
        f"The answer was cut off inside the gateway: {reason}. What was used is settled; "
        "the receipt says what. Send the request again."
    ).failure()


# what a client is sent next; a ping has no kind
Chunk = tuple[RecordKind | None, bytes]


class Reply:
    """One client's end of one inference: records in, chunks out.

    `envelope` is held until the first record: until then the call may have to be enqueued again.
    `after` is where a reader that comes back left off; it follows what others caused. `kept`: the
    call is durable in Postgres, and its end comes from there if from nowhere else.
    """

    def __init__(
        self,
        inference_id: bytes,
        *,
        pings: bool = False,
        now: float = 0.0,
        envelope: Envelope | None = None,
        after: Position | None = None,
        follows: bool = False,
        kept: bool = False,
    ) -> None:
        self.inference_id = inference_id
        self.pings = pings
        self.envelope = envelope
        self.enqueued = 1
        self.tenant_id: str | None = envelope.caller["tenant_id"] if envelope else None
        self.follows, self.kept = follows, kept
        self.expected_at = self.last_heard = self.last_record = self.check_at = now
        self.start_looked_at = now
        # cut off here while the call runs on, for whoever reads on elsewhere
        self.goes_on = False
        self.opened: bytes | None = None
        self.ended = self.finished = False
        self.gone = self.stalled = False
        self._attempt, had = after or (0, -1)
        self._expected = had + 1
        self._sent_data = had > 0
        self._ahead: dict[int, Record] = {}
        self._ahead_bytes = 0
        self._heard_until = -1
        self._chunks: deque[Chunk] = deque()
        self._unread = 0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[object] | None = None
        self._sending_since: float | None = None

    @property
    def id(self) -> UUID:
        return UUID(bytes=self.inference_id)

    @property
    def last_seq(self) -> int:
        """The `seq` of the newest record of this answer; -1 before the first."""
        return self._expected - 1

    @property
    def position(self) -> Position | None:
        """The newest record, as the replay is asked for what comes after it."""
        return (self._attempt, self._expected - 1) if self._attempt else None

    @property
    def lacking(self) -> bool:
        """Whether a part is missing between what was passed on and what has been heard."""
        return self._heard_until >= self._expected and not self.ended

    @property
    def streaming(self) -> bool:
        """Whether a stream has been opened towards the client."""
        return self._sender is not None

    @property
    def unread(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._unread

    def feed(self, record: Record, now: float) -> None:
        """Take one record, whatever order and however often it comes."""
        if self.ended or record.attempt < self._attempt:
            return
        self.last_record = now
        if record.attempt > self._attempt and not self._changes_to(record, now):
            return
        if record.seq < self._expected:
            if self.follows and record.kind >= RecordKind.DONE:
                self._finish(RecordKind.DONE, b"")  # this reader had the end already
            return
        if record.seq > self._expected:
            self._keep_ahead(record)
            return
        self._accept(record, now)
        while self._ahead and (following := self._ahead.pop(self._expected, None)):
            self._accept(following, now)

    def _changes_to(self, record: Record, now: float) -> bool:
        """Whether this record's attempt may go on where an older one, or none, had begun."""
        if record.kind is RecordKind.FAIL and self._attempt and self._sent_data:
            # it knows what was told and numbers itself far behind that
            self._expected = max(self._expected, record.seq)
            self._accept(record, now)
            return False
        if self._sent_data and self._attempt:
            self.end(broken_off("its worker was lost after the first token"))
            return False
        if self._attempt:
            self._expected, self.opened = 0, None
            self._forget_ahead()
            self._chunks.clear()
            self._unread = 0
        self._attempt = record.attempt
        return True

    def _keep_ahead(self, record: Record) -> None:
        self._heard_until = max(self._heard_until, record.seq)
        self._ahead[record.seq] = record
        self._ahead_bytes += len(record.body)
        if self._ahead_bytes > MAX_AHEAD_BYTES:
            self._ahead.clear()
            self._ahead_bytes = 0

    def _forget_ahead(self) -> None:
        self._ahead.clear()
        self._ahead_bytes, self._heard_until = 0, -1

    def _accept(self, record: Record, now: float) -> None:
        self._expected += 1
        self.last_heard = now
        self.envelope = None
        self._take(record)

    def _take(self, record: Record) -> None:
        if record.kind is RecordKind.OPEN:
            self.opened = record.body
        elif record.kind is RecordKind.DATA:
            self._sent_data = True
            self._put(RecordKind.DATA, number_frames(record.body, record.seq))
        elif record.kind is RecordKind.DONE:
            self._finish(RecordKind.DONE, number_frames(record.body, record.seq))
        else:
            self._finish(RecordKind.FAIL, record.body)
        self._notify()

    def _finish(self, kind: RecordKind, body: bytes) -> None:
        """The end as the worker told it."""
        self.ended = self.finished = True
        self._put(kind, body)
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

    def end(self, failure: Failure, *, over: bool = False) -> None:
        """Break the answer off; `over`: the call too is at its end, and need not be stopped."""
        self.ended = True
        self.finished = over
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
