"""A dead call run once more: the order in Postgres first, then the job in the queue.

What is lost between the two, or by the queue later, the books worker enqueues again, as long as
the call has not begun. Nothing here commits.
"""

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from shared.dead_letters import DeadLetterRow, read_envelope, resolve_letter
from shared.domain.attempts import OVER, CallState, LetterState
from shared.kept import ACCEPTED, DEAD, KeptCallRow
from shared.keys import SealBroken, Sealer
from shared.models import InferenceRow
from shared.operators import record_act
from shared.queue import Envelope, InferenceQueue, Priority, Queued

# an attempt's number is one byte on the wire between worker and ingress
MOST_ATTEMPTS = 240


class ReplayRefusal(StrEnum):
    """Why a letter is not replayed."""

    UNKNOWN = "unknown"
    NOT_DEAD = "not_dead"
    UNREADABLE = "unreadable"
    WORN_OUT = "worn_out"


@dataclass(frozen=True, slots=True)
class Replay:
    """A call about to run again; `attempts` were made so far."""

    envelope: Envelope
    attempts: int


async def order_replay(
    session: AsyncSession, sealer: Sealer, inference_id: UUID, actor: str
) -> Replay | ReplayRefusal:
    """Take a dead letter, so that its call may run once more. The caller commits, then enqueues."""
    query = select(DeadLetterRow).where(col(DeadLetterRow.inference_id) == inference_id)
    letter = await session.scalar(query)
    if letter is None:
        return ReplayRefusal.UNKNOWN
    if letter.state != LetterState.DEAD or letter.envelope is None:
        return ReplayRefusal.NOT_DEAD
    if letter.attempts > MOST_ATTEMPTS:
        return ReplayRefusal.WORN_OUT
    try:
        envelope = read_envelope(sealer.open(letter.envelope, inference_id))
    except (SealBroken, ValueError):
        return ReplayRefusal.UNREADABLE
    taken = await resolve_letter(session, inference_id, LetterState.REPLAYED, actor)
    if taken is None:
        return ReplayRefusal.NOT_DEAD
    replay = renewed(envelope, taken.attempts)
    if envelope.kept:
        await _accept_again(session, sealer.seal(replay.envelope.pack(), inference_id), replay)
    about = {"attempts": taken.attempts, "code": taken.error_code}
    await record_act(session, "dead_letter.replay", str(inference_id), actor=actor, **about)
    return replay


async def _accept_again(session: AsyncSession, sealed: bytes, replay: Replay) -> None:
    """A kept call is accepted once more; what drives lost calls into the queue knows it again."""
    accepting = (
        update(KeptCallRow)
        .where(
            col(KeptCallRow.inference_id) == replay.envelope.inference_id,
            col(KeptCallRow.state) == DEAD,
        )
        .values(state=ACCEPTED, envelope=sealed, result=None, driven_at=func.now())
    )
    await session.execute(accepting)


def renewed(envelope: Envelope, attempts: int) -> Replay:
    """The envelope of another run: its deadline begins now, and so does its count of crashes."""
    return Replay(replace(envelope, accepted_at=time.time(), tried=attempts), attempts)


async def enqueue_replay(queue: InferenceQueue, replay: Replay) -> Queued:
    """Queue it behind everybody else's calls, whatever else waits: it was accepted long ago."""
    return await queue.enqueue(
        replay.envelope, Priority.REPLAY, attempts=replay.attempts, limit=False
    )


async def not_begun(
    session: AsyncSession, sealer: Sealer, older_than_s: float, limit: int
) -> list[Replay]:
    """Replays that were ordered a while ago and have not begun: their job may be lost.

    One that has begun and was lost later is ended when its hold runs out: nobody would know
    whether a provider is being asked for it.
    """
    begun = (
        select(col(InferenceRow.id))
        .where(
            col(InferenceRow.id) == col(DeadLetterRow.inference_id),
            col(InferenceRow.state) != CallState.DEAD,
        )
        .exists()
    )
    query = (
        select(DeadLetterRow)
        .where(
            col(DeadLetterRow.state) == LetterState.REPLAYED,
            col(DeadLetterRow.envelope).is_not(None),
            col(DeadLetterRow.resolved_at) < func.now() - timedelta(seconds=older_than_s),
            ~begun,
        )
        .order_by(col(DeadLetterRow.resolved_at))
        .limit(limit)
    )
    found = []
    for letter in await session.scalars(query):
        assert letter.envelope is not None
        try:
            envelope = read_envelope(sealer.open(letter.envelope, letter.inference_id))
        except (SealBroken, ValueError):
            continue
        found.append(renewed(envelope, letter.attempts))
    return found


async def forget_requests(session: AsyncSession) -> int:
    """Delete the requests of replayed calls that are over. Returns how many. The caller commits."""
    over = (
        select(col(InferenceRow.id))
        .where(
            col(InferenceRow.id) == col(DeadLetterRow.inference_id),
            col(InferenceRow.state).in_(OVER),
        )
        .exists()
    )
    forgetting = (
        update(DeadLetterRow)
        .where(
            col(DeadLetterRow.state) == LetterState.REPLAYED,
            col(DeadLetterRow.envelope).is_not(None),
            over,
        )
        .values(envelope=None)
        .returning(col(DeadLetterRow.inference_id))
    )
    return len((await session.execute(forgetting)).all())
