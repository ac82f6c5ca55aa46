"""The books worker's rounds over answers: what can be told of each, and what that says of models.

New outcomes are looked for by the time they were written, in slices; each routed call that reached
a provider gets one row of `routing_rewards`. An answer is read where its client was told it from:
in its replay, which is gone some minutes after the end. What is not found there in time gets its
row all the same, without checks, so that nothing is asked for again and again.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from redis.asyncio import Redis

from shared.db import Connection, Database
from shared.domain.answered import Finish
from shared.domain.inference import Dialect
from shared.domain.reward import LARGEST_ANSWER, Signals
from shared.replay_stream import ASKED, RECORDS, asked_key, replay_key
from shared.stream import Record, RecordKind, unpack_records
from workers.answer import WORDS
from workers.judging import Judge
from workers.rounds import put_off, round_connection

# An end is told right after the outcome is written; whose answer is not there by then, is gone.
PATIENCE = timedelta(seconds=30)
# A transaction may be seen later than the moment that it bears.
OVERLAP = timedelta(minutes=2)
SLICE = timedelta(minutes=1)
# After a start the rounds begin before the last reward, or, where there is none, a day ago.
BEFORE_LAST, FURTHEST = timedelta(hours=1), timedelta(days=1)
PAGE = 100
# What a round does not reach the next one does.
ROUND_S = 4.0
# A replay with all that the store needs for it; its answer alone has to be smaller.
LARGEST_REPLAY = 4 * LARGEST_ANSWER

_SINCE = """
SELECT now() AS now, greatest((SELECT max(ended_at) FROM routing_rewards) - $1::interval,
                              now() - $2::interval) AS since
"""
_OPEN = """
SELECT o.inference_id, o.tenant_id, o.task_type, o.cell, o.outcome_status, o.fallback_chain,
       o.created_at, r.model_slug, i.dialect, now() AS now
  FROM routing_outcomes o
  JOIN receipts r ON r.inference_id = o.inference_id
  JOIN inferences i ON i.id = o.inference_id
 WHERE o.created_at >= $1 AND o.created_at < $2
   AND (o.created_at, o.inference_id) > ($1, $3)
   AND NOT EXISTS (SELECT FROM routing_rewards w WHERE w.inference_id = o.inference_id)
 ORDER BY o.created_at, o.inference_id LIMIT $4
"""
_WRITE = """
INSERT INTO routing_rewards (inference_id, tenant_id, task_type, band, model, failed_models,
                             finish, code, json, tools, note, checked, reward, ended_at)
SELECT inference_id, tenant_id, task_type, band, model, failed_models,
       finish, code, json, tools, note, checked, reward, ended_at
  FROM jsonb_populate_recordset(NULL::routing_rewards, $1::jsonb)
ON CONFLICT (inference_id) DO NOTHING
"""
_ENDINGS = {
    "failed_provider": Finish.ERROR,
    "failed_midstream": Finish.ERROR,
    "cancelled": Finish.CANCELLED,
}
GONE = Signals(Finish.UNKNOWN, note="gone")
TOO_LARGE = Signals(Finish.UNKNOWN, note="too_large")
TOO_HARD = Signals(Finish.UNKNOWN, note="too_hard")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer in its replay: what was told, and what was asked of its form, as it was packed."""

    told: bytes
    asked: bytes | None


