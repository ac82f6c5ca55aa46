"""What the publisher writes beside the live channel, on a real store."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Gone
from redis.exceptions import ResponseError

from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.publisher import Line, Publisher
from shared.queue import Envelope
from shared.replay_stream import HEAD, ReplayLimits, replay_key, unpack_head
from shared.stream import Record, RecordKind, look_at_replay, read_news, read_replay, unpack_records

pytestmark = pytest.mark.asyncio(loop_scope="session")

# far longer than a test: steps end where the test says so
LIMITS = ReplayLimits(seconds=300, step_s=3600.0, max_bytes=1000)


def an_envelope() -> Envelope:
    caller = {"tenant_id": str(mint_id()), "agent_id": str(mint_id()), "policy": {}}
    return Envelope(mint_id(), mint_id(), Dialect.OPENAI, "reply", caller, 1.5, "trace", b"secret")


@pytest_asyncio.fixture(loop_scope="session")
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def publisher(redis: Redis) -> AsyncIterator[Publisher]:
    started = Publisher(redis, 0.001, LIMITS)
    started.start()
    yield started
    await started.aclose()


class Speaker:
    """One attempt's records, numbered."""

    def __init__(self, publisher: Publisher, envelope: Envelope, attempt: int = 1) -> None:
        self._publisher = publisher
        self._line: Line = publisher.open_line(envelope, attempt)
        self._id = envelope.inference_id.bytes
        self._attempt = attempt
        self.told: list[Record] = []

    def say(self, kind: RecordKind, body: bytes = b"x", *, urgent: bool = False) -> None:
        record = Record(self._id, self._attempt, kind, len(self.told), body)
        self.told.append(record)
        self._publisher.publish(self._line, [record], urgent=urgent)


async def entries(redis: Redis, inference_id: UUID) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: list[tuple[bytes, dict[bytes, bytes]]] = await redis.xrange(replay_key(inference_id))
    return found


async def until(count: int, redis: Redis, inference_id: UUID) -> None:
    async with asyncio.timeout(10):
        while len(await entries(redis, inference_id)) < count:
            await asyncio.sleep(0.005)


async def test_first_and_last_are_kept_at_once_what_comes_between_in_steps(
    redis: Redis, publisher: Publisher
) -> None:
    envelope = an_envelope()
    async with redis.pubsub(ignore_subscribe_messages=True) as live:
        await live.subscribe("reply")
        await live.get_message(timeout=5)
        speaker = Speaker(publisher, envelope)
        speaker.say(RecordKind.OPEN, urgent=True)
        await until(1, redis, envelope.inference_id)
        heard: list[Record] = []
        for n in range(3):
            speaker.say(RecordKind.DATA, b"%d" % n)
            # the live reader has each before the next is said, the replay none of them
            while heard != speaker.told:
                message = await live.get_message(timeout=5)
                assert message is not None
                heard += unpack_records(message["data"])
            assert len(await entries(redis, envelope.inference_id)) == 1
        speaker.say(RecordKind.DONE, urgent=True)
        await until(2, redis, envelope.inference_id)
    ids = [entry_id for entry_id, _ in await entries(redis, envelope.inference_id)]
    assert ids == [b"1-0", b"1-4"]
    assert await read_replay(redis, envelope.inference_id) == speaker.told


async def test_a_step_ends_by_itself(redis: Redis) -> None:
    envelope = an_envelope()
    publisher = Publisher(redis, 0.001, replace(LIMITS, step_s=0.02))
    publisher.start()
    speaker = Speaker(publisher, envelope)
    speaker.say(RecordKind.OPEN, urgent=True)
    await until(1, redis, envelope.inference_id)
    speaker.say(RecordKind.DATA)
    await until(2, redis, envelope.inference_id)
    await publisher.aclose()


async def test_what_was_gathered_is_written_at_the_end_of_the_process(redis: Redis) -> None:
    envelope = an_envelope()
    publisher = Publisher(redis, 3600.0, LIMITS)
    publisher.start()
    speaker = Speaker(publisher, envelope)
    speaker.say(RecordKind.OPEN, urgent=True)
    await until(1, redis, envelope.inference_id)
    speaker.say(RecordKind.DATA)
    await publisher.aclose()
    assert await read_replay(redis, envelope.inference_id) == speaker.told


