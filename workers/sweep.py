"""The books worker's rounds: close what nobody will finish, take back what a grant left."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from shared.config import Settings
from shared.db import Database
from shared.domain.audit import EventType, draft
from shared.errors import DeadlineExceeded
from shared.kept import KeptCalls, KeptResult
from shared.queue import InferenceQueue
from shared.stream import Record, RecordKind, pack_failure
from workers.call import Outcome
from workers.ledger import Ledger

log = logging.getLogger(__name__)

SWEEP_LIMIT = 100
LOST = DeadlineExceeded("The call was lost and its hold has run out.").failure()

# A hold outlives every deadline of its call, so one that has run out belongs to nobody.
EXPIRED_HOLDS = """
SELECT i.id, i.tenant_id, i.agent_id, i.attempt, i.routed, i.dialect, i.model, e.payload,
       k.inference_id IS NOT NULL AS kept
  FROM inferences i
  LEFT JOIN audit_events e
    ON e.agent_id = i.agent_id AND e.event_type = 'inference.routed'
   AND e.created_at >= i.created_at - interval '1 minute'
   AND e.payload::jsonb ->> 'inference_id' = i.id::text
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


async def release_expired_holds(ctx: Mapping[str, Any]) -> int:
    """Settle calls whose worker is gone for good: expired, nothing charged. Returns how many."""
    deps: BooksDeps = ctx["deps"]
    connection = await deps.db.connect_raw()
    try:
        rows = await connection.fetch(EXPIRED_HOLDS, SWEEP_LIMIT)
    finally:
        await connection.close()
    for row in rows:
        item = expiry_item(dict(row))
        if row["kept"]:
            item["kept"] = deps.kept.settlement(row["id"], Outcome.EXPIRED, lost(dict(row)))
        result = await deps.ledger.settle(item)
        log.warning("hold_expired", extra={"inference_id": str(row["id"]), "result": result})
    return len(rows)


def expiry_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settlement of a call of which only its hold and its routing event are left."""
    routed: dict[str, Any] = orjson.loads(row["payload"]) if row["payload"] else {}
    data = {
        "inference_id": str(row["id"]),
        "router": routed.get("router", "direct"),
        "model": routed.get("model", row["model"]),
        "provider": routed.get("provider"),
        "code": LOST.code,
        "outcome": Outcome.EXPIRED.value,
    }
    event = draft(EventType.PROVIDER_FAILED, str(row["agent_id"]), data)
    return {
        "inference_id": str(row["id"]),
        "tenant_id": str(row["tenant_id"]),
        "agent_id": str(row["agent_id"]),
        # one more than its last worker's: should that one come late, it finds itself fenced off
        "attempt": row["attempt"] + 1,
        "refused": False,
        "charge": "0",
        "routed": row["routed"],
        "dialect": row["dialect"],
        "model": row["model"],
        "events": [event.wire()],
        "outcome": expired_outcome(row, routed) if row["routed"] else None,
        "receipt": None,
    }


def lost(row: Mapping[str, Any]) -> KeptResult:
    """What the client of such a call is told, if it is kept."""
    record = Record(row["id"].bytes, row["attempt"] + 1, RecordKind.FAIL, 0, pack_failure(LOST))
    return KeptResult(record.pack())


def expired_outcome(row: Mapping[str, Any], routed: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inference_id": str(row["id"]),
        "tenant_id": str(row["tenant_id"]),
        "agent_id": str(row["agent_id"]),
        "task_type": routed.get("task_type", "general"),
        "cell": routed.get("cell"),
        "decision_rule": routed.get("decision_rule", "unknown"),
        "policy_version": routed.get("policy_version", "unknown"),
        "ruleset_hash": routed.get("ruleset_hash", "unknown"),
        "min_quality": routed.get("min_quality", "0"),
        "chosen_model_slug": routed.get("model"),
        "provider": routed.get("provider"),
        "cost_projected": routed.get("cost_projected"),
        "cost_actual": "0",
        "outcome_status": Outcome.EXPIRED.value,
        "fallback_chain": [],
        "decision": {},
    }


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
