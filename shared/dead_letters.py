"""Dead letters: calls that could not be finished, looked at and ended for good.

A letter keeps the call's request, sealed, until the call is over. Whoever moves it on, by a replay
(replays.py), a discard or its expiry, is the only one who does: only a letter that is `dead` can
be moved. Nothing here commits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import (
    Column,
    DateTime,
    Index,
    Row,
    RowMapping,
    Select,
    Text,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col

from shared.domain.attempts import LetterState
from shared.domain.closing import closing_item
from shared.errors import DeadlineExceeded, InternalError
from shared.kept import KeptCalls, KeptResult
from shared.keys import Sealer
from shared.models import document, moment
from shared.operators import record_act
from shared.queue import Envelope
from shared.routed_events import newest_routed_event
from shared.stream import Record, RecordKind, pack_failure

# discarded: nobody will ever answer it, which is ours; expired: nobody cared in time
ENDINGS = {LetterState.DISCARDED: "failed_provider", LetterState.EXPIRED: "expired"}


class DeadLetterRow(SQLModel, table=True):
    """A call that cannot be finished. `failures` says of each attempt what is known.

    `envelope` is sealed for the inference's id and gone once the call is over; tenant and agent
    are None where it could not be read.
    """

    __tablename__ = "dead_letters"
    __table_args__ = (
        Index("dead_letters_died_at_idx", "died_at"),
        Index("dead_letters_tenant_id_idx", "tenant_id", "died_at"),
        Index("dead_letters_expires_at_idx", "expires_at", postgresql_where=text("state = 'dead'")),
        Index(
            "dead_letters_under_way_idx",
            "resolved_at",
            postgresql_where=text("state = 'replayed' AND envelope IS NOT NULL"),
        ),
        Index(
            "dead_letters_over_idx",
            "resolved_at",
            postgresql_where=text("state <> 'dead' AND envelope IS NULL"),
        ),
    )

    inference_id: UUID = Field(primary_key=True)
    tenant_id: UUID | None = None
    agent_id: UUID | None = None
    dialect: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    envelope: bytes | None = Field(default=None, sa_type=BYTEA)
    error_code: str = Field(sa_type=Text)
    error_message: str = Field(sa_type=Text)
    attempts: int
    failures: list[dict[str, Any]] = document()
    state: str = Field(default="dead", sa_type=Text, sa_column_kwargs={"server_default": "dead"})
    died_at: datetime = moment()
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    resolved_at: datetime | None = moment(optional=True)
    resolved_by: str | None = Field(default=None, sa_type=Text)
    # when it held money again, after a replay
    held_again_at: datetime | None = moment(optional=True)


_LOCK = text(
    """
SELECT 1 FROM accounts w JOIN inferences i ON i.agent_id = w.agent_id WHERE i.id = :id
   FOR UPDATE OF w
"""
)
DEAD_CALL = f"""
SELECT i.id, i.tenant_id, i.agent_id, i.attempt, i.routed, i.dialect, i.model, e.payload, c.models
  FROM inferences i
  JOIN dead_letters d ON d.inference_id = i.id
{newest_routed_event("d.died_at")}
  LEFT JOIN catalog_snapshots c ON c.hash = e.payload::jsonb #>> '{{decision,catalog_hash}}'
 WHERE i.id = :id AND i.state = 'dead'
"""
# Of a replayed letter the request is gone once its call is over.
_FORGET = text(
    """
DELETE FROM dead_letters WHERE inference_id IN (
  SELECT d.inference_id FROM dead_letters d
   WHERE d.state <> 'dead' AND d.envelope IS NULL
     AND d.resolved_at < now() - make_interval(days => :days)
   ORDER BY d.resolved_at LIMIT :most)
RETURNING 1
"""
)
# what became of a letter is shown for so long; who did it stands in `operator_events` for good
REMEMBERED_DAYS = 90
_END = text("SELECT result FROM end_inferences(cast(:batch AS jsonb))")


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant; None means any. `since` is about when they died."""

    state: LetterState | None = LetterState.DEAD
    tenant_id: UUID | None = None
    since: datetime | None = None
    code: str | None = None
    model: str | None = None


# everything but the request itself
_SHOWN = tuple(
    col(getattr(DeadLetterRow, name)) for name in DeadLetterRow.model_fields if name != "envelope"
)


def letter_json(letter: Row[Any]) -> dict[str, Any]:
    """A letter as operators see it: all but the request, moments in ISO 8601, ids as text."""
    return {
        name: value.isoformat()
        if isinstance(value, datetime)
        else str(value)
        if isinstance(value, UUID)
        else value
        for name, value in letter._mapping.items()
    }


async def find_letters(
    session: AsyncSession, wanted: LetterFilter, limit: int | None = None
) -> list[dict[str, Any]]:
    """The letters that a filter means, the oldest first, without their requests."""
    query = _filtered(select(*_SHOWN), wanted).order_by(col(DeadLetterRow.died_at))
    return [letter_json(row) for row in await session.execute(query.limit(limit))]


def _filtered(query: Select[Any], wanted: LetterFilter) -> Select[Any]:
    equal = {
        DeadLetterRow.state: wanted.state,
        DeadLetterRow.tenant_id: wanted.tenant_id,
        DeadLetterRow.error_code: wanted.code,
        DeadLetterRow.model: wanted.model,
    }
    for column, value in equal.items():
        if value is not None:
            query = query.where(col(column) == value)
    if wanted.since is not None:
        query = query.where(col(DeadLetterRow.died_at) >= wanted.since)
    return query


