"""The wire between a worker and whoever reads its answers.

A worker publishes records on the reply channel of the ingress that holds the client. Each
record bears the inference's id, the attempt that made it and its `seq` within the attempt,
from 0, so that a hole is seen and never passed on. Many records travel in one message.

The same records go into the inference's replay (`shared/replay_stream.py`), a little later: from it
a hole is filled, and other readers follow.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

import orjson
from redis.asyncio import Redis

from shared.domain.inference import DONE_FRAME, Failure, Frame
from shared.replay_stream import (
    FOLLOWED_S,
    HEAD,
    RECORDS,
    followed_key,
    replay_key,
)

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


ENTRIES_AT_ONCE = 64

# (attempt, seq) of the last record that a reader has; it wants what comes after
Position = tuple[int, int]


async def read_replay(
    redis: Redis, inference_id: UUID, after: Position | None = None
) -> list[Record]:
    """What the replay holds of an inference after a record of it, in order; from its start.

    Empty if there is no replay, or nothing new in it. May begin before `after`: an entry comes
    whole.
    """
    (found,) = await read_replays(redis, [(inference_id, after)])
    return found


async def read_replays(
    redis: Redis, wanted: Sequence[tuple[UUID, Position | None]]
) -> list[list[Record]]:
    """The same for many inferences, in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    for inference_id, after in wanted:
        since = "-" if after is None else f"{after[0]}-{after[1] + 1}"
        pipeline.xrange(replay_key(inference_id), min=since)
    answers: list[list[tuple[bytes, dict[bytes, bytes]]]] = await pipeline.execute()
    return [
        [record for _, entry in entries for record in unpack_records(entry[RECORDS])]
        for entries in answers
    ]


@dataclass(frozen=True, slots=True)
class News:
    """What a replay has to say after some entry of it; `position` is its last entry's id."""

    inference_id: UUID
    position: Position
    records: list[Record]
    more: bool


async def read_news(redis: Redis, since: Mapping[UUID, Position]) -> list[News]:
    """The next entries of many replays, in one round trip; only those that have any.

    A position is the id of the last entry that was read: `(attempt, seq)`.
    """
    streams = {replay_key(id_): f"{at[0]}-{at[1]}" for id_, at in since.items()}
    by_key = {replay_key(id_).encode(): id_ for id_ in since}
    news = []
    for key, entries in await redis.xread(streams, count=ENTRIES_AT_ONCE):  # type: ignore[arg-type]
        attempt, _, seq = entries[-1][0].partition(b"-")
        records = [record for _, entry in entries for record in unpack_records(entry[RECORDS])]
        more = len(entries) == ENTRIES_AT_ONCE
        news.append(News(by_key[key], (int(attempt), int(seq)), records, more))
    return news


async def note_follower(redis: Redis, inference_id: UUID) -> None:
    """Say that somebody reads these events, before the first of them is read."""
    await redis.set(followed_key(inference_id), 1, ex=FOLLOWED_S)


@dataclass(frozen=True, slots=True)
class ReplayEnds:
    """The first and the last entry of a replay; `head` says whose it is, as `unpack_head` does."""

    first: list[Record]
    last: list[Record]
    head: bytes | None


async def look_at_replay(redis: Redis, inference_id: UUID) -> ReplayEnds | None:
    """Whether there is a replay, whose it is and how far it goes; one round trip."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.xrange(replay_key(inference_id), count=1)
    pipeline.xrevrange(replay_key(inference_id), count=1)
    first, last = await pipeline.execute()
    if not first or not last:
        return None
    begins, ends = first[0][1], last[0][1]
    return ReplayEnds(
        list(unpack_records(begins[RECORDS])),
        list(unpack_records(ends[RECORDS])),
        begins.get(HEAD) or ends.get(HEAD),
    )
