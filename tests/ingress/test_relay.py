"""The relay keeps an answer in one piece, or ends it."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from ingress.answers import as_header
from ingress.following import Followers
from ingress.keeping import Keeper
from ingress.relay import Relay
from ingress.reply import MAX_UNREAD_BYTES, Chunk, Reply, broken_off
from shared.config import Settings
from shared.db import Database
from shared.queue import InferenceQueue
from shared.stream import Record, RecordKind, unpack_failure, unpack_records

ID = uuid4().bytes


def record(kind: RecordKind, seq: int, body: bytes = b"", attempt: int = 1) -> Record:
    return Record(ID, attempt, kind, seq, body)


def told(*records: Record) -> Reply:
    reply = Reply(ID)
    for one in records:
        reply.feed(one, now=0.0)
    return reply


async def drain(reply: Reply) -> list[Chunk]:
    found = []
    while True:
        async with asyncio.timeout(5):
            found.append(await reply.next())
        if found[-1][0] is not RecordKind.DATA:
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


async def test_after_a_hole_nothing_is_passed_on_until_it_is_filled() -> None:
    reply = told(
        record(RecordKind.OPEN, 0, b"{}"),
        record(RecordKind.DATA, 2, b"data: b\n\n"),
        record(RecordKind.DONE, 3, b"data: c\n\n"),
    )
    assert reply.lacking
    assert not reply.ended
    reply.feed(record(RecordKind.DATA, 1, b"data: a\n\n"), now=0.0)
    assert not reply.lacking
    assert await drain(reply) == [
        (RecordKind.DATA, b"data: a\nid: 1\n\ndata: b\nid: 2\n\n"),
        (RecordKind.DONE, b"data: c\nid: 3\n\n"),
    ]


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
        await reply.next()


async def test_a_silent_stream_is_pinged_and_a_folded_answer_never_is() -> None:
    stream, folded = Reply(ID, pings=True), Reply(ID)
    for reply in (stream, folded):
        reply.ping(now=7.0)
        reply.ping(now=8.0)
    await stream.wait_opened()
    assert stream.opened is None
    assert await stream.next() == (None, b"")
    folded.feed(record(RecordKind.FAIL, 0, b"broken"), now=9.0)
    stream.feed(record(RecordKind.FAIL, 0, b"broken"), now=9.0)
    assert await folded.next() == (RecordKind.FAIL, b"broken")
    assert await stream.next() == (RecordKind.FAIL, b"broken")


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 2**32 - 1)), max_size=8))
def test_records_survive_the_wire(parts: list[tuple[bytes, int]]) -> None:
    records = [Record(ID, 1, RecordKind.DATA, seq, body) for body, seq in parts]
    assert list(unpack_records(b"".join(one.pack() for one in records))) == records


@pytest_asyncio.fixture(loop_scope="session")
async def relay(settings: Settings) -> AsyncIterator[Relay]:
    redis = Redis.from_url(settings.redis_url)
    db = Database(settings)
    relay = Relay(
        redis,
        ping_interval_s=0.04,
        patience_s=0.2,
        stall_s=0.2,
        keeper=Keeper(redis, InferenceQueue(redis), db),
        followers=Followers(redis, 0.01),
    )
    await relay.start()
    yield relay
    await relay.aclose()
    await db.aclose()
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
    assert await reply.next() == (RecordKind.DONE, b"body")
    relay.forget(reply)
    assert relay.open_replies == 0
    await redis.aclose()


async def test_an_answer_that_nobody_gives_ends_in_pings_and_an_error(relay: Relay) -> None:
    reply = relay.expect(uuid4(), pings=True)
    async with asyncio.timeout(10):
        assert await reply.next() == (None, b"")
        while (chunk := await reply.next()) == (None, b""):
            pass
    assert chunk[0] is RecordKind.FAIL
    assert unpack_failure(chunk[1]).code == "deadline_exceeded"


async def test_an_answer_that_the_relay_breaks_off_is_not_finished() -> None:
    """Its worker does not know, so it has to be told to stop."""
    broken = told(record(RecordKind.OPEN, 0, b"{}"))
    broken.end(broken_off("a test breaks it"))
    assert broken.ended
    assert not broken.finished
    whole = told(record(RecordKind.OPEN, 0, b"{}"), record(RecordKind.DONE, 1, b"body"))
    assert whole.ended
    assert whole.finished


async def test_a_repeat_with_other_words_is_dropped_too() -> None:
    reply = told(
        record(RecordKind.OPEN, 0, b"{}"),
        record(RecordKind.DATA, 1, b"data: a\n\n"),
        record(RecordKind.DATA, 1, b"data: again\n\n"),
        record(RecordKind.DONE, 2, b"data: c\n\n"),
    )
    assert await drain(reply) == [
        (RecordKind.DATA, b"data: a\nid: 1\n\n"),
        (RecordKind.DONE, b"data: c\nid: 2\n\n"),
    ]


def test_names_that_a_client_chose_cannot_end_a_header() -> None:
    header = as_header(["top_k", "x\r\nset-cookie: y", "日本", "z" * 5000])
    assert header.startswith("top_k,x%0D%0Aset-cookie")
    assert header.isascii()
    assert len(header) < 4096


async def test_a_client_that_takes_nothing_is_cut_off(relay: Relay) -> None:
    """Its connection holds the sender for ever; the relay's timer lets go of it."""
    reply = relay.expect(uuid4())

    async def send() -> None:
        with reply.sending():
            reply.sends()
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ConnectionAbortedError):
        await send()
    assert reply.gone
    current = asyncio.current_task()
    assert current is not None
    assert not current.cancelling()


async def test_a_slow_client_that_takes_every_chunk_is_kept(relay: Relay) -> None:
    reply = relay.expect(uuid4())
    with reply.sending():
        reply.sends()
        reply.sent()
        reply.cut_off(now=asyncio.get_running_loop().time() + 1e6, patience_s=1.0)
        await asyncio.sleep(0)
    assert not reply.gone


async def test_a_cancellation_from_elsewhere_is_not_taken_for_a_stall(relay: Relay) -> None:
    reply = relay.expect(uuid4())

    async def send() -> None:
        with reply.sending():
            await asyncio.get_running_loop().create_future()

    sender = asyncio.create_task(send())
    await asyncio.sleep(0)
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender
