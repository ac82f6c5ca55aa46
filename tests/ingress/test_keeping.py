"""What the wire or the queue loses, as the relay of one ingress finds it again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast
from uuid import UUID

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ingress import keeping
from ingress.following import Followers
from ingress.keeping import Keeper
from ingress.relay import Relay
from ingress.reply import MAX_AHEAD_BYTES, Chunk, Reply
from shared.config import Settings
from shared.db import Connection, Database, connect
from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.lanes import QueueKeys
from shared.queue import INFERENCE_QUEUE, Envelope, InferenceQueue
from shared.replay_stream import ReplayLimits, ReplayWriter
from shared.stream import Record, RecordKind, unpack_failure

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = ReplayLimits()


@dataclass
class Ingress:
    """A relay whose keeper looks when a test says so, and the stores it looks into."""

    redis: Redis
    queue: InferenceQueue
    keeper: Keeper
    relay: Relay

    async def looks(self, reply: Reply, seconds_later: float = 60.0) -> None:
        """What the keeper does for this reply once so much time has passed."""
        now = asyncio.get_running_loop().time()
        reply.check_at = now
        await self.keeper.check([reply], now + seconds_later)

    async def publish(self, *records: Record) -> None:
        message = b"".join(record.pack() for record in records)
        assert await self.redis.publish(self.relay.channel, message) == 1

    async def keep(self, envelope: Envelope, *records: Record) -> None:
        """Write records into the replay as a worker does, each an entry of its own."""
        writer = ReplayWriter(envelope, records[0].attempt, LIMITS)
        for record in records:
            writer.gather([record.pack()], record.seq)
            for command in writer.take(0.0):
                await self.redis.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest_asyncio.fixture(loop_scope="session")
async def ingress(settings: Settings) -> AsyncIterator[Ingress]:
    async with Redis.from_url(settings.redis_url) as redis:
        queue, db = InferenceQueue(redis), Database(settings)
        # longer than any test takes: the keeper looks when a test says so
        keeper = Keeper(redis, queue, db, start_within_s=600.0, quiet_s=30.0)
        followers = Followers(redis, 0.01)
        relay = Relay(redis, 10.0, 600.0, 120.0, keeper=keeper, followers=followers)
        await relay.start()
        yield Ingress(redis, queue, keeper, relay)
        await relay.aclose()
        await db.aclose()


def an_envelope() -> Envelope:
    caller = {"tenant_id": str(mint_id()), "agent_id": str(mint_id()), "policy": {}}
    return Envelope(mint_id(), mint_id(), Dialect.NATIVE, "nobody", caller, 1.0, "trace", b"{}")


def an_answer(envelope: Envelope, attempt: int = 1) -> list[Record]:
    """OPEN, three words, DONE."""
    id_ = envelope.inference_id.bytes
    kinds = [RecordKind.OPEN, *[RecordKind.DATA] * 3, RecordKind.DONE]
    return [
        Record(id_, attempt, kind, seq, b"data: %d\n\n" % seq) for seq, kind in enumerate(kinds)
    ]


async def to_the_end(reply: Reply) -> tuple[bytes, Chunk]:
    """All words of the answer, and how it ended."""
    words = b""
    async with asyncio.timeout(20):
        while True:
            kind, body = await reply.next()
            if kind is not RecordKind.DATA:
                return words, (kind, body)
            words += body


def gaps(filled: str) -> float:
    return REGISTRY.get_sample_value("ainfera_stream_gaps_total", {"filled": filled}) or 0.0


WORDS = b"data: 1\nid: 1\n\ndata: 2\nid: 2\n\ndata: 3\nid: 3\n\n"
END = (RecordKind.DONE, b"data: 4\nid: 4\n\n")


async def test_a_hole_is_filled_from_the_replay(ingress: Ingress) -> None:
    envelope = an_envelope()
    records = an_answer(envelope)
    reply = ingress.relay.expect(envelope.inference_id)
    before = gaps("yes")
    await ingress.publish(records[0])
    await ingress.publish(*records[3:])
    await ingress.keep(envelope, *records)
    assert await to_the_end(reply) == (WORDS, END)
    assert gaps("yes") == before + 1


async def test_a_hole_waits_for_a_replay_that_lags_behind(ingress: Ingress) -> None:
    envelope = an_envelope()
    records = an_answer(envelope)
    reply = ingress.relay.expect(envelope.inference_id)
    await ingress.keep(envelope, records[0])
    await ingress.publish(records[0], *records[3:])
    async with asyncio.timeout(10):
        while not reply.lacking:
            await asyncio.sleep(0.001)
    await asyncio.sleep(3 * keeping.MEND_EVERY_S)
    assert not reply.ended
    writer = ReplayWriter(envelope, 1, LIMITS)
    writer.gather([record.pack() for record in records[1:]], 4)
    for command in writer.take(0.0):
        await ingress.redis.execute_command(*command)  # type: ignore[no-untyped-call]
    assert await to_the_end(reply) == (WORDS, END)


async def test_a_hole_that_nothing_fills_ends_in_one_clean_error(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MEND_FOR_S", 0.1)
    envelope = an_envelope()
    records = an_answer(envelope)
    reply = ingress.relay.expect(envelope.inference_id)
    before = gaps("no")
    await ingress.publish(*records[:2], records[3])
    words, (kind, body) = await to_the_end(reply)
    assert words == b"data: 1\nid: 1\n\n"
    assert kind is RecordKind.FAIL
    assert unpack_failure(body).status == 502
    assert not reply.finished
    assert gaps("no") == before + 1


async def test_much_that_is_heard_behind_a_hole_is_read_again(ingress: Ingress) -> None:
    """It is not piled up in memory without a limit."""
    envelope = an_envelope()
    id_ = envelope.inference_id.bytes
    many = [Record(id_, 1, RecordKind.DATA, seq, b"x" * 300_000) for seq in range(1, 9)]
    records = [Record(id_, 1, RecordKind.OPEN, 0, b"{}"), *many]
    records.append(Record(id_, 1, RecordKind.DONE, 9, b"end"))
    reply = ingress.relay.expect(envelope.inference_id)
    for record in (records[0], *records[2:]):
        await ingress.publish(record)
    async with asyncio.timeout(10):
        while reply._heard_until < 9:
            await asyncio.sleep(0.001)
    assert reply._ahead_bytes <= MAX_AHEAD_BYTES
    assert sum(len(record.body) for record in reply._ahead.values()) <= MAX_AHEAD_BYTES
    await ingress.keep(envelope, *records)
    assert await to_the_end(reply) == (b"x" * 2_400_000, (RecordKind.DONE, b"end"))


async def test_after_a_reconnection_everything_unfinished_is_looked_at(ingress: Ingress) -> None:
    """Who missed the end would wait for ever: no later record shows the hole."""
    envelope = an_envelope()
    records = an_answer(envelope)
    reply = ingress.relay.expect(envelope.inference_id)
    await ingress.publish(*records[:2])
    await ingress.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
    await ingress.keep(envelope, *records)
    assert await to_the_end(reply) == (WORDS, END)


async def test_a_call_that_waits_or_runs_is_left_alone(ingress: Ingress) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.queue.enqueue(envelope)
    await ingress.looks(reply)
    assert reply.enqueued == 1
    assert not reply.ended


async def test_a_call_that_nobody_knows_is_enqueued_again_behind_all_attempts(
    ingress: Ingress,
) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    for times in (2, 3):
        await ingress.looks(reply)
        assert reply.enqueued == times
        assert await ingress.queue.holding([envelope.inference_id]) == {envelope.inference_id}
        await ingress.redis.flushdb()
    assert not reply.ended


async def test_one_look_is_for_those_who_have_heard_nothing_for_long(ingress: Ingress) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.looks(reply, seconds_later=15.0)
    assert reply.enqueued == 1


async def test_nobody_looks_for_the_call_of_a_client_that_left(settings: Settings) -> None:
    """Neither of one who left before, nor of one who leaves while the queue is asked."""

    class Watched(InferenceQueue):
        asked: list[UUID]

        async def holding(self, ids: Sequence[UUID]) -> set[UUID]:
            self.asked = list(ids)
            leaving.hang_up()
            return await super().holding(ids)

    async with Redis.from_url(settings.redis_url) as redis:
        queue, db = Watched(redis), Database(settings)
        keeper = Keeper(redis, queue, db)
        envelopes = [an_envelope(), an_envelope()]
        left, leaving = (Reply(e.inference_id.bytes, envelope=e) for e in envelopes)
        left.hang_up()
        await keeper.check([left, leaving], 60.0)
        assert queue.asked == [leaving.id]
        assert await queue.holding([e.inference_id for e in envelopes]) == set()
        await db.aclose()


async def test_words_that_are_kept_are_told_instead_of_asked_for_again(ingress: Ingress) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.keep(envelope, *an_answer(envelope))
    await ingress.looks(reply)
    assert reply.enqueued == 1
    assert await to_the_end(reply) == (WORDS, END)


async def test_a_call_that_has_begun_is_never_enqueued_again(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.publish(*an_answer(envelope)[:2])
    assert await reply.next() == (RecordKind.DATA, b"data: 1\nid: 1\n\n")
    monkeypatch.setattr(keeping, "GIVEN_UP_S", 100.0)
    await ingress.looks(reply)
    assert not reply.ended
    assert await ingress.queue.holding([envelope.inference_id]) == set()
    monkeypatch.setattr(keeping, "GIVEN_UP_S", 50.0)
    await ingress.looks(reply, seconds_later=60.0)
    _, (kind, _) = await to_the_end(reply)
    assert kind is RecordKind.FAIL


@pytest_asyncio.fixture(loop_scope="session")
async def database(superuser_url: str) -> AsyncIterator[Connection]:
    connection = await connect(superuser_url, None, "test")
    yield connection
    await connection.close()


async def known_call(database: Connection, envelope: Envelope, attempt: int, state: str) -> None:
    await database.execute(
        "INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, attempt, state,"
        " hold_state, hold_expires_at)"
        " VALUES ($1, $2, $3, false, 'native', 'm', $4, $5,"
        " CASE $5 WHEN 'held' THEN 'pending' ELSE 'voided' END, now() + interval '1 hour')",
        envelope.inference_id,
        UUID(envelope.caller["tenant_id"]),
        UUID(envelope.caller["agent_id"]),
        attempt,
        state,
    )


async def test_a_kept_call_that_is_not_queued_yet_is_not_given_up(ingress: Ingress) -> None:
    """It is accepted and will be driven into the queue: it was lost by nobody."""
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id)
    await ingress.looks(reply, 10 * keeping.GIVEN_UP_S)
    assert not reply.ended
    await ingress.publish(*an_answer(envelope))
    assert await to_the_end(reply) == (WORDS, END)


async def test_the_next_attempt_is_numbered_behind_the_database_s(
    ingress: Ingress, database: Connection
) -> None:
    envelope = an_envelope()
    await known_call(database, envelope, 5, "held")
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.looks(reply)
    job = QueueKeys(INFERENCE_QUEUE).job(str(envelope.inference_id))
    assert await cast(Awaitable[bytes], ingress.redis.hget(job, "try")) == b"5"


async def test_a_call_that_is_over_is_not_carried_out_again(
    ingress: Ingress, database: Connection
) -> None:
    envelope = an_envelope()
    await known_call(database, envelope, 1, "settled")
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.looks(reply)
    _, (kind, _) = await to_the_end(reply)
    assert kind is RecordKind.FAIL
    assert await ingress.queue.holding([envelope.inference_id]) == set()


async def test_a_database_that_is_away_is_asked_again_later(
    ingress: Ingress, make_settings: Callable[..., Settings]
) -> None:
    away = Database(make_settings(database_url="postgresql://nobody@127.0.0.1:1/nothing"))
    keeper = Keeper(ingress.redis, ingress.queue, away)
    envelope = an_envelope()
    reply = Reply(envelope.inference_id.bytes, envelope=envelope)
    await keeper.check([reply], 60.0)
    assert (reply.enqueued, reply.ended) == (1, False)
    await ingress.keeper.check([reply], 120.0)
    assert reply.enqueued == 2
    await away.aclose()


# -- calls that are not begun, and calls that may wait --------------------------------------------


async def test_a_call_that_no_worker_begins_in_time_ends_and_is_never_run(
    ingress: Ingress,
) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.queue.enqueue(envelope)
    await ingress.looks(reply, 599.0)
    assert not reply.ended
    await ingress.looks(reply, 601.0)
    kind, body = await reply.next()
    assert kind is RecordKind.FAIL
    assert unpack_failure(body).code == "deadline_exceeded"
    assert "Nothing was charged" in unpack_failure(body).message
    assert reply.finished, "there is nothing to stop"
    assert await stop_word(ingress, envelope) == b"late"


async def test_a_call_that_a_worker_has_is_waited_for(ingress: Ingress) -> None:
    envelope = an_envelope()
    reply = ingress.relay.expect(envelope.inference_id, envelope=envelope)
    await ingress.queue.enqueue(envelope)
    keys, id_ = QueueKeys(INFERENCE_QUEUE), str(envelope.inference_id)
    await cast(Awaitable[int], ingress.redis.hset(keys.job(id_), "owner", "a worker:1"))
    await ingress.redis.zadd(keys.lease, {id_: 1e18})
    await ingress.looks(reply, 601.0)
    assert not reply.ended
    assert await stop_word(ingress, envelope) is None
    assert await ingress.redis.delete(keys.lease) == 1  # lost, and nobody takes it up
    await ingress.looks(reply, 602.0)
    assert not reply.ended, "not asked for at every look"
    await ingress.looks(reply, 620.0)
    assert reply.ended


async def stop_word(ingress: Ingress, envelope: Envelope) -> bytes | None:
    job = QueueKeys(INFERENCE_QUEUE).job(str(envelope.inference_id))
    return await cast(Awaitable[bytes | None], ingress.redis.hget(job, "stop"))


async def test_who_follows_a_kept_call_stays_as_long_as_it_is_not_over(
    ingress: Ingress, database: Connection
) -> None:
    """While the store is full, or its worker is lost, nobody knows more of it than its row."""
    waits, runs = an_envelope(), an_envelope()
    await known_call(database, runs, 1, "held")
    for envelope in (waits, runs):
        id_, tenant = envelope.inference_id, envelope.caller["tenant_id"]
        reader = await ingress.relay.follow(id_, tenant, since=(0, 0), kept=True)
        await ingress.looks(reader, 100 * keeping.GIVEN_UP_S)
        assert not reader.ended
        lost = await ingress.relay.follow(id_, tenant, since=(0, 0))
        await ingress.looks(lost, 100 * keeping.GIVEN_UP_S)
        assert lost.ended


# -- readers beside the caller ------------------------------------------------------------------


async def test_a_reader_follows_from_where_it_left_off(ingress: Ingress) -> None:
    envelope = an_envelope()
    records = an_answer(envelope)
    await ingress.keep(envelope, *records[:3])
    id_, tenant = envelope.inference_id, envelope.caller["tenant_id"]
    whole = await ingress.relay.follow(id_, tenant, since=(0, 0))
    rest = await ingress.relay.follow(id_, tenant, since=(1, 2), after=(1, 2))
    await ingress.keep(envelope, *records[3:])
    assert await to_the_end(whole) == (WORDS, END)
    assert await to_the_end(rest) == (b"data: 3\nid: 3\n\n", END)


async def test_a_reader_may_come_before_the_first_word(ingress: Ingress) -> None:
    envelope = an_envelope()
    tenant = envelope.caller["tenant_id"]
    reader = await ingress.relay.follow(envelope.inference_id, tenant, since=(0, 0))
    await ingress.keep(envelope, *an_answer(envelope))
    assert await to_the_end(reader) == (WORDS, END)


async def test_a_reader_that_takes_nothing_is_given_no_more_and_holds_up_nobody(
    ingress: Ingress,
) -> None:
    envelope = an_envelope()
    id_ = envelope.inference_id.bytes
    tenant = envelope.caller["tenant_id"]
    slow = await ingress.relay.follow(envelope.inference_id, tenant, since=(0, 0))
    brisk = await ingress.relay.follow(envelope.inference_id, tenant, since=(0, 0))
    big = [Record(id_, 1, RecordKind.DATA, seq, b"x" * 1_000_000) for seq in range(1, 30)]
    taken = 0
    for record in (Record(id_, 1, RecordKind.OPEN, 0, b"{}"), *big):
        await ingress.keep(envelope, record)
        if record.seq:
            async with asyncio.timeout(10):
                taken += len((await brisk.next())[1])
    assert taken == 29_000_000
    assert not slow.gone
    assert slow.unread <= 2_000_000


async def test_a_reader_whose_replay_cannot_be_read_is_not_kept(ingress: Ingress) -> None:
    followers = Followers(Redis.from_url("redis://127.0.0.1:1"), 0.01)
    with pytest.raises(RedisError):
        await followers.add(Reply(an_envelope().inference_id.bytes, follows=True), (0, 0))
    assert list(followers.replies) == []


async def test_a_part_that_is_kept_no_more_ends_in_one_clean_error(ingress: Ingress) -> None:
    envelope = an_envelope()
    records = an_answer(envelope)
    await ingress.keep(envelope, *records[2:])
    tenant = envelope.caller["tenant_id"]
    reader = await ingress.relay.follow(envelope.inference_id, tenant, since=(0, 0))
    words, (kind, _) = await to_the_end(reader)
    assert (words, kind) == (b"", RecordKind.FAIL)


async def test_the_error_of_a_later_attempt_comes_after_all_that_was_told(
    ingress: Ingress,
) -> None:
    """The lost attempt may have told more than is kept; who has it hears the error all the same."""
    envelope = an_envelope()
    records = an_answer(envelope)
    lost = replace(records[-1], attempt=2, kind=RecordKind.FAIL, seq=1_000_002, body=b"lost")
    await ingress.keep(envelope, *records[:3])
    await ingress.keep(envelope, lost)
    tenant = envelope.caller["tenant_id"]
    for after, words in ((1, b"data: 2\nid: 2\n\n"), (2, b""), (3, b"")):
        reader = await ingress.relay.follow(
            envelope.inference_id, tenant, since=(1, after), after=(1, after)
        )
        assert await to_the_end(reader) == (words, (RecordKind.FAIL, lost.body))
        assert reader.finished
