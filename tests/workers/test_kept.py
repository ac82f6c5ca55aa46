"""The table of kept calls: one call a key, results with settlements, driven once, forgotten."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.config import Settings
from shared.control import CONTROL_CHANNEL
from shared.db import Connection, Database
from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.kept import KeptCall, KeptCalls, KeptResult
from shared.queue import Envelope, InferenceQueue
from shared.stream import Record, RecordKind
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent
from tests.workers.running import Running, until
from workers.dead_letters import tend_dead_letters
from workers.kept import drive_kept_calls, forget_kept_calls
from workers.ledger import Ledger
from workers.sweep import BooksDeps, expire_grants, release_expired_holds

PATH = "/v1/inference"
RESULT = KeptResult(Record(bytes(16), 1, RecordKind.DONE, 0, b"words").pack(), b'{"a":1}')


@pytest_asyncio.fixture(loop_scope="session")
async def books(settings: Settings) -> AsyncIterator[BooksDeps]:
    db = Database(settings)
    ledger = Ledger(db)
    await ledger.start()
    redis = Redis.from_url(settings.redis_url)
    soon = settings.model_copy(update={"redrive_after_s": 0.0})
    yield BooksDeps(soon, db, ledger, KeptCalls(db, soon), InferenceQueue(redis), redis)
    await redis.aclose()
    await ledger.aclose()
    await db.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def db(books: BooksDeps) -> AsyncIterator[Connection]:
    connection = await books.db.connect_raw()
    await connection.execute("DELETE FROM kept_calls")
    yield connection
    await connection.close()


def envelope_of(agent: Agent, body: bytes = b'{"secret":1}') -> Envelope:
    caller = {"tenant_id": agent.tenant_id, "agent_id": agent.agent_id, "policy": {}}
    return Envelope(
        mint_id(), mint_id(), Dialect.NATIVE, "reply", caller, 1.0, "trace", body, kept=True
    )


async def keep(kept: KeptCalls, envelope: Envelope, key: str | None = None) -> KeptCall:
    return await kept.keep(envelope, PATH, key, stream=False, background=key is None)


async def row_of(db: Connection, inference_id: UUID) -> asyncpg.Record:
    row = await db.fetchrow("SELECT * FROM kept_calls WHERE inference_id = $1", inference_id)
    assert row is not None
    return row


def with_result(item: dict[str, Any], kept: KeptCalls, **more: Any) -> dict[str, Any]:
    inference_id = UUID(item["inference_id"])
    return {**item, "kept": kept.settlement(inference_id, "succeeded", RESULT, **more)}


async def settled(db: Connection, agent: Agent, envelope: Envelope, kept: KeptCalls) -> None:
    inference = str(envelope.inference_id)
    await call(db, "open_inferences", hold(agent, "1", inference))
    (row,) = await call(db, "end_inferences", with_result(ending(agent, inference, "0.1"), kept))
    assert row["result"] == "SETTLED"


# -- keys ----------------------------------------------------------------------------------------


async def test_of_many_at_once_one_is_fresh(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    crowd = [envelope_of(agent) for _ in range(40)]
    known = await asyncio.gather(*[keep(books.kept, each, "key") for each in crowd])
    (fresh,) = [each for each in known if each.fresh]
    assert {each.inference_id for each in known} == {fresh.inference_id}
    assert {each.receipt_id for each in known} == {fresh.receipt_id}
    assert all(each.same_request for each in known)
    assert await db.fetchval("SELECT count(*) FROM kept_calls") == 1


async def test_a_key_belongs_to_a_tenant_and_a_path(books: BooksDeps, db: Connection) -> None:
    agent, other = await new_agent(db), await new_agent(db)
    first = await keep(books.kept, envelope_of(agent), "key")
    assert first.fresh
    assert (await keep(books.kept, envelope_of(other), "key")).fresh
    elsewhere = await books.kept.keep(
        envelope_of(agent), "/v1/messages", "key", stream=False, background=False
    )
    assert elsewhere.fresh
    another = await keep(books.kept, envelope_of(agent, b"else"), "key")
    assert (another.fresh, another.same_request) == (False, False)
    second_agent = replace(agent, agent_id=str(uuid4()))
    assert not (await keep(books.kept, envelope_of(second_agent), "key")).same_request


async def test_calls_without_a_key_never_meet(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    assert [(await keep(books.kept, envelope_of(agent))).fresh for _ in range(3)] == [True] * 3


async def test_a_key_is_free_again_when_its_time_is_over_and_its_call_too(
    books: BooksDeps, db: Connection
) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    await keep(books.kept, envelope, "key")
    await db.execute("UPDATE kept_calls SET accepted_at = now() - interval '25 hours'")
    assert not (await keep(books.kept, envelope_of(agent), "key")).fresh  # it runs still
    await settled(db, agent, envelope, books.kept)
    again = await keep(books.kept, envelope_of(agent, b"else"), "key")
    assert again.fresh
    assert (await row_of(db, envelope.inference_id))["idempotency_key_hash"] is None
    assert await books.kept.result(envelope.inference_id, UUID(agent.tenant_id)) == RESULT


async def test_what_is_withdrawn_was_never_there(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    await keep(books.kept, envelope, "key")
    await books.kept.withdraw(envelope)
    assert (await keep(books.kept, envelope_of(agent), "key")).fresh


async def test_nothing_that_was_said_can_be_read(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent, b"Xylophon")
    await keep(books.kept, envelope, "Xylophon")
    row = await row_of(db, envelope.inference_id)
    assert b"Xylophon" not in b"".join(v for v in row.values() if isinstance(v, bytes))
    opened = books.kept.open_envelope(envelope.inference_id, row["envelope"])
    assert opened == envelope
    await settled(db, agent, envelope, books.kept)
    row = await row_of(db, envelope.inference_id)
    assert row["envelope"] is None
    assert b"words" not in row["result"]
    # nor by another tenant, nor with another key
    assert await books.kept.result(envelope.inference_id, uuid4()) is None
    assert await books.kept.states({envelope.inference_id: uuid4()}) == {}
    mine = {envelope.inference_id: UUID(agent.tenant_id)}
    assert await books.kept.states(mine) == {envelope.inference_id: "done"}
    other = books.settings.model_copy(
        update={"master_key": type(books.settings.master_key)("x" * 32)}
    )
    tenant = UUID(agent.tenant_id)
    assert await KeptCalls(books.db, other).result(envelope.inference_id, tenant) is None


# -- results -------------------------------------------------------------------------------------


async def test_a_result_is_kept_by_the_settlement_and_only_by_it(
    books: BooksDeps, db: Connection
) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    inference = str(envelope.inference_id)
    await keep(books.kept, envelope)
    early = with_result(ending(agent, inference, "0.1"), books.kept)
    (row,) = await call(db, "end_inferences", early)
    assert row["result"] == "UNKNOWN"
    await call(db, "open_inferences", hold(agent, "1", inference, attempt=2))
    (row,) = await call(db, "end_inferences", early)
    assert row["result"] == "FENCED"
    assert (await row_of(db, envelope.inference_id))["state"] == "accepted"

    item = with_result(ending(agent, inference, "0.1", attempt=2), books.kept)
    spoiled = {**item, "kept": {**item["kept"], "result": "no base64!"}}
    with pytest.raises(asyncpg.DataError):
        await call(db, "end_inferences", spoiled)
    state = "SELECT state FROM inferences WHERE id = $1"
    assert await db.fetchval(state, envelope.inference_id) == "held"

    (row,) = await call(db, "end_inferences", item)
    assert row["result"] == "SETTLED"
    first = await row_of(db, envelope.inference_id)
    assert (first["state"], first["outcome"]) == ("done", "succeeded")
    assert first["finished_at"] >= first["accepted_at"]
    (row,) = await call(db, "end_inferences", item)
    assert row["result"] == "EXISTS"
    assert await row_of(db, envelope.inference_id) == first


async def test_a_late_attempt_keeps_nothing(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    inference = str(envelope.inference_id)
    await keep(books.kept, envelope)
    await call(db, "open_inferences", hold(agent, "1", inference, attempt=2))
    await call(db, "end_inferences", ending(agent, inference, "0.1", attempt=2))
    late = with_result(ending(agent, inference, "0.1"), books.kept)
    (row,) = await call(db, "end_inferences", late)
    assert row["result"] == "EXISTS"
    assert (await row_of(db, envelope.inference_id))["result"] is None


async def test_a_batch_keeps_the_results_of_those_that_are_kept(
    books: BooksDeps, db: Connection
) -> None:
    agent = await new_agent(db)
    kept, plain = envelope_of(agent), hold(agent, "1")
    await keep(books.kept, kept)
    await call(db, "open_inferences", hold(agent, "1", str(kept.inference_id)), plain)
    rows = await call(
        db,
        "end_inferences",
        ending(agent, plain["inference_id"], "0.1"),
        with_result(ending(agent, str(kept.inference_id), "0.1"), books.kept),
    )
    assert [row["result"] for row in rows] == ["SETTLED", "SETTLED"]
    assert await books.kept.result(kept.inference_id, UUID(agent.tenant_id)) == RESULT


async def test_a_call_that_came_to_nothing_gives_its_key_back(
    books: BooksDeps, db: Connection
) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    await keep(books.kept, envelope, "key")
    item = ending(agent, str(envelope.inference_id), "0", refused=True)
    await call(db, "end_inferences", with_result(item, books.kept, frees_key=True))
    assert (await row_of(db, envelope.inference_id))["state"] == "done"
    assert (await keep(books.kept, envelope_of(agent), "key")).fresh


# -- attempts ------------------------------------------------------------------------------------


async def test_each_attempt_is_taken_once(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    await keep(books.kept, envelope)
    assert await books.kept.take(envelope.inference_id, 1) is False
    assert await books.kept.take(envelope.inference_id, 1) is None
    await books.kept.cancel(envelope.inference_id, uuid4())
    assert await books.kept.take(envelope.inference_id, 2) is False
    await books.kept.cancel(envelope.inference_id, UUID(agent.tenant_id))
    assert await books.kept.take(envelope.inference_id, 3) is True
    await settled(db, agent, envelope, books.kept)
    assert await books.kept.take(envelope.inference_id, 4) is None


async def test_what_the_queue_lost_is_driven_again_once(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    lost, queued, over = (envelope_of(agent) for _ in range(3))
    for each in (lost, queued, over):
        await keep(books.kept, each)
    await books.kept.take(lost.inference_id, 1)
    await books.queue.enqueue(queued)
    await settled(db, agent, over, books.kept)

    ctx = {"deps": books}
    driven = await asyncio.gather(*[drive_kept_calls(ctx) for _ in range(4)])
    assert sum(driven) == 1
    ids = [each.inference_id for each in (lost, queued, over)]
    assert await books.queue.holding(ids) == {lost.inference_id, queued.inference_id}
    assert await drive_kept_calls(ctx) == 0
    await books.redis.flushdb()
    assert await drive_kept_calls(ctx) == 2


async def test_many_lost_calls_are_driven_page_by_page(
    books: BooksDeps, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.kept.PAGE", 7)
    agent = await new_agent(db)
    for _ in range(30):
        await keep(books.kept, envelope_of(agent))
    assert await drive_kept_calls({"deps": books}) == 30


async def test_one_that_was_driven_just_now_is_left_alone(books: BooksDeps, db: Connection) -> None:
    patient = books.settings.model_copy(update={"redrive_after_s": 60.0})
    await keep(books.kept, envelope_of(await new_agent(db)))
    assert await drive_kept_calls({"deps": replace(books, settings=patient)}) == 0


async def test_an_order_to_stop_is_repeated_until_it_is_obeyed(
    books: BooksDeps, db: Connection
) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    await keep(books.kept, envelope)
    await books.queue.enqueue(envelope)
    await books.kept.cancel(envelope.inference_id, UUID(agent.tenant_id))
    async with books.redis.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.subscribe(CONTROL_CHANNEL)
        await heard.get_message(timeout=5)
        assert await drive_kept_calls({"deps": books}) == 0
        message = await heard.get_message(timeout=5)
    assert message is not None
    assert orjson.loads(message["data"])["inference_id"] == str(envelope.inference_id)


async def test_a_call_that_ended_without_a_result_is_closed(
    books: BooksDeps, db: Connection
) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    inference = str(envelope.inference_id)
    await keep(books.kept, envelope)
    await call(db, "open_inferences", hold(agent, "1", inference))
    await call(db, "end_inferences", ending(agent, inference, "0.1"))
    assert await drive_kept_calls({"deps": books}) == 0
    row = await row_of(db, envelope.inference_id)
    assert (row["state"], row["outcome"], row["result"]) == ("done", "succeeded", None)


async def test_a_hold_that_ran_out_ends_its_kept_call(books: BooksDeps, db: Connection) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    await keep(books.kept, envelope)
    await call(db, "open_inferences", hold(agent, "1", str(envelope.inference_id), ttl_s=0))
    assert await release_expired_holds({"deps": books}) == 1
    row = await row_of(db, envelope.inference_id)
    assert (row["state"], row["outcome"]) == ("done", "expired")
    result = await books.kept.result(envelope.inference_id, UUID(agent.tenant_id))
    assert result is not None
    (record,) = result.told()
    assert record.kind is RecordKind.FAIL


async def test_what_had_its_time_is_forgotten_and_nothing_else(
    books: BooksDeps, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.kept.FORGET_LIMIT", 2)
    agent = await new_agent(db)
    running, young, *old = (envelope_of(agent) for _ in range(7))
    for each in (running, young, *old):
        await keep(books.kept, each)
    for each in (young, *old):
        await settled(db, agent, each, books.kept)
    await db.execute(
        "UPDATE kept_calls SET expires_at = now() - interval '1 s' WHERE inference_id <> $1",
        young.inference_id,
    )
    assert await forget_kept_calls({"deps": books}) == 5
    left = await db.fetch("SELECT inference_id FROM kept_calls")
    assert {row["inference_id"] for row in left} == {running.inference_id, young.inference_id}


async def test_its_age_goes_with_a_call_that_is_driven_again(
    books: BooksDeps, db: Connection, redis_url: str
) -> None:
    """By the database's clock: the ingress that accepted it, and its clock, may be gone."""
    envelope = envelope_of(await new_agent(db))
    await keep(books.kept, envelope)
    await db.execute("UPDATE kept_calls SET accepted_at = now() - interval '1 hour'")
    assert await drive_kept_calls({"deps": books}) == 1
    ages: list[float] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        ages.append(ctx["age_s"])

    running = Running(redis_url, job)
    await until(lambda: ages != [])
    await running.stop()
    assert 3600 <= ages[0] < 3700


async def test_a_round_is_put_off_while_postgres_is_away(
    books: BooksDeps, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no bug: the next round does its work, and no traceback is written for it."""
    nobody = Database(
        books.settings.model_copy(update={"database_url": "postgresql://x@/x?host=/nowhere"})
    )
    away = {"deps": replace(books, db=nobody)}
    for round_ in (
        drive_kept_calls,
        forget_kept_calls,
        release_expired_holds,
        expire_grants,
        tend_dead_letters,
    ):
        caplog.clear()
        await round_(away)
        assert [record.getMessage() for record in caplog.records] == ["round_put_off"]
    await nobody.aclose()