class Rewards:
    """All rounds of one books worker; before `_since` nothing is left to do."""

    def __init__(self, db: Database, redis: Redis, judge: Judge) -> None:
        self._db = db
        self._redis = redis
        self._judge = judge
        self._since: datetime | None = None
        # of these a word was too hard to read in this round; more of theirs waits for nobody
        self._hard: set[UUID] = set()
        self._busy = asyncio.Lock()

    async def aclose(self) -> None:
        await self._judge.aclose()

    async def round(self) -> int:
        """Write the rewards of what ended since the last round. Returns how many.

        None are written while another round is under way here.
        """
        if self._busy.locked():
            return 0
        async with self._busy:
            self._hard.clear()
            async with round_connection(self._db) as connection:
                begun = await connection.fetchrow(_SINCE, BEFORE_LAST, FURTHEST)
                assert begun is not None
                return await self._walk(connection, self._since or begun["since"], begun["now"])

    async def _walk(self, connection: Connection, since: datetime, now: datetime) -> int:
        written, at, after, slice_ = 0, since, UUID(int=0), SLICE
        ends_at = time.monotonic() + ROUND_S
        waits_from = now - OVERLAP
        while at < now and time.monotonic() < ends_at:
            until = min(at + slice_, now)
            rows = await connection.fetch(_OPEN, at, until, after, PAGE)
            if not rows:  # the longer nothing happened, the longer the steps
                at, after, slice_ = until, UUID(int=0), slice_ * 2
                continue
            count, waiting = await self._page(connection, rows)
            written += count
            at, after, slice_ = rows[-1]["created_at"], rows[-1]["inference_id"], SLICE
            waits_from = min(waits_from, waiting or waits_from)
        self._since = min(at, waits_from)
        return written

    async def _page(
        self, connection: Connection, rows: Sequence[asyncpg.Record]
    ) -> tuple[int, datetime | None]:
        """How many rewards were written, and since when an answer is waited for."""
        wanted = [row["inference_id"] for row in rows if row["outcome_status"] == "succeeded"]
        sizes = await self._sizes(wanted)
        rewards, waiting = [], None
        for row in rows:
            signals = await self._signals(row, sizes.get(row["inference_id"]))
            if signals is not None:
                rewards.append(reward_of(dict(row), signals))
            elif waiting is None:
                waiting = row["created_at"]
        if rewards:
            await connection.execute(_WRITE, orjson.dumps(rewards, default=str).decode())
            await self._redis.unlink(*[asked_key(each["inference_id"]) for each in rewards])
        return len(rewards), waiting

    async def _sizes(self, wanted: Sequence[UUID]) -> dict[UUID, int | None]:
        pipeline = self._redis.pipeline(transaction=False)
        for inference_id in wanted:
            pipeline.memory_usage(replay_key(inference_id))
        return dict(zip(wanted, await pipeline.execute(), strict=True))

    async def _signals(self, row: asyncpg.Record, size: int | None) -> Signals | None:
        """The signals of one call; None while its answer may still come."""
        status = row["outcome_status"]
        if status != "succeeded":
            return Signals(_ENDINGS.get(status, Finish.UNKNOWN))
        if size is not None and size > LARGEST_REPLAY:
            return TOO_LARGE
        found = None if size is None else await self._read(row["inference_id"])
        if found is None:
            return GONE if row["now"] - row["created_at"] > PATIENCE else None
        if len(found.told) > LARGEST_ANSWER:
            return TOO_LARGE
        if row["tenant_id"] in self._hard:
            return TOO_HARD
        signals = await self._judge.look_at(Dialect(row["dialect"]), found.told, found.asked)
        if signals.note == TOO_HARD.note:
            self._hard.add(row["tenant_id"])
        return signals

    async def _read(self, inference_id: UUID) -> Found | None:
        """The whole answer of the newest attempt; None if some of it is not there."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xrange(replay_key(inference_id))
        pipeline.get(asked_key(inference_id))
        entries, asked = await pipeline.execute()
        records = [each for _, entry in entries for each in unpack_records(entry[RECORDS])]
        told = whole_answer(records)
        if told is None or (ASKED in entries[-1][1] and asked is None):
            return None
        return Found(told, asked)


def whole_answer(records: Sequence[Record]) -> bytes | None:
    """The words of an answer that came to its end and lacks nothing."""
    if not records or records[-1].kind is not RecordKind.DONE:
        return None
    attempt = records[-1].attempt
    of_attempt = [record for record in records if record.attempt == attempt]
    if any(record.seq != place for place, record in enumerate(of_attempt)):
        return None
    return b"".join([record.body for record in of_attempt if record.kind in WORDS])


def reward_of(row: Mapping[str, Any], signals: Signals) -> dict[str, Any]:
    """The row of `routing_rewards`, as JSON."""
    return {
        "inference_id": row["inference_id"],
        "tenant_id": row["tenant_id"],
        "task_type": row["task_type"],
        "band": row["cell"].rpartition(":")[2],
        "model": row["model_slug"],
        "failed_models": [each["model"] for each in orjson.loads(row["fallback_chain"])],
        "finish": signals.finish,
        "code": signals.code,
        "json": signals.json,
        "tools": signals.tools,
        "note": signals.note,
        "checked": signals.checked,
        "reward": signals.reward,
        "ended_at": row["created_at"],
    }


@put_off
async def reward_outcomes(ctx: Mapping[str, Any]) -> int:
    """Write down what can be told of answers that ended lately. Returns of how many."""
    rewards: Rewards = ctx["rewards"]
    return await rewards.round()
