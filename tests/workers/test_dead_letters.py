"""Dead letters in the hands of workers, operators and the books: buried, replayed, ended once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast
from uuid import UUID, uuid4

import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import text

from shared.config import Settings
from shared.db import Connection, Database
from shared.dead_letters import (
    LetterFilter,
    close_letter,
    find_letters,
    read_letter,
    reveal_request,
)
from shared.domain.attempts import LetterState
from shared.domain.audit import draft
from shared.kept import KeptCalls
from shared.keys import Sealer, request_sealer
from shared.lanes import QueueKeys
from shared.queue import INFERENCE_QUEUE, Envelope, InferenceQueue
from shared.replays import Replay, ReplayRefusal, enqueue_replay, order_replay
from shared.stream import unpack_failure
from tests.workers.ledger_cases import (
    Agent,
    call,
    chain_of,
    check_books,
    ending,
    hold,
    new_agent,
    results,
    wallet_of,
)
from tests.workers.letter_cases import SECRET_WORDS, burial, envelope_of
from workers.dead_letters import UNREADABLE, WORKERS_LOST, Cause, Remains, bury, tend_dead_letters
from workers.deps import Deps
from workers.inference import set_aside
from workers.kept import drive_kept_calls
from workers.ledger import Ledger
from workers.sweep import BooksDeps, release_expired_holds

OPERATOR = "somebody@somewhere"
LAST_DEATH = text("SELECT max(died_at) FROM dead_letters WHERE tenant_id = :tenant")


class Heard:
    """Stands in for the publisher: what a client would be told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def publish(self, channel: str, records: Any, *, urgent: bool) -> None:
        self.told.extend(records)


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Connection]:
    connection = await Database(settings).connect_raw()
    # a round tends what there is: the letters of earlier tests are no business of this one's
    await connection.execute("UPDATE dead_letters SET envelope = NULL WHERE state = 'replayed'")
    yield connection
    await check_books(connection)
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def books(settings: Settings, redis_url: str) -> AsyncIterator[dict[str, Any]]:
    database = Database(settings)
    ledger = Ledger(database)
    await ledger.start()
    async with Redis.from_url(redis_url) as redis:
        kept, queue = KeptCalls(database, settings), InferenceQueue(redis)
        yield {"deps": BooksDeps(settings, database, ledger, kept, queue, redis)}
    await ledger.aclose()
    await database.aclose()


def worker_deps(books: dict[str, Any]) -> Deps:
    """As much of a worker's means as a burial needs."""

    class Means:
        settings = books["deps"].settings
        ledger = books["deps"].ledger
        kept = books["deps"].kept
        publisher = Heard()

    return cast(Deps, Means())


def sealer_of(books: dict[str, Any]) -> Sealer:
    return request_sealer(books["deps"].settings.master_key.get_secret_value())


async def a_dead_call(db: Connection, books: dict[str, Any], agent: Agent, **changes: Any) -> UUID:
    inference = str(uuid4())
    decided = {"inference_id": inference, "model": "a-model", "task_type": "code"}
    event = draft("inference.routed", agent.agent_id, decided).wire()
    await call(db, "open_inferences", hold(agent, "1", inference, event=event))
    item = burial(agent, inference, 4, sealer_of(books), **changes)
    assert await results(db, "bury_inferences", item) == ["BURIED"]
    return UUID(inference)


async def replay(books: dict[str, Any], inference: UUID) -> Replay | ReplayRefusal:
    async with books["deps"].db.everyone() as session:
        ordered = await order_replay(session, sealer_of(books), inference, OPERATOR)
        await session.commit()
        return ordered


async def close(books: dict[str, Any], inference: UUID, state: LetterState) -> bool:
    async with books["deps"].db.everyone() as session:
        closed = await close_letter(session, books["deps"].kept, inference, state, OPERATOR)
        await session.commit()
        return closed


async def acts_on(db: Connection, inference: UUID) -> list[str]:
    rows = await db.fetch(
        "SELECT act, actor FROM operator_events WHERE target = $1 ORDER BY at", str(inference)
    )
    assert {row["actor"] for row in rows} <= {OPERATOR}
    return [row["act"] for row in rows]


async def captures(db: Connection, inference: UUID) -> list[str]:
    query = "SELECT outcome_status FROM routing_outcomes WHERE inference_id = $1"
    return [row[0] for row in await db.fetch(query, inference)]


