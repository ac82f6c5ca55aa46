"""What becomes of a call that cannot be finished: buried by a worker, tended by the books.

A call dies when it took several workers with it, when a bug stopped it before any provider was
asked, or when its envelope cannot be read. It is over only when an operator or the clock says so.
"""

import base64
import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from shared.dead_letters import close_letter, forget_letters, overdue_letters
from shared.domain.attempts import LetterState
from shared.domain.inference import ROUTING_TARGET, Failure
from shared.kept import KeptResult
from shared.keys import request_sealer
from shared.queue import Envelope
from shared.replays import enqueue_replay, forget_requests, not_begun
from shared.stream import Record, RecordKind, pack_failure
from workers.deps import Deps
from workers.rounds import put_off
from workers.sweep import BooksDeps

log = logging.getLogger(__name__)

DAY_S = 24 * 60 * 60
TEND_LIMIT = 100
# A replay that has not begun by then has lost its job, unless the queue still holds it.
NOT_BEGUN_S = 15.0
BY_CLOCK = "expiry"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a call is given up; neither text holds anything that a client or a provider said."""

    code: str
    message: str

    @classmethod
    def of(cls, bug: Exception) -> "Cause":
        """What was raised and where. What it says stays in the log, which is scrubbed."""
        frames = traceback.extract_tb(bug.__traceback__)
        where = f" at {frames[-1].name}, line {frames[-1].lineno}" if frames else ""
        return cls("internal_error", f"{type(bug).__name__}{where}")


WORKERS_LOST = Cause("worker_lost", "Every worker that took the call up was lost with it.")
UNREADABLE = Cause("envelope_unreadable", "The job's envelope cannot be read by this version.")


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a call: its job as it was claimed, and its envelope if it can be read.

    `handed_back` are attempts that a worker gave back in good order, because it was stopped.
    """

    inference_id: UUID
    attempt: int
    payload: bytes = field(repr=False)
    envelope: Envelope | None = None
    handed_back: frozenset[int] = frozenset()
    late: bool = False

    @property
    def lost(self) -> list[int]:
        """The attempts before this one that were lost with their workers."""
        tried = self.envelope.tried if self.envelope is not None else self.attempt - 1
        return [n for n in range(tried + 1, self.attempt) if n not in self.handed_back]

    def tell(self, failure: Failure, deps: Deps) -> None:
        """The first and only word of an attempt that made no answer."""
        if self.envelope is None:
            return
        line = deps.publisher.open_line(self.envelope, self.attempt)
        deps.publisher.publish(line, [self.record(failure)], urgent=True)

    def record(self, failure: Failure) -> Record:
        body = pack_failure(failure)
        return Record(self.inference_id.bytes, self.attempt, RecordKind.FAIL, 0, body)

    def failures(self, cause: Cause) -> list[dict[str, Any]]:
        """One entry for each attempt that has left a trace here."""
        lost = [{"attempt": n, "code": WORKERS_LOST.code} for n in self.lost]
        if cause is WORKERS_LOST:
            return lost
        return [*lost, {"attempt": self.attempt, "code": cause.code, "message": cause.message}]


async def bury(remains: Remains, cause: Cause, told: Failure, deps: Deps) -> None:
    """Make a dead letter of a call: its hold is voided, its request kept sealed.

    `told` is what clients hear who ask for a kept call while it is dead.
    """
    sealer = request_sealer(deps.settings.master_key.get_secret_value())
    sealed = sealer.seal(remains.payload, remains.inference_id)
    envelope = remains.envelope
    item = {
        "inference_id": str(remains.inference_id),
        "tenant_id": envelope.caller["tenant_id"] if envelope else None,
        "agent_id": envelope.caller["agent_id"] if envelope else None,
        "attempt": remains.attempt,
        "routed": envelope is not None and envelope.model == ROUTING_TARGET,
        "dialect": envelope.dialect.value if envelope else "",
        "model": envelope.model if envelope else "",
        "envelope": base64.b64encode(sealed).decode("ascii"),
        "error_code": cause.code,
        "error_message": cause.message,
        "failures": remains.failures(cause),
        "ttl_s": int(deps.settings.dead_letter_days * DAY_S),
    }
    if envelope is not None and envelope.kept:
        failed = KeptResult(remains.record(told).pack())
        item["kept_result"] = deps.kept.settlement(remains.inference_id, "", failed)["result"]
    result = await deps.ledger.bury(item)
    log.error("dead_letter", extra={"code": cause.code, "result": result})


@put_off
async def tend_dead_letters(ctx: Mapping[str, Any]) -> dict[str, int]:
    """The books' round: expire what nobody cared for, queue lost replays again, forget the rest.

    `forgotten` are requests of calls that are over, `cleared` whole letters, long after that.
    """
    deps: BooksDeps = ctx["deps"]
    done = {
        "expired": await _expire(deps),
        "queued": await _queue_again(deps),
    }
    async with deps.db.everyone() as session:
        done["forgotten"] = await forget_requests(session)
        done["cleared"] = await forget_letters(session)
        await session.commit()
    if any(done.values()):
        log.info("dead_letters_tended", extra=done)
    return done


async def _expire(deps: BooksDeps) -> int:
    async with deps.db.everyone() as session:
        overdue = await overdue_letters(session, TEND_LIMIT)
    expired = 0
    for inference_id in overdue:
        async with deps.db.everyone() as session:
            expired += await close_letter(
                session, deps.kept, inference_id, LetterState.EXPIRED, BY_CLOCK
            )
            await session.commit()
    return expired


async def _queue_again(deps: BooksDeps) -> int:
    """An order to replay is in Postgres before it is in the queue, so the queue may lack it."""
    sealer = request_sealer(deps.settings.master_key.get_secret_value())
    async with deps.db.everyone() as session:
        replays = await not_begun(session, sealer, NOT_BEGUN_S, TEND_LIMIT)
    try:
        queued = await deps.queue.holding([replay.envelope.inference_id for replay in replays])
        lost = [replay for replay in replays if replay.envelope.inference_id not in queued]
        for replay in lost:
            await enqueue_replay(deps.queue, replay)
    except (RedisError, OSError) as error:
        log.warning("replays_not_queued", extra={"error": repr(error)})
        return 0
    return len(lost)
