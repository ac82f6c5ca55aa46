"""The relay keeps an answer in one piece, or ends it."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from ingress.relay import MAX_UNREAD_BYTES, Relay, Reply
from shared.stream import Record, RecordKind, unpack_failure, unpack_records

ID = uuid4().bytes


def record(kind: RecordKind, seq: int, body: bytes = b"", attempt: int = 1) -> Record:
    return Record(ID, attempt, kind, seq, body)


def told(*records: Record) -> Reply:
    reply = Reply(ID)
    for one in records:
        reply.feed(one, now=0.0)
    return reply


async def drain(reply: Reply) -> list[tuple[RecordKind, bytes]]:
    found = []
    while (chunk := await reply.next(0.01)) is not None:
        found.append(chunk)
        if chunk[0] is not RecordKind.DATA:
            break
    return found


async def test_an_answer_comes_whole_and_its_frames_bear_the_seq_to_resume_after() -> None:
    reply = told(
        record(RecordKind.OPEN, 0, b"{}"),
        record(RecordKind.DATA, 1, b"data: a\n\n"),
        record(RecordKind.DATA, 2, b"data: b\n\n"),
        record(RecordKind.DONE, 3, b"data: c\n\n"),
    )
    assert reply.opened == b"{}"
    assert await drain(reply) == [
        (RecordKind.DATA, b"data: a\nid: 1\n\ndata: b\nid: 2\n\n"),
        (RecordKind.DONE, b"data: c\nid: 3\n\n"),
    ]


async def test_a_hole_ends_the_answer_with_an_error() -> None:
    reply = told(record(RecordKind.OPEN, 0, b"{}"), record(RecordKind.DATA, 2, b"data: b\n\n"))
    kind, body = (await drain(reply))[-1]
    assert kind is RecordKind.FAIL
    assert unpack_failure(body).status == 502


async def test_a_repeat_is_dropped() -> None:
    one = record(RecordKind.DATA, 1, b"data: a\n\n")
    reply = told(record(RecordKind.OPEN, 0, b"{}"), one, one, record(RecordKind.DONE, 2))
    assert [kind for kind, _ in await drain(reply)] == [RecordKind.DATA, RecordKind.DONE]


async def test_another_attempt_may_take_over_only_before_the_first_word() -> None:
    fresh = told(
        record(RecordKind.OPEN, 0, b"first", attempt=1),
        record(RecordKind.OPEN, 0, b"second", attempt=2),
        record(RecordKind.DATA, 1, b"data: late\n\n", attempt=1),
        record(RecordKind.DATA, 1, b"data: b\n\n", attempt=2),
        record(RecordKind.DONE, 2, attempt=2),
    )
    assert fresh.opened == b"second"
    assert (await drain(fresh))[0] == (RecordKind.DATA, b"data: b\nid: 1\n\n")

    spoken = told(
        record(RecordKind.OPEN, 0, b"first", attempt=1),
        record(RecordKind.DATA, 1, b"data: a\n\n", attempt=1),
        record(RecordKind.OPEN, 0, b"second", attempt=2),
        record(RecordKind.DATA, 1, b"data: b\n\n", attempt=2),
    )
    chunks = await drain(spoken)
    assert chunks[0] == (RecordKind.DATA, b"data: a\nid: 1\n\n")
    assert chunks[1][0] is RecordKind.FAIL
    assert len(chunks) == 2


async def test_a_client_that_does_not_read_is_dropped_alone() -> None:
    reply = told(
        record(RecordKind.OPEN, 0, b"{}"), record(RecordKind.DATA, 1, b"x" * (MAX_UNREAD_BYTES + 1))
    )
    with pytest.raises(ConnectionAbortedError):
        await reply.next(0.01)


async def test_silence_is_told_apart_from_the_end() -> None:
    reply = Reply(ID)
    assert not await reply.wait_opened(0.01)
    assert await reply.next(0.01) is None


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 2**32 - 1)), max_size=8))
def test_records_survive_the_wire(parts: list[tuple[bytes, int]]) -> None:
    records = [Record(ID, 1, RecordKind.DATA, seq, body) for body, seq in parts]
    assert list(unpack_records(b"".join(one.pack() for one in records))) == records


@pytest_asyncio.fixture(loop_scope="session")
async def relay(redis_url: str) -> AsyncIterator[Relay]:
    redis = Redis.from_url(redis_url)
    relay = Relay(redis)
    await relay.start()
    yield relay
    await relay.aclose()
    await redis.aclose()


async def test_the_subscription_stands_before_anything_is_published(
    relay: Relay, redis_url: str
) -> None:
    redis = Redis.from_url(redis_url)
    inference_id = uuid4()
    reply = relay.expect(inference_id)
    heard = await redis.publish(
        relay.channel,
        Record(inference_id.bytes, 1, RecordKind.OPEN, 0, b"{}").pack()
        + Record(inference_id.bytes, 1, RecordKind.DONE, 1, b"body").pack(),
    )
    assert heard == 1
    assert await reply.next(5) == (RecordKind.DONE, b"body")
    relay.forget(reply)
    assert relay.open_replies == 0
    await redis.aclose()
