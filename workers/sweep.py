"""The books worker's rounds: close what nobody will finish, sign what was witnessed, end grants."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import Connection, Database
from shared.domain.closing import closing_item
from shared.errors import DeadlineExceeded
from shared.kept import KeptCalls, KeptResult
from shared.queue import InferenceQueue
from shared.routed_events import newest_routed_event
from shared.stream import Record, RecordKind, pack_failure
from workers.call import Outcome
from workers.checkpoints import Checkpointer
from workers.ledger import Ledger
from workers.rounds import put_off, round_connection, within

log = logging.getLogger(__name__)

# As many as four of the settler's batches; what a round does not reach the next one does.
SWEEP_PAGE = 128
ROUND_S = 10.0
# in one transaction, each with its wallet locked
GRANTS_PAGE = 500

LOST = DeadlineExceeded("The call was lost and its hold has run out.").failure()

# A hold outlives every deadline of its call, so one that has run out belongs to nobody. A call that
# was replayed was routed more than once: the newest decision counts.
EXPIRED_HOLDS = f"""
SELECT i.id, i.tenant_id, i.agent_id, i.attempt, i.routed, i.dialect, i.model, i.hold_expires_at,
       e.payload, k.inference_id IS NOT NULL AS kept, c.models
  FROM inferences i
  LEFT JOIN dead_letters d ON d.inference_id = i.id
{newest_routed_event("CASE WHEN d.inference_id IS NOT NULL THEN i.hold_expires_at END")}
  LEFT JOIN catalog_snapshots c ON c.hash = e.payload::jsonb #>> '{{decision,catalog_hash}}'
  LEFT JOIN kept_calls k ON k.inference_id = i.id AND k.state = 'accepted'
 WHERE i.state = 'held' AND i.hold_expires_at < now()
   AND (i.hold_expires_at, i.id) > ($1, $2)
 ORDER BY i.hold_expires_at, i.id
 LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class BooksDeps:
    settings: Settings
    db: Database
    ledger: Ledger
    kept: KeptCalls
    queue: InferenceQueue
    redis: Redis
    checkpointer: Checkpointer | None = None
    sweeping: asyncio.Lock = field(default_factory=asyncio.Lock)


@put_off
async def release_expired_holds(ctx: Mapping[str, Any]) -> int:
    """Settle calls whose worker is gone for good: expired, nothing charged. Returns how many.

    None are settled while another round is under way here.
    """
    deps: BooksDeps = ctx["deps"]
    if deps.sweeping.locked():
        return 0
    async with deps.sweeping, round_connection(deps.db) as connection:
        return await _sweep(connection, deps)


async def _sweep(connection: Connection, deps: BooksDeps) -> int:
    """Page by page, so that one that cannot be settled stands in nobody's way."""
    swept, after = 0, (datetime.min.replace(tzinfo=UTC), UUID(int=0))
    for _ in within(ROUND_S):
        page = await connection.fetch(EXPIRED_HOLDS, *after, SWEEP_PAGE)
        # side by side they share the commits of the settler's batches
        swept += sum(await asyncio.gather(*[_release(row, deps) for row in page]))
        if len(page) < SWEEP_PAGE:
            break
        after = page[-1]["hold_expires_at"], page[-1]["id"]
    return swept


async def _release(row: asyncpg.Record, deps: BooksDeps) -> bool:
    routed_event = orjson.loads(row["payload"]) if row["payload"] else {}
    models = orjson.loads(row["models"]) if row["models"] else None
    item = closing_item(dict(row), routed_event, Outcome.EXPIRED.value, LOST.code, models)
    if row["kept"]:
        item["kept"] = deps.kept.settlement(row["id"], Outcome.EXPIRED, lost(dict(row)))
    about = {"inference_id": str(row["id"])}
    try:
        result = await deps.ledger.settle(item)
    except asyncpg.PostgresError as refused:
        # of this one call: the others are not held up by it
        log.error("hold_not_released", extra={**about, "error": type(refused).__name__})
        return False
    log.warning("hold_expired", extra={**about, "result": result})
    return True


def lost(row: Mapping[str, Any]) -> KeptResult:
    """What the client of such a call is told, if it is kept."""
    record = Record(row["id"].bytes, row["attempt"] + 1, RecordKind.FAIL, 0, pack_failure(LOST))
    return KeptResult(record.pack())


@put_off
async def sign_checkpoint(ctx: Mapping[str, Any]) -> int:
    """Take new audit events into the log and sign its head. Returns how many events."""
    deps: BooksDeps = ctx["deps"]
    return await deps.checkpointer.round() if deps.checkpointer is not None else 0


@put_off
async def expire_grants(ctx: Mapping[str, Any]) -> int:
    """Take back what is left of preview grants that have ended. Returns how many ended."""
    deps: BooksDeps = ctx["deps"]
    ended = 0
    async with round_connection(deps.db) as connection:
        for _ in within(ROUND_S):
            some: int = await connection.fetchval(
                "SELECT count(*) FROM expire_grants($1)", GRANTS_PAGE
            )
            ended += some
            if not some:
                break
    if ended:
        log.info("grants_ended", extra={"grants": ended})
    return ended