async def test_it_says_whose_it_is_and_nothing_of_the_request(
    redis: Redis, publisher: Publisher
) -> None:
    envelope = an_envelope()
    speaker = Speaker(publisher, envelope)
    speaker.say(RecordKind.OPEN, urgent=True)
    await until(1, redis, envelope.inference_id)
    ends = await look_at_replay(redis, envelope.inference_id)
    assert ends is not None
    assert ends.head is not None
    assert b"secret" not in ends.head
    head = unpack_head(ends.head, envelope.inference_id)
    assert head.receipt_id == envelope.receipt_id
    assert (head.dialect, head.accepted_at) == (Dialect.OPENAI, 1.5)
    assert head.caller == {key: envelope.caller[key] for key in ("tenant_id", "agent_id")}
    assert await look_at_replay(redis, mint_id()) is None


async def test_it_lives_for_a_while_from_its_last_record_on(
    redis: Redis, publisher: Publisher
) -> None:
    envelope = an_envelope()
    key = replay_key(envelope.inference_id)
    speaker = Speaker(publisher, envelope)
    speaker.say(RecordKind.OPEN, urgent=True)
    await until(1, redis, envelope.inference_id)
    assert 0 < await redis.ttl(key) <= LIMITS.seconds
    await redis.expire(key, 20)
    speaker.say(RecordKind.DONE, urgent=True)
    await until(2, redis, envelope.inference_id)
    assert await redis.ttl(key) > 20


async def test_over_its_limit_the_oldest_goes_and_the_rest_says_whose_it_is(
    redis: Redis, publisher: Publisher
) -> None:
    envelope = an_envelope()
    speaker = Speaker(publisher, envelope)
    for n in range(8):
        speaker.say(RecordKind.DATA, b"%d" % n * 200, urgent=True)
        async with asyncio.timeout(10):
            while not (last := await redis.xrevrange(replay_key(envelope.inference_id), count=1)):
                await asyncio.sleep(0.005)
            while last[0][0] != b"1-%d" % n:
                last = await redis.xrevrange(replay_key(envelope.inference_id), count=1)
    kept = await entries(redis, envelope.inference_id)
    assert 1 < len(kept) < 8
    assert sum(len(fields[b"r"]) for _, fields in kept) <= LIMITS.max_bytes
    assert HEAD in kept[-1][1]
    assert await read_replay(redis, envelope.inference_id) == speaker.told[-len(kept) :]


async def test_an_attempt_that_was_overtaken_can_write_no_more(
    redis: Redis, publisher: Publisher
) -> None:
    """The store itself refuses it; what it publishes its reader ignores."""
    envelope = an_envelope()
    old, new = Speaker(publisher, envelope, 1), Speaker(publisher, envelope, 2)
    old.say(RecordKind.OPEN, urgent=True)
    await until(1, redis, envelope.inference_id)
    new.say(RecordKind.OPEN, urgent=True)
    await until(2, redis, envelope.inference_id)
    old.say(RecordKind.DATA, urgent=True)
    new.say(RecordKind.DONE, urgent=True)
    await until(3, redis, envelope.inference_id)
    assert await read_replay(redis, envelope.inference_id) == [old.told[0], *new.told]


async def test_what_is_sent_again_is_kept_once(redis: Redis) -> None:
    """The connection broke after the store had done it all: nobody can know that it had."""
    envelope = an_envelope()
    publisher = BreaksOnce(redis)
    publisher.start()
    speaker = Speaker(publisher, envelope)
    speaker.say(RecordKind.OPEN, urgent=True)
    await publisher.aclose()
    assert publisher.sent == 2
    assert await read_replay(redis, envelope.inference_id) == speaker.told


class BreaksOnce(Publisher):
    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, 0.0, LIMITS)
        self.sent = 0

    async def _send_once(self, commands: object) -> None:
        await super()._send_once(commands)  # type: ignore[arg-type]
        self.sent += 1
        if self.sent == 1:
            raise Gone("cut")


