"""The wire between a worker and the ingress that holds the client.

A worker publishes records on the reply channel of that ingress. Each record bears the
inference's id, the attempt that made it and its `seq` within the attempt, from 0, so that
a hole is seen and never passed on. Many records travel in one message.
"""

import asyncio
import logging
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from shared.domain.inference import DONE_FRAME, Failure, Frame

log = logging.getLogger(__name__)

_HEAD = struct.Struct(">16sBBII")  # inference id, attempt, kind, seq, length of the body


class RecordKind(IntEnum):
    """`OPEN` says what the answer will be; `DATA` and `DONE` hold bytes for the client.

    A streamed answer is OPEN, DATA…, DONE; a folded one OPEN, DONE with the whole body.
    FAIL may come first (then it decides the HTTP status) or end a stream.
    """

    OPEN = 0
    DATA = 1
    DONE = 2
    FAIL = 3


@dataclass(frozen=True, slots=True)
class Record:
    inference_id: bytes
    attempt: int
    kind: RecordKind
    seq: int
    body: bytes

    def pack(self) -> bytes:
        return (
            _HEAD.pack(self.inference_id, self.attempt, self.kind, self.seq, len(self.body))
            + self.body
        )


def unpack_records(message: bytes) -> Iterator[Record]:
    """The records of one message, in order."""
    at, end = 0, len(message)
    while at < end:
        inference_id, attempt, kind, seq, length = _HEAD.unpack_from(message, at)
        at += _HEAD.size
        yield Record(inference_id, attempt, RecordKind(kind), seq, message[at : at + length])
        at += length


def encode_frame(frame: Frame) -> bytes:
    """One SSE frame as bytes, with an `event:` line where the dialect names its events."""
    name, data = frame
    if frame == DONE_FRAME:
        return b"data: [DONE]\n\n"
    if name is None:
        return b"data: " + orjson.dumps(data) + b"\n\n"
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def encode_frames(frames: Iterable[Frame]) -> bytes:
    return b"".join([encode_frame(frame) for frame in frames])


def decode_frames(frames: bytes) -> Iterator[Frame]:
    """The reverse, for whole frames separated by blank lines; comments and pings are skipped."""
    for block in frames.replace(b"\r\n", b"\n").split(b"\n\n"):
        name, data = None, []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"event":
                name = value.strip().decode()
            elif field == b"data":
                data.append(value[1:] if value.startswith(b" ") else value)
        joined = b"\n".join(data)
        if joined == b"[DONE]":
            yield DONE_FRAME
        elif joined:
            yield name, orjson.loads(joined)


def number_frames(frames: bytes, seq: int) -> bytes:
    """The same frames with `id: seq` in the last of them: what a client resumes after."""
    return frames[:-1] + b"id: %d\n\n" % seq if frames.endswith(b"\n\n") else frames


def pack_failure(failure: Failure) -> bytes:
    return orjson.dumps(
        {
            "code": failure.code,
            "status": failure.status,
            "message": failure.message,
            "detail": failure.detail,
            "retry_after": failure.retry_after,
            "retryable": failure.retryable,
        }
    )


def unpack_failure(packed: bytes) -> Failure:
    return Failure(**orjson.loads(packed))


class Publisher:
    """A worker's end: one flusher for the whole process.

    The first record of an answer and the last never wait; what comes between waits up to
    `coalesce_s` for company, because a publish costs far more than a record in it.
    """

    def __init__(self, redis: Redis, coalesce_s: float) -> None:
        self._redis = redis
        self._coalesce_s = coalesce_s
        self._waiting: dict[str, list[bytes]] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def aclose(self) -> None:
        """Send what waits, then stop."""
        if self._task is None:
            return
        self._wake.set()
        await self._idle.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def publish(self, channel: str, records: Iterable[Record], *, urgent: bool) -> None:
        """Hand records over in order; they are sent in order, per channel, soon."""
        self._waiting.setdefault(channel, []).extend([record.pack() for record in records])
        self._idle.clear()
        if urgent or not self._coalesce_s:
            self._wake.set()
        elif self._timer is None and not self._wake.is_set():
            self._timer = asyncio.get_running_loop().call_later(self._coalesce_s, self._wake.set)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            messages, self._waiting = self._waiting, {}
            if messages:
                await self._send({channel: b"".join(parts) for channel, parts in messages.items()})
            if not self._waiting:
                self._idle.set()

    async def _send(self, messages: dict[str, bytes]) -> None:
        """Publish, trying for a while; then let go: a reader sees the gap in `seq`."""
        try:
            await self._send_once(messages)
        except (RedisError, OSError):
            await self._send_again(messages)

    async def _send_again(self, messages: dict[str, bytes]) -> None:
        """The same with patience. A message that comes twice is told apart by its `seq`."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((RedisError, OSError)),
            stop=stop_after_delay(10),
            wait=wait_exponential(multiplier=0.05, max=1),
            reraise=True,
        )
        try:
            await retrying(self._send_once, messages)
        except (RedisError, OSError) as error:
            log.error("publish_failed", extra={"messages": len(messages), "error": repr(error)})

    async def _send_once(self, messages: dict[str, bytes]) -> None:
        if len(messages) == 1:
            ((channel, message),) = messages.items()
            await self._redis.publish(channel, message)
            return
        pipeline = self._redis.pipeline(transaction=False)
        for channel, message in messages.items():
            pipeline.publish(channel, message)
        await pipeline.execute()