async def read_letter(session: AsyncSession, inference_id: UUID) -> dict[str, Any] | None:
    """One letter without its request."""
    query = select(*_SHOWN).where(col(DeadLetterRow.inference_id) == inference_id)
    row = (await session.execute(query)).one_or_none()
    return letter_json(row) if row is not None else None


async def reveal_request(
    session: AsyncSession, sealer: Sealer, inference_id: UUID, actor: str
) -> bytes | None:
    """The client's body as it came, or None where it is gone; that it was read is recorded.

    Raises `SealBroken`, and `ValueError` for an envelope that cannot be read.
    """
    query = select(col(DeadLetterRow.envelope)).where(
        col(DeadLetterRow.inference_id) == inference_id
    )
    sealed = await session.scalar(query)
    if sealed is None:
        return None
    packed = sealer.open(sealed, inference_id)
    await record_act(session, "dead_letter.reveal", str(inference_id), actor=actor)
    return read_envelope(packed).body


def read_envelope(packed: bytes) -> Envelope:
    """The envelope of a job. Raises `ValueError` where it cannot be read, whatever the reason."""
    try:
        return Envelope.unpack(packed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an envelope: {type(error).__name__}") from error


async def resolve_letter(
    session: AsyncSession, inference_id: UUID, state: LetterState, actor: str
) -> Row[Any] | None:
    """Move a letter out of `dead`, if it is; only one who tries gets it."""
    values: dict[str, Any] = {"state": state, "resolved_at": func.now(), "resolved_by": actor}
    if state is not LetterState.REPLAYED:
        values["envelope"] = None
    taking = (
        update(DeadLetterRow)
        .where(
            col(DeadLetterRow.inference_id) == inference_id,
            col(DeadLetterRow.state) == LetterState.DEAD,
        )
        .values(**values)
        .returning(*_SHOWN)
    )
    return (await session.execute(taking)).one_or_none()


async def close_letter(
    session: AsyncSession, kept: KeptCalls, inference_id: UUID, state: LetterState, actor: str
) -> bool:
    """End a dead call for good: no charge, one capture if it was routed, one audit event.

    A kept call has its failure as its result, and gives its idempotency key back. `state` is
    `DISCARDED` or `EXPIRED`. False where the letter does not wait any more. The caller commits.
    """
    # looked for before anything is locked: the agent's other calls need the wallet meanwhile
    found = await _dead_call(session, inference_id)
    await _lock_wallet(session, inference_id)
    letter = await resolve_letter(session, inference_id, state, actor)
    if letter is None:
        return False
    if found is None or found["attempt"] != letter.attempts:
        found = await _dead_call(session, inference_id)  # replayed meanwhile, and dead again
    if found is not None:
        code = DeadlineExceeded.code if state is LetterState.EXPIRED else letter.error_code
        event, models = _routed_event(found), found["models"]
        item = closing_item(dict(found), event, ENDINGS[state], code, models)
        item["kept"] = kept.settlement(
            inference_id, ENDINGS[state], given_up(inference_id, item["attempt"]), frees_key=True
        )
        result = await session.scalar(_END, {"batch": orjson.dumps([item]).decode()})
        if result != "SETTLED":
            raise RuntimeError(f"the dead call {inference_id} could not be ended: {result}")
    if state is LetterState.DISCARDED:
        await record_act(
            session, "dead_letter.discard", str(inference_id), actor=actor, code=letter.error_code
        )
    return True


def given_up(inference_id: UUID, attempt: int) -> KeptResult:
    """What the client of a kept call is told that nobody will finish."""
    failure = InternalError(
        "The call could not be finished and was given up; nothing was charged for it."
    ).failure()
    body = pack_failure(failure)
    return KeptResult(Record(inference_id.bytes, attempt, RecordKind.FAIL, 0, body).pack())


async def _dead_call(session: AsyncSession, inference_id: UUID) -> RowMapping | None:
    """The call of a letter and its routing event; None where the call was never written."""
    return (await session.execute(text(DEAD_CALL), {"id": inference_id})).mappings().one_or_none()


async def _lock_wallet(session: AsyncSession, inference_id: UUID) -> None:
    """Wallet before letter, as whoever buries a call locks them: the two never wait in a ring."""
    await session.execute(_LOCK, {"id": inference_id})


def _routed_event(found: Mapping[Any, Any]) -> dict[str, Any]:
    payload = found["payload"]
    event: dict[str, Any] = orjson.loads(payload) if payload else {}
    return event


async def count_letters(session: AsyncSession) -> dict[str, int]:
    """How many letters there are of each state."""
    query = select(col(DeadLetterRow.state), func.count()).group_by(col(DeadLetterRow.state))
    found: dict[str, int] = {row[0]: row[1] for row in await session.execute(query)}
    return {state.value: found.get(state, 0) for state in LetterState}


async def overdue_letters(session: AsyncSession, limit: int) -> list[UUID]:
    """Letters whose time is over and that nobody cared for."""
    query = (
        select(col(DeadLetterRow.inference_id))
        .where(
            col(DeadLetterRow.state) == LetterState.DEAD,
            col(DeadLetterRow.expires_at) <= func.now(),
        )
        .order_by(col(DeadLetterRow.expires_at))
        .limit(limit)
    )
    return list(await session.scalars(query))


async def forget_letters(session: AsyncSession, most: int = 1_000) -> int:
    """Delete letters whose calls have long been over. Returns how many. The caller commits."""
    about = {"days": REMEMBERED_DAYS, "most": most}
    return len((await session.execute(_FORGET, about)).all())