# -- burying ------------------------------------------------------------------------------------


async def test_a_worker_buries_a_call_with_its_request_sealed(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    remains = Remains(envelope.inference_id, 4, envelope.pack(), envelope)
    await bury(remains, WORKERS_LOST, set_aside(), worker_deps(books))

    row = await db.fetchrow(
        "SELECT d.*, d::text AS everything FROM dead_letters d WHERE inference_id = $1",
        envelope.inference_id,
    )
    assert row is not None
    assert SECRET_WORDS.encode() not in row["envelope"]
    assert SECRET_WORDS not in row["everything"]
    assert SECRET_WORDS.encode().hex() not in row["everything"]
    assert (row["error_code"], row["attempts"], row["model"]) == (
        "worker_lost",
        4,
        "ainfera-inference",
    )
    assert sealer_of(books).open(row["envelope"], envelope.inference_id) == envelope.pack()
    assert row["failures"].count("worker_lost") == 3


async def test_what_a_bug_says_is_not_kept(db: Connection, books: dict[str, Any]) -> None:
    agent = await new_agent(db)
    envelope = envelope_of(agent)
    remains = Remains(envelope.inference_id, 1, envelope.pack(), envelope)
    try:
        raise KeyError(SECRET_WORDS)
    except KeyError as bug:
        await bury(remains, Cause.of(bug), set_aside(), worker_deps(books))
    query = "SELECT d::text FROM dead_letters d WHERE inference_id = $1"
    everything = await db.fetchval(query, envelope.inference_id)
    assert SECRET_WORDS not in everything
    assert "KeyError at test_what_a_bug_says_is_not_kept" in everything


async def test_an_envelope_that_cannot_be_read_is_kept_too(
    db: Connection, books: dict[str, Any]
) -> None:
    """By a version that can read it, it can be replayed; by this one only discarded."""
    inference = uuid4()
    remains = Remains(inference, 1, b"\xff not an envelope")
    await bury(remains, UNREADABLE, set_aside(), worker_deps(books))
    assert await replay(books, inference) is ReplayRefusal.UNREADABLE
    assert await close(books, inference, LetterState.DISCARDED)
    assert await captures(db, inference) == []


# -- replaying ----------------------------------------------------------------------------------


async def test_a_replay_is_queued_under_the_same_id_with_its_attempts_carried_on(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    ordered = await replay(books, inference)
    assert isinstance(ordered, Replay)
    assert (ordered.attempts, ordered.envelope.tried) == (4, 4)
    assert ordered.envelope.inference_id == inference
    assert ordered.envelope.accepted_at > 1.0, "its deadline begins anew"
    queue = books["deps"].queue
    assert (await enqueue_replay(queue, ordered)).result == "QUEUED"
    assert (await enqueue_replay(queue, ordered)).result == "EXISTS"
    assert await acts_on(db, inference) == ["dead_letter.replay"]


async def test_of_many_who_replay_or_discard_one_gets_it(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    for _ in range(4):
        inference = await a_dead_call(db, books, agent)
        tried = await asyncio.gather(
            *(replay(books, inference) for _ in range(4)),
            *(close(books, inference, LetterState.DISCARDED) for _ in range(4)),
        )
        won = [each for each in tried if isinstance(each, Replay) or each is True]
        assert len(won) == 1
        assert len(await acts_on(db, inference)) == 1


async def test_a_replay_that_is_under_way_is_not_replayed(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    assert isinstance(await replay(books, inference), Replay)
    fresh = hold(agent, "1", str(inference), attempt=5)
    assert await results(db, "open_inferences", fresh) == ["OPENED"]
    assert await replay(books, inference) is ReplayRefusal.NOT_DEAD
    assert not await close(books, inference, LetterState.DISCARDED)
    done = ending(agent, str(inference), "0.5", attempt=5)
    assert await results(db, "settle_inferences", done) == ["SETTLED"]
    assert await replay(books, inference) is ReplayRefusal.NOT_DEAD
    assert (await wallet_of(db, agent))["balance"] == Decimal("9.5")
    assert await replay(books, uuid4()) is ReplayRefusal.UNKNOWN


async def test_a_replay_whose_job_is_lost_is_queued_again(
    db: Connection, books: dict[str, Any]
) -> None:
    """Ordered and committed, and then the store was away, or lost all it had."""
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    assert isinstance(await replay(books, inference), Replay)
    assert (await tend_dead_letters(books))["queued"] == 0, "it may be on its way still"
    back = "UPDATE dead_letters SET resolved_at = now() - interval '1 min' WHERE inference_id = $1"
    await db.execute(back, inference)
    assert (await tend_dead_letters(books))["queued"] == 1
    assert (await tend_dead_letters(books))["queued"] == 0, "the queue has it"
    queue = books["deps"].queue
    assert await queue.holding([inference, uuid4()]) == {inference}
    await books["deps"].redis.delete(QueueKeys(INFERENCE_QUEUE).job(str(inference)))
    fresh = hold(agent, "1", str(inference), attempt=5)
    assert await results(db, "open_inferences", fresh) == ["OPENED"]
    assert (await tend_dead_letters(books))["queued"] == 0, "it has begun"


async def test_the_request_goes_once_the_replayed_call_is_over(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    await replay(books, inference)
    kept = "SELECT envelope IS NOT NULL FROM dead_letters WHERE inference_id = $1"
    assert (await tend_dead_letters(books))["forgotten"] == 0
    assert await db.fetchval(kept, inference)
    await results(db, "open_inferences", hold(agent, "1", str(inference), attempt=5))
    await results(db, "settle_inferences", ending(agent, str(inference), "0", attempt=5))
    assert (await tend_dead_letters(books))["forgotten"] == 1
    assert not await db.fetchval(kept, inference)


async def test_a_replay_that_is_lost_in_its_run_is_ended_by_its_hold(
    db: Connection, books: dict[str, Any]
) -> None:
    """Decided twice, captured once, by the newest decision."""
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    await replay(books, inference)
    decided = {"inference_id": str(inference), "model": "another-model"}
    event = draft("inference.routed", agent.agent_id, decided).wire()
    fresh = hold(agent, "1", str(inference), attempt=5, ttl_s=0, event=event)
    assert await results(db, "open_inferences", fresh) == ["OPENED"]
    assert await release_expired_holds(books) == 1
    assert await captures(db, inference) == ["expired"]
    query = "SELECT chosen_model_slug FROM routing_outcomes WHERE inference_id = $1"
    assert await db.fetchval(query, inference) == "another-model"


# -- the end ------------------------------------------------------------------------------------


async def test_a_discarded_call_is_captured_once_and_charged_nothing(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    assert await captures(db, inference) == []
    assert await close(books, inference, LetterState.DISCARDED)
    assert not await close(books, inference, LetterState.DISCARDED)
    assert await captures(db, inference) == ["failed_provider"]
    wallet = await wallet_of(db, agent)
    assert (wallet["balance"], wallet["held"]) == (10, 0)
    row = await db.fetchrow("SELECT * FROM dead_letters WHERE inference_id = $1", inference)
    assert row is not None
    assert (row["state"], row["envelope"], row["resolved_by"]) == ("discarded", None, OPERATOR)
    assert await acts_on(db, inference) == ["dead_letter.discard"]
    chain = await chain_of(db, agent)
    assert (chain.valid, chain.event_count) == (True, 2)
    # a frozen worker that wakes up now
    late = ending(agent, str(inference), "0.5", attempt=3)
    assert await results(db, "settle_inferences", late) == ["EXISTS"]


async def test_a_pinned_call_is_ended_without_a_capture(
    db: Connection, books: dict[str, Any]
) -> None:
    agent, inference = await new_agent(db), str(uuid4())
    item = burial(agent, inference, 4, sealer_of(books), routed=False, model="gpt-5-5")
    await call(db, "bury_inferences", item)
    assert await close(books, UUID(inference), LetterState.DISCARDED)
    assert await captures(db, UUID(inference)) == []
    state = await db.fetchval("SELECT state FROM inferences WHERE id = $1", UUID(inference))
    assert state == "settled"


async def test_a_letter_that_nobody_cares_for_expires(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    overdue = await a_dead_call(db, books, agent, ttl_s=0)
    waiting = await a_dead_call(db, books, agent)
    assert (await tend_dead_letters(books))["expired"] == 1
    assert (await tend_dead_letters(books))["expired"] == 0
    assert await captures(db, overdue) == ["expired"]
    assert await captures(db, waiting) == []
    assert await acts_on(db, overdue) == [], "the clock is no operator"
    assert await replay(books, overdue) is ReplayRefusal.NOT_DEAD


async def test_letters_that_are_long_over_are_forgotten(
    db: Connection, books: dict[str, Any]
) -> None:
    agent = await new_agent(db)
    over, lately, replayed, waiting = [await a_dead_call(db, books, agent) for _ in range(4)]
    assert await close(books, over, LetterState.DISCARDED)
    assert await close(books, lately, LetterState.DISCARDED)
    assert isinstance(await replay(books, replayed), Replay)
    past = "UPDATE dead_letters SET {0} = {0} - interval '91 days' WHERE inference_id = ANY ($1)"
    await db.execute(past.format("resolved_at"), [over, replayed])
    await db.execute(past.format("died_at"), [over, replayed, waiting])
    assert (await tend_dead_letters(books))["cleared"] == 1
    left = await db.fetch(
        "SELECT inference_id FROM dead_letters WHERE agent_id = $1", UUID(agent.agent_id)
    )
    assert {row["inference_id"] for row in left} == {lately, replayed, waiting}
    assert await acts_on(db, over) == ["dead_letter.discard"], "what was done is kept for good"
    assert await captures(db, over) == ["failed_provider"]
    await results(db, "open_inferences", hold(agent, "1", str(replayed), attempt=5))
    await results(db, "settle_inferences", ending(agent, str(replayed), "0", attempt=5))
    assert (await tend_dead_letters(books))["cleared"] == 1, "its call is over now"


async def test_who_ends_a_call_waits_for_the_wallet_before_the_letter(
    db: Connection, books: dict[str, Any]
) -> None:
    """In the order of whoever buries a call; the other way round the two could lock each other."""
    agent = await new_agent(db)
    inference = await a_dead_call(db, books, agent)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
    transaction = db.transaction()
    await transaction.start()
    await db.fetch("SELECT 1 FROM accounts WHERE id = $1 FOR UPDATE", agent.wallet_id)
    ending_it = asyncio.create_task(close(books, inference, LetterState.DISCARDED))
    # what a transaction has seen of others' activity, it does not look at again
    looking = await books["deps"].db.connect_raw()
    async with asyncio.timeout(15):
        while not await looking.fetchval(waiting, db.get_server_pid()):
            await asyncio.sleep(0.01)
    free = "SELECT 1 FROM dead_letters WHERE inference_id = $1 FOR UPDATE NOWAIT"
    assert await looking.fetchval(free, inference) == 1
    await looking.close()
    await transaction.commit()
    assert await ending_it


# -- calls that are kept -------------------------------------------------------------------------

KEPT = "SELECT state, outcome, envelope, result, idempotency_key_hash FROM kept_calls"


async def a_dead_kept_call(db: Connection, books: dict[str, Any]) -> tuple[Envelope, str]:
    """A call with an idempotency key that was accepted, and then took its workers with it."""
    agent = await new_agent(db)
    envelope, key = envelope_of(agent, kept=True), str(uuid4())
    kept: KeptCalls = books["deps"].kept
    await kept.keep(envelope, "/v1/inference", key, stream=False, background=False)
    for attempt in (1, 2, 3):
        assert await kept.take(envelope.inference_id, attempt) is False
    remains = Remains(envelope.inference_id, 4, envelope.pack(), envelope)
    await bury(remains, WORKERS_LOST, set_aside(), worker_deps(books))
    return envelope, key


async def kept_row(db: Connection, envelope: Envelope) -> Any:
    row = await db.fetchrow(f"{KEPT} WHERE inference_id = $1", envelope.inference_id)
    assert row is not None
    return row


async def told(books: dict[str, Any], envelope: Envelope) -> str:
    """The code of the failure that clients of a kept call are told."""
    kept = books["deps"].kept
    tenant_id = UUID(envelope.caller["tenant_id"])
    result = await kept.result(envelope.inference_id, tenant_id)
    assert result is not None
    (record,) = result.told()
    return unpack_failure(record.body).code


async def test_who_asks_for_a_dead_kept_call_is_told_so_and_nobody_drives_it(
    db: Connection, books: dict[str, Any]
) -> None:
    envelope, _ = await a_dead_kept_call(db, books)
    assert (await kept_row(db, envelope))["state"] == "dead"
    assert await told(books, envelope) == "overloaded"
    assert await books["deps"].kept.take(envelope.inference_id, 5) is None
    await db.execute("UPDATE kept_calls SET driven_at = now() - interval '1 hour'")
    await drive_kept_calls(books)
    assert await books["deps"].queue.holding([envelope.inference_id]) == set()


async def test_a_replayed_kept_call_is_accepted_again_with_its_own_count_of_crashes(
    db: Connection, books: dict[str, Any]
) -> None:
    envelope, _ = await a_dead_kept_call(db, books)
    ordered = await replay(books, envelope.inference_id)
    assert isinstance(ordered, Replay)
    row = await kept_row(db, envelope)
    assert (row["state"], row["result"]) == ("accepted", None)
    again = books["deps"].kept.open_envelope(envelope.inference_id, row["envelope"])
    assert (again.tried, again.kept) == (4, True)
    # should the queue lose it, the first of two rounds drives it
    await db.execute("UPDATE kept_calls SET driven_at = now() - interval '1 hour'")
    back = "UPDATE dead_letters SET resolved_at = now() - interval '1 min' WHERE inference_id = $1"
    await db.execute(back, envelope.inference_id)
    assert await drive_kept_calls(books) == 1
    assert (await tend_dead_letters(books))["queued"] == 0
    assert await books["deps"].kept.take(envelope.inference_id, 4) is None
    assert await books["deps"].kept.take(envelope.inference_id, 5) is False


async def test_a_discarded_kept_call_ends_and_gives_its_key_back(
    db: Connection, books: dict[str, Any]
) -> None:
    envelope, key = await a_dead_kept_call(db, books)
    assert await close(books, envelope.inference_id, LetterState.DISCARDED)
    row = await kept_row(db, envelope)
    assert (row["state"], row["outcome"], row["envelope"]) == ("done", "failed_provider", None)
    assert await told(books, envelope) == "internal_error"
    fresh = replace(envelope, inference_id=uuid4())
    kept: KeptCalls = books["deps"].kept
    known = await kept.keep(fresh, "/v1/inference", key, stream=False, background=False)
    assert known.fresh
    await kept.withdraw(fresh)


# -- looking ------------------------------------------------------------------------------------


async def test_letters_are_found_by_what_they_are(db: Connection, books: dict[str, Any]) -> None:
    agent, other = await new_agent(db), await new_agent(db)
    mine = [
        str(await a_dead_call(db, books, agent)),
        str(await a_dead_call(db, books, agent, error_code="internal_error", model="gpt-5-5")),
    ]
    await a_dead_call(db, books, other)
    tenant = UUID(agent.tenant_id)
    async with books["deps"].db.everyone() as session:

        async def ids(limit: int | None = None, **wanted: Any) -> list[str]:
            found = await find_letters(session, LetterFilter(tenant_id=tenant, **wanted), limit)
            assert all("envelope" not in letter for letter in found)
            return [letter["inference_id"] for letter in found]

        assert await ids() == mine
        assert await ids(limit=1) == mine[:1]
        assert await ids(code="internal_error") == mine[1:]
        assert await ids(model="gpt-5-5") == mine[1:]
        assert await ids(state=LetterState.DISCARDED) == []
        since = await session.scalar(LAST_DEATH, {"tenant": tenant})
        assert await ids(since=since) == mine[1:]
        letter = await read_letter(session, UUID(mine[0]))
    assert letter is not None
    assert letter["failures"][0] == {"attempt": 1, "code": "worker_lost"}
    assert SECRET_WORDS not in str(letter)


async def test_who_reads_a_request_is_written_down(db: Connection, books: dict[str, Any]) -> None:
    inference = await a_dead_call(db, books, await new_agent(db))
    async with books["deps"].db.everyone() as session:
        body = await reveal_request(session, sealer_of(books), inference, OPERATOR)
        await session.commit()
    assert body is not None
    assert SECRET_WORDS.encode() in body
    assert await acts_on(db, inference) == ["dead_letter.reveal"]


def test_the_envelope_carries_what_a_replay_needs() -> None:
    agent = Agent(str(uuid4()), str(uuid4()), uuid4())
    packed = envelope_of(agent, tried=4).pack()
    assert Envelope.unpack(packed).tried == 4
    assert Envelope.unpack(packed).model == "ainfera-inference"
    assert b"tried" not in envelope_of(agent).pack(), "an ordinary call does not carry it"
