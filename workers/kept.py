"""The rounds of the books worker over calls that are kept: none is lost, none outstays its time.

The queue is only the wake-up call. A call that was accepted, has not ended and is not in the
queue, because the store lost it, or its ingress or its worker died in between, is enqueued again
under its own id. The database counts its attempts, so it starts no attempt over.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from shared.control import CANCEL, give_order
from shared.db import Connection
from shared.keys import SealBroken
from shared.queue import Priority
from workers.rounds import put_off, round_connection, within
from workers.sweep import BooksDeps

log = logging.getLogger(__name__)

PAGE = 500
FORGET_LIMIT = 1000
# What one round does not reach the next one does: what was just driven is passed over.
ROUND_S = 8.0

# Calls that may be lost, in the order of their ids, which is that of their age.
_OPEN = """
SELECT k.inference_id, k.cancelled_at IS NOT NULL AS cancelled
  FROM kept_calls k LEFT JOIN inferences i ON i.id = k.inference_id
 WHERE k.state = 'accepted' AND k.inference_id > $1
   AND k.driven_at < now() - make_interval(secs => $2)
   AND (i.state IS NULL OR i.state IN ('held', 'dead'))  -- dead: but accepted again since
 ORDER BY k.inference_id LIMIT $3
"""
# Of two sweepers one gets the row: the other waits for it, and finds that it was just driven.
_DRIVE = """
UPDATE kept_calls k SET driven_at = now()
  FROM (SELECT $1::uuid AS id) w LEFT JOIN inferences i ON i.id = w.id
 WHERE k.inference_id = w.id AND k.state = 'accepted'
   AND k.driven_at < now() - make_interval(secs => $2)
RETURNING k.envelope, k.background, greatest(k.attempts, coalesce(i.attempt, 0)) AS attempts,
          extract(epoch FROM now() - greatest(k.accepted_at, (
            SELECT max(d.resolved_at) FROM dead_letters d
             WHERE d.inference_id = k.inference_id AND d.state = 'replayed')))::float8 AS age_s
"""
# Settled by something that kept no result: the call has ended all the same.
_CLOSE = """
UPDATE kept_calls k
   SET state = 'done', envelope = NULL, finished_at = i.settled_at,
       outcome = coalesce((SELECT o.outcome_status FROM routing_outcomes o
                            WHERE o.inference_id = k.inference_id), 'expired')
  FROM inferences i
 WHERE i.id = k.inference_id AND k.state = 'accepted' AND i.state IN ('settled', 'refused')
"""
_FORGET = """
DELETE FROM kept_calls WHERE inference_id IN (
  SELECT inference_id FROM kept_calls
   WHERE state = 'done' AND expires_at < now() ORDER BY expires_at LIMIT $1)
"""


@put_off
async def drive_kept_calls(ctx: Mapping[str, Any]) -> int:
    """Enqueue every kept call that has fallen out of the queue. Returns how many."""
    deps: BooksDeps = ctx["deps"]
    async with round_connection(deps.db) as connection:
        driven = await _round(connection, deps)
    if driven:
        log.warning("kept_calls_driven", extra={"driven": driven})
    return driven


async def _round(connection: Connection, deps: BooksDeps) -> int:
    after, driven = UUID(int=0), 0
    patience_s = deps.settings.redrive_after_s
    await connection.execute(_CLOSE)
    for _ in within(ROUND_S):
        page = await connection.fetch(_OPEN, after, patience_s, PAGE)
        if not page:
            break
        driven += await _drive(connection, page, deps)
        after = page[-1]["inference_id"]
    return driven


async def _drive(connection: Connection, page: Sequence[asyncpg.Record], deps: BooksDeps) -> int:
    """Enqueue those of a page that have no job; repeat orders to stop that are not obeyed yet."""
    ids = [row["inference_id"] for row in page]
    held = await deps.queue.holding(ids)
    for row in page:
        if row["cancelled"]:
            await give_order(deps.redis, CANCEL, inference_id=str(row["inference_id"]))
    lost = [each for each in ids if each not in held]
    return sum([await _enqueue(connection, each, deps) for each in lost])


async def _enqueue(connection: Connection, inference_id: UUID, deps: BooksDeps) -> bool:
    row = await connection.fetchrow(_DRIVE, inference_id, deps.settings.redrive_after_s)
    if row is None or row["envelope"] is None:
        return False
    try:
        envelope = deps.kept.open_envelope(inference_id, row["envelope"])
    except SealBroken:
        log.error("kept_call_unreadable", extra={"inference_id": str(inference_id)})
        return False
    priority = Priority.BACKGROUND if row["background"] else Priority.INTERACTIVE
    queued = await deps.queue.enqueue(
        envelope, priority, attempts=row["attempts"], limit=False, age_s=row["age_s"]
    )
    log.info(
        "kept_call_driven",
        extra={"inference_id": str(inference_id), "attempts": row["attempts"]},
    )
    return queued.result == "QUEUED"


@put_off
async def forget_kept_calls(ctx: Mapping[str, Any]) -> int:
    """Delete what has been kept for its time. Returns how many calls."""
    deps: BooksDeps = ctx["deps"]
    forgotten = 0
    async with round_connection(deps.db) as connection:
        while True:
            status = await connection.execute(_FORGET, FORGET_LIMIT)
            deleted = int(status.rpartition(" ")[2])
            forgotten += deleted
            if deleted < FORGET_LIMIT:
                break
    if forgotten:
        log.info("kept_calls_forgotten", extra={"calls": forgotten})
    return forgotten
