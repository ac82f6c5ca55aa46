"""The books worker's rounds: close what nobody will finish, sign what was witnessed, end grants."""

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import InterfaceError, OperationalError

from shared.config import Settings
from shared.db import TRANSIENT, Database
from shared.domain.closing import closing_item
from shared.errors import DeadlineExceeded
from shared.kept import KeptCalls, KeptResult
from shared.queue import InferenceQueue
from shared.routed_events import newest_routed_event
from shared.stream import Record, RecordKind, pack_failure
from workers.call import Outcome
from workers.checkpoints import Checkpointer
from workers.ledger import Ledger

log = logging.getLogger(__name__)

SWEEP_LIMIT = 100
R = TypeVar("R", bound=Callable[..., Coroutine[Any, Any, Any]])

LOST = DeadlineExceeded("The call was lost and its hold has run out.").failure()

# A hold outlives every deadline of its call, so one that has run out belongs to nobody. A call that
# was replayed was routed more than once: the newest decision counts.
EXPIRED_HOLDS = f"""
SELECT i.id, i.tenant_id, i.agent_id, i.attempt, i.routed, i.dialect, i.model, e.payload,
       k.inference_id IS NOT NULL AS kept, c.models
  FROM inferences i
  LEFT JOIN dead_letters d ON d.inference_id = i.id
{newest_routed_event("CASE WHEN d.inference_id IS NOT NULL THEN i.hold_expires_at END")}
  LEFT JOIN catalog_snapshots c ON c.hash = e.payload::jsonb #>> '{{decision,catalog_hash}}'
  LEFT JOIN kept_calls k ON k.inference_id = i.id AND k.state = 'accepted'
 WHERE i.state = 'held' AND i.hold_expires_at < now()
 ORDER BY i.hold_expires_at
 LIMIT $1
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


def put_off(round_: R) -> R:
    """A round that waits for its next turn while a store is away: that is no bug of ours."""

    @wraps(round_)
    async def around(ctx: Mapping[str, Any]) -> Any:
        try:
            return await round_(ctx)
        except (RedisError, OperationalError, InterfaceError, *TRANSIENT) as away:
            # the words of a database may be those of a row: its kind must do
            about = {"round": round_.__name__, "error": type(away).__name__}
            log.warning("round_put_off", extra=about)
            return None

    return cast(R, around)


@put_off
async def release_expired_holds(ctx: Mapping[str, Any]) -> int:
    """Settle calls whose worker is gone for good: expired, nothing charged. Returns how many."""
    deps: BooksDeps = ctx["deps"]
    connection = await deps.db.connect_raw()
    try:
        rows = await connection.fetch(EXPIRED_HOLDS, SWEEP_LIMIT)
    finally:
        await connection.close()
    for row in rows:
        routed_event = orjson.loads(row["payload"]) if row["payload"] else {}
        models = orjson.loads(row["models"]) if row["models"] else None
        item = closing_item(dict(row), routed_event, Outcome.EXPIRED.value, LOST.code, models)
        if row["kept"]:
            item["kept"] = deps.kept.settlement(row["id"], Outcome.EXPIRED, lost(dict(row)))
        result = await deps.ledger.settle(item)
        log.warning("hold_expired", extra={"inference_id": str(row["id"]), "result": result})
    return len(rows)


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
    connection = await deps.db.connect_raw()
    try:
        ended: int = await connection.fetchval("SELECT count(*) FROM expire_grants()")
    finally:
        await connection.close()
    if ended:
        log.info("grants_ended", extra={"grants": ended})
    return ended
