"""The rounds over answers: each outcome once, from its replay, whatever an answer is like."""

from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import Connection, Database
from shared.domain.evidence import Empirical
from shared.domain.inference import Dialect
from shared.domain.reward import LARGEST_ANSWER
from shared.learning import EmpiricalQuality
from shared.replay_stream import ASKED, RECORDS, asked_key, replay_key
from shared.stream import Record, RecordKind
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent, outcome
from workers import rewards as rounds
from workers.judging import Judge
from workers.learning import snapshot, terms_of
from workers.rewards import Rewards

CODE = "```python\nx = 1\n```"


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Connection]:
    connection = await Database(settings).connect_raw()
    yield connection
    await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def judge() -> AsyncIterator[Judge]:
    reading = Judge(patience_s=1.0)
    yield reading
    await reading.aclose()


@pytest.fixture
def rewarding(settings: Settings, redis: Redis, judge: Judge) -> Rewards:
    return Rewards(Database(settings), redis, judge)


def native(text: str, finish: str = "stop", **more: Any) -> bytes:
    return orjson.dumps({"content": text, "tool_calls": [], "finish_reason": finish, **more})


async def ended(db: Connection, agent: Agent, **changes: Any) -> UUID:
    """A routed call that ended."""
    item = hold(agent, "1")
    await call(db, "open_inferences", item)
    await call(db, "settle_inferences", ending(agent, item["inference_id"], "0.5", **changes))
    return UUID(item["inference_id"])


async def tell(
    redis: Redis, inference_id: UUID, body: bytes, asked: Mapping[str, Any] | None = None, **at: int
) -> None:
    """The answer as its client was told it, whole."""
    record = Record(inference_id.bytes, 1, RecordKind.DONE, at.get("seq", 0), body)
    fields: dict[Any, Any] = {RECORDS: record.pack()}
    if asked is not None:
        fields[ASKED] = 1
        await redis.set(asked_key(inference_id), orjson.dumps(asked))
    await redis.xadd(replay_key(inference_id), fields)


async def row_of(db: Connection, inference_id: UUID) -> dict[str, Any] | None:
    row = await db.fetchrow("SELECT * FROM routing_rewards WHERE inference_id = $1", inference_id)
    return None if row is None else dict(row)


async def test_an_answer_gets_its_row_once(
    db: Connection, redis: Redis, rewarding: Rewards, settings: Settings, judge: Judge
) -> None:
    agent = await new_agent(db)
    one = await ended(db, agent)
    schema = {"json": True, "schema": {"required": ["a"]}, "tools": {}, "whole": True}
    await tell(redis, one, native('{"b": 1}'), schema)

    await rewarding.round()
    row = await row_of(db, one)
    assert row is not None
    assert (row["json"], row["reward"], row["checked"]) == ("failed", 0, True)
    assert (row["model"], row["band"]) == ("a-model", "balanced")
    assert not await redis.exists(asked_key(one))

    # a second worker, and this one's next round, find nothing to do for it
    await Rewards(Database(settings), redis, judge).round()
    await rewarding.round()
    assert await row_of(db, one) == row