async def test_a_full_store_stops_the_replay_not_the_answer(
    redis: Redis, publisher: Publisher
) -> None:
    envelope = an_envelope()
    async with redis.pubsub(ignore_subscribe_messages=True) as live:
        await live.subscribe("reply")
        await live.get_message(timeout=5)
        await redis.config_set("maxmemory", 1)
        try:
            speaker = Speaker(publisher, envelope)
            heard: list[Record] = []
            for kind in (RecordKind.OPEN, RecordKind.DATA, RecordKind.DONE):
                speaker.say(kind, urgent=True)
                message = await live.get_message(timeout=5)
                assert message is not None
                heard += unpack_records(message["data"])
        finally:
            await redis.config_set("maxmemory", 0)
    assert heard == speaker.told
    assert await entries(redis, envelope.inference_id) == []


async def test_without_a_retention_nothing_is_kept(redis: Redis) -> None:
    envelope = an_envelope()
    publisher = Publisher(redis, 0.0, replace(LIMITS, seconds=0))
    publisher.start()
    Speaker(publisher, envelope).say(RecordKind.DONE, urgent=True)
    await publisher.aclose()
    assert await redis.keys("ainfera:events:*") == []
    assert await publisher.told_before(envelope.inference_id) == []


async def test_what_comes_after_a_record_is_read_from_there(
    redis: Redis, publisher: Publisher
) -> None:
    envelope, other = an_envelope(), an_envelope()
    speaker = Speaker(publisher, envelope)
    for n in range(3):
        speaker.say(RecordKind.DATA, urgent=True)
        await until(n + 1, redis, envelope.inference_id)
    Speaker(publisher, other).say(RecordKind.OPEN, urgent=True)
    await until(1, redis, other.inference_id)

    assert await read_replay(redis, envelope.inference_id, (1, 0)) == speaker.told[1:]
    assert await read_replay(redis, envelope.inference_id, (1, 2)) == []
    (news,) = await read_news(redis, {envelope.inference_id: (1, 1), other.inference_id: (1, 0)})
    assert (news.inference_id, news.position, news.records) == (
        envelope.inference_id,
        (1, 2),
        speaker.told[2:],
    )
    assert not news.more


async def test_another_error_of_the_store_is_not_taken_for_a_repeat(redis: Redis) -> None:
    """Only what the replay already has, or has no room for, may be let go."""
    envelope = an_envelope()
    await redis.set(replay_key(envelope.inference_id), "no stream")
    publisher = Publisher(redis, 0.0, LIMITS)
    line = publisher.open_line(envelope, 1)
    assert line.replay is not None
    line.replay.gather([b"x"], 0)
    with pytest.raises(ResponseError):
        await publisher._send_once(line.replay.take(0.0))


async def test_what_a_cut_connection_did_not_take_is_sent_again(redis: Redis) -> None:
    """Of a stream that goes on, readers see no hole; and an end is not lost."""
    envelope = an_envelope()
    publisher = Publisher(redis, 0.001, replace(LIMITS, step_s=0.0))
    publisher.start()
    speaker = Speaker(publisher, envelope)
    async with redis.pubsub(ignore_subscribe_messages=True) as live:
        await live.subscribe("reply")
        await live.get_message(timeout=5)
        heard: list[Record] = []
        for kind in (RecordKind.OPEN, RecordKind.DATA, RecordKind.DONE):
            for each in await redis.client_list(_type="normal"):
                if each["id"] != str(await redis.client_id()):
                    await redis.client_kill_filter(_id=each["id"])
            speaker.say(kind, urgent=True)
            async with asyncio.timeout(10):
                while len(heard) < len(speaker.told):
                    message = await live.get_message(timeout=0.1)
                    heard += unpack_records(message["data"]) if message else ()
    assert [record.seq for record in heard] == [0, 1, 2]
    assert await read_replay(redis, envelope.inference_id) == speaker.told
    await publisher.aclose()
