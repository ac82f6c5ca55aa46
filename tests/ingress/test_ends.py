"""Clients that wait for the end of a kept call, wherever it runs."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from ingress.ends import Ends, tell
from ingress.following import Followers
from ingress.keeping import Keeper
from ingress.relay import Relay
from ingress.reply import Reply
from shared.config import Settings
from shared.db import Database
from shared.errors import ProviderError
from shared.kept import KeptCalls, KeptResult
from shared.queue import InferenceQueue
from shared.stream import Record, RecordKind, pack_failure, unpack_failure

pytestmark = pytest.mark.asyncio(loop_scope="session")


def told(inference_id: UUID, *kinds: RecordKind, attempt: int = 1) -> KeptResult:
    records = [
        Record(inference_id.bytes, attempt, kind, seq, b'data: "%d"\n\n' % seq)
        for seq, kind in enumerate(kinds)
    ]
    return KeptResult(b"".join(record.pack() for record in records))


def waiting(inference_id: UUID) -> Reply:
    return Reply(inference_id.bytes, now=asyncio.get_running_loop().time())


class Table:
    """What the database would say: states by call, results of those that are done."""

    def __init__(self) -> None:
        self.known: dict[UUID, str] = {}
        self.results: dict[UUID, KeptResult] = {}
        self.looks: list[int] = []
        self.away = False

    async def states(self, wanted: Mapping[UUID, UUID]) -> dict[UUID, str]:
        self.looks.append(len(wanted))
        if self.away:
            raise OSError("gone")
        return {each: self.known[each] for each in wanted if each in self.known}

    async def result(self, inference_id: UUID, _: UUID) -> KeptResult | None:
        return self.results.get(inference_id)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def ends(table: Table, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Ends:
    monkeypatch.setattr("ingress.ends.LOOKS_EVERY_S", 0.001)
    return Ends(cast(KeptCalls, table), settings, patience_s=60)


async def until(look: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0.001)


async def all_of(reply: Reply) -> list[tuple[RecordKind | None, bytes]]:
    chunks: list[tuple[RecordKind | None, bytes]] = []
    async with asyncio.timeout(10):
        while not chunks or chunks[-1][0] not in (RecordKind.DONE, RecordKind.FAIL):
            chunks.append(await reply.next())
    return chunks


async def test_all_who_wait_are_told_the_same_when_the_call_has_ended(
    ends: Ends, table: Table
) -> None:
    inference_id = uuid4()
    table.known[inference_id] = "accepted"
    replies = [waiting(inference_id) for _ in range(3)]
    ends.start()
    for reply in replies:
        ends.wait_for(reply, inference_id, uuid4(), alone=True)
    await until(lambda: len(table.looks) > 2)
    assert not any(reply.ended for reply in replies)
    kinds = (RecordKind.OPEN, RecordKind.DATA, RecordKind.DATA, RecordKind.DONE)
    table.results[inference_id] = told(inference_id, *kinds)
    table.known[inference_id] = "done"
    heard = [await all_of(reply) for reply in replies]
    assert heard[0] == heard[1] == heard[2]
    assert b"".join(body for _, body in heard[0]).count(b"id: ") == 3
    # one query for all three, and none once nobody waits
    assert set(table.looks) == {1}
    looks = len(table.looks)
    await until(lambda: not ends._wake.is_set())
    assert len(table.looks) == looks
    await ends.aclose()


async def test_who_has_heard_a_part_is_told_the_rest(ends: Ends, table: Table) -> None:
    inference_id = uuid4()
    kinds = (RecordKind.OPEN, RecordKind.DATA, RecordKind.DATA, RecordKind.DONE)
    whole = told(inference_id, *kinds)
    reply = waiting(inference_id)
    for record in list(whole.told())[:2]:
        reply.feed(record, 0)
    first = await reply.next()
    table.known[inference_id], table.results[inference_id] = "done", whole
    ends.start()
    ends.wait_for(reply, inference_id, uuid4(), alone=False)
    rest = await all_of(reply)
    joined = b"".join(body for _, body in [first, *rest])
    assert [joined.count(b'"%d"' % seq) for seq in (1, 2, 3)] == [1, 1, 1]
    await ends.aclose()


async def test_words_of_two_attempts_are_never_spliced(ends: Ends) -> None:
    inference_id = uuid4()
    reply = waiting(inference_id)
    for record in list(told(inference_id, RecordKind.OPEN, RecordKind.DATA).told()):
        reply.feed(record, 0)
    kinds = (RecordKind.OPEN, RecordKind.DATA, RecordKind.DONE)
    tell(reply, told(inference_id, *kinds, attempt=2).told())
    kind, body = (await all_of(reply))[-1]
    assert kind is RecordKind.FAIL
    assert unpack_failure(body).code == "provider_error"


async def test_a_call_that_was_refused_after_all_is_told_to_who_joined_it(
    ends: Ends, table: Table
) -> None:
    reply = waiting(uuid4())
    ends.start()
    ends.wait_for(reply, uuid4(), uuid4(), alone=True)
    kind, body = (await all_of(reply))[-1]
    assert kind is RecordKind.FAIL
    assert unpack_failure(body).status == 503
    await ends.aclose()


async def test_an_end_without_a_result_is_an_end(ends: Ends, table: Table) -> None:
    inference_id = uuid4()
    table.known[inference_id] = "done"
    reply = waiting(inference_id)
    ends.start()
    ends.wait_for(reply, inference_id, uuid4(), alone=True)
    _, body = (await all_of(reply))[-1]
    assert unpack_failure(body).code == "internal_error"
    await ends.aclose()


async def test_a_database_that_is_away_is_waited_for(ends: Ends, table: Table) -> None:
    inference_id = uuid4()
    table.away = True
    reply = waiting(inference_id)
    ends.start()
    ends.wait_for(reply, inference_id, uuid4(), alone=True)
    await until(lambda: len(table.looks) > 2)
    broken = pack_failure(ProviderError("broken").failure())
    record = Record(inference_id.bytes, 1, RecordKind.FAIL, 0, broken)
    table.results[inference_id] = KeptResult(record.pack())
    table.known[inference_id], table.away = "done", False
    assert (await all_of(reply))[-1] == (RecordKind.FAIL, broken)
    await ends.aclose()


async def test_who_has_left_is_not_waited_for(ends: Ends, table: Table) -> None:
    inference_id = uuid4()
    table.known[inference_id] = "accepted"
    reply = waiting(inference_id)
    ends.start()
    ends.wait_for(reply, inference_id, uuid4(), alone=True)
    reply.hang_up()
    await until(lambda: not ends._wake.is_set())
    await ends.aclose()


async def test_nobody_waits_for_ever(ends: Ends, table: Table) -> None:
    inference_id = uuid4()
    table.known[inference_id] = "accepted"
    reply = Reply(inference_id.bytes, now=asyncio.get_running_loop().time() - 61)
    ends.start()
    ends.wait_for(reply, inference_id, uuid4(), alone=True)
    _, body = (await all_of(reply))[-1]
    assert unpack_failure(body).code == "deadline_exceeded"
    await ends.aclose()


async def test_who_is_pinged_waits_for_a_kept_call_as_long_as_it_takes(
    ends: Ends, table: Table
) -> None:
    inference_id, long_ago = uuid4(), asyncio.get_running_loop().time() - 61
    table.known[inference_id] = "accepted"
    patient = Reply(inference_id.bytes, now=long_ago, pings=True, kept=True)
    folded = Reply(inference_id.bytes, now=long_ago, kept=True)
    ends.start()
    for reply in (patient, folded):
        ends.wait_for(reply, inference_id, uuid4(), alone=True)
    failure = unpack_failure((await all_of(folded))[-1][1])
    assert failure.code == "deadline_exceeded"
    assert "goes on" in failure.message
    assert not patient.ended
    assert await patient.next() == (None, b"")
    await ends.aclose()


async def test_one_reader_leaves_the_others_reply_alone(settings: Settings) -> None:
    """Of two replies of one call in one process the relay holds the first one."""
    async with Redis.from_url(settings.redis_url) as redis:
        keeper = Keeper(redis, InferenceQueue(redis), Database(settings))
        relay = Relay(redis, 10, 60, 60, keeper=keeper, followers=Followers(redis, 0.1))
        inference_id = uuid4()
        first, second = relay.expect(inference_id), waiting(inference_id)
        relay.forget(second)
        assert relay.open_replies == 1
        relay.forget(first)
        assert relay.open_replies == 0