async def test_an_end_that_is_not_told_yet_is_waited_for_and_then_given_up(
    db: Connection, redis: Redis, rewarding: Rewards, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await new_agent(db)
    late, never, torn, lost = [await ended(db, agent) for _ in range(4)]
    await tell(redis, torn, native(CODE), seq=3)  # its beginning was trimmed
    await tell(redis, lost, native(CODE), {"json": False})
    await redis.delete(asked_key(lost))
    await rewarding.round()
    assert [await row_of(db, each) for each in (late, never, torn, lost)] == [None] * 4

    await tell(redis, late, native(CODE))
    await rewarding.round()
    assert (await row_of(db, late) or {})["code"] == "passed"
    assert await row_of(db, never) is None

    monkeypatch.setattr(rounds, "PATIENCE", rounds.PATIENCE * 0)
    await rewarding.round()
    for each in (never, torn, lost):
        row = await row_of(db, each)
        assert row is not None
        assert (row["finish"], row["note"], row["reward"]) == ("unknown", "gone", None)
    assert await rewarding.round() == 0


async def test_calls_that_did_not_succeed(db: Connection, redis: Redis, rewarding: Rewards) -> None:
    agent = await new_agent(db)
    chain = [{"model": "other-model", "provider": "p", "code": "c", "upstream_status": 500}]
    failed = await ended(
        db, agent, outcome={**outcome("0.5", "failed_midstream"), "fallback_chain": chain}
    )
    left = await ended(db, agent, outcome=outcome("0.5", "cancelled"))
    refused = await ended(db, agent, receipt=None, outcome=outcome("0", "expired"))
    await rewarding.round()

    row = await row_of(db, failed)
    assert row is not None
    assert (row["finish"], row["reward"], row["failed_models"]) == ("error", 0, ["other-model"])
    row = await row_of(db, left)
    assert row is not None
    assert (row["finish"], row["reward"]) == ("cancelled", None)
    assert await row_of(db, refused) is None  # nobody answered it


# Each of these would stall, exhaust or end whoever reads it without care.
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "huge": (native("x" * LARGEST_ANSWER), "too_large"),
    "deep body": (b'{"content":' + b"[" * 200_000, None),
    "deep python": (native("```python\n" + "-" * 60_000 + "1\n```"), None),
    "deep calls": (native("```python\n" + "f(" * 199 + ")" * 199 + "\n```"), None),
    "deep JSON": (native("```json\n" + "[" * 60_000 + "\n```"), None),
    "many fences": (native("```python\nx\n```\n" * 20_000), None),
    "backticks": (native("`" * 400_000), None),
    "spaces": (native("```python\n" + " " * 60_000 + "x = (\n```"), None),
    "long number": (native("```json\n" + "9" * 60_000 + "\n```"), None),
    "no answer": (b"{}", "unreadable"),
    "no text": (b'{"content": 7, "tool_calls": 3, "finish_reason": []}', "unreadable"),
    "no bytes of ours": (b"\xff\xfe\x00", None),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
async def test_whatever_an_answer_is_like_it_stalls_nobody(
    db: Connection, redis: Redis, rewarding: Rewards, kind: str
) -> None:
    body, note = HOSTILE[kind]
    hostile = await ended(db, await new_agent(db))
    await tell(redis, hostile, body)
    plain = await ended(db, await new_agent(db))
    await tell(redis, plain, native(CODE))

    await rewarding.round()
    row = await row_of(db, hostile)
    assert row is not None
    if note is not None:
        assert row["note"] == note
    assert (await row_of(db, plain) or {})["reward"] == 1


async def test_who_reads_too_long_is_ended_and_the_next_answer_is_read(
    db: Connection, redis: Redis, settings: Settings
) -> None:
    """An answer that is not for one reader is too hard; its tenant's others wait for no turn."""
    quick = Judge(patience_s=0.5)
    rewarding = Rewards(Database(settings), redis, quick)
    agent = await new_agent(db)
    # a long text is compared again and again
    slow = {"$defs": {"a": {"enum": ["x"]}}, "anyOf": [{"$ref": "#/$defs/a"}] * 15_000}
    asked = {"json": True, "schema": slow, "tools": {}, "whole": True}
    first, second = await ended(db, agent), await ended(db, agent)
    third = await ended(db, await new_agent(db))
    await quick.look_at(Dialect.NATIVE, native(CODE), None)  # it has been started by now
    await tell(redis, first, native('"' + "y" * 400_000 + '"'), asked)
    await tell(redis, second, native(CODE))
    await tell(redis, third, native(CODE))
    try:
        await rewarding.round()
        notes = [(await row_of(db, each) or {})["note"] for each in (first, second, third)]
        assert notes == ["too_hard", "too_hard", None]
    finally:
        await quick.aclose()


async def test_estimates_are_kept_in_versions_and_read_by_workers(
    db: Connection, settings: Settings
) -> None:
    task = f"task-{uuid4().hex}"
    await db.executemany(
        """INSERT INTO routing_rewards (inference_id, tenant_id, task_type, band, model,
             failed_models, finish, code, json, tools, checked, reward, ended_at)
           VALUES ($1, $1, $2, $3, 'm', $4, 'by_itself', 'passed', 'none', 'none', true, $5,
                   now())""",
        [
            (uuid4(), task, band, ["n"] if number < 3 else [], int(number % 10 > 0))
            for number in range(60)
            for band in ("balanced", "cost")
        ],
    )
    terms = terms_of(settings)
    version, found = await snapshot(db, terms)
    assert version is not None
    assert (await snapshot(db, terms))[0] is None  # nothing has changed
    bands = {each.band: each for each in found if each.task_type == task and each.model == "m"}
    assert {band: each.n for band, each in bands.items()} == {
        "all": 120,
        "balanced": 60,
        "cost": 60,
    }
    assert bands["all"].q == Decimal("0.9000")
    assert [e.n for e in found if (e.task_type, e.model, e.band) == (task, "n", "all")] == [6]

    database = Database(settings)
    at_hand = EmpiricalQuality(database, refresh_s=60)
    try:
        assert (dict(at_hand), at_hand.version) == ({}, 0)
        await at_hand.refresh()
        assert at_hand[task] == {"m": Empirical(Decimal("0.9000"), Decimal("0.8333"), 120)}
        assert at_hand.version == version
    finally:
        await database.aclose()
