"""Calls that are kept: durable in Postgres before anybody hears of them, with their results after.

A call is kept if it runs in the background or has an `Idempotency-Key`. Request and result are
sealed with a key of their own (`shared.keys.request_sealer`) and bound to the inference's id. The
queue only says that there is work: what was accepted and has not ended is driven again from here.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import BYTEA
from sqlalchemy.exc import DBAPIError
from sqlmodel import Field, SQLModel

from shared.config import Settings
from shared.db import TRANSIENT, Database
from shared.domain.inference import Dialect
from shared.keys import SealBroken, Sealer, request_sealer
from shared.models import moment
from shared.queue import Envelope
from shared.quotes import refusal
from shared.stream import Record, unpack_records

log = logging.getLogger(__name__)

ACCEPTED, DONE, DEAD = "accepted", "done", "dead"

# how often, once Postgres answers: over before what was lost is first looked for
WITHDRAWALS, WITHDRAW_EVERY_S = 10, 0.5
# while it does not: once it does, this has to be sooner than what drives kept calls
WITHDRAWAL_WAITS_S = 0.1

_LENGTH = struct.Struct(">Q")

_KEEP = """
SELECT * FROM keep_call(
  cast(:inference_id AS uuid), cast(:receipt_id AS uuid), cast(:tenant_id AS uuid),
  cast(:agent_id AS uuid), cast(:dialect AS text), cast(:path AS text), :stream, :background,
  cast(:key_hash AS bytea), cast(:body_hash AS bytea), cast(:envelope AS bytea),
  cast(:key_s AS double precision), cast(:retain_s AS double precision))
"""
# The same for a call that names a quote. No row: the quote is another call's by now.
_KEEP_QUOTED = """
SELECT * FROM keep_quoted_call(cast(:quote_id AS uuid), cast(:quote_key_hash AS bytea),
  cast(:inference_id AS uuid), cast(:receipt_id AS uuid), cast(:tenant_id AS uuid),
  cast(:agent_id AS uuid), cast(:dialect AS text), cast(:path AS text), :stream, :background,
  cast(:key_hash AS bytea), cast(:body_hash AS bytea), cast(:envelope AS bytea),
  cast(:key_s AS double precision), cast(:retain_s AS double precision))
"""
# A call that was refused after all: nobody was told of it, and its key is free again.
_WITHDRAW = """
DELETE FROM kept_calls
 WHERE inference_id = :inference_id AND tenant_id = :tenant_id
   AND state = 'accepted' AND started_at IS NULL
"""
_STATES = """
SELECT k.inference_id, k.state
  FROM unnest(cast(:ids AS uuid[]), cast(:tenants AS uuid[])) AS w (inference_id, tenant_id)
  JOIN kept_calls k ON k.inference_id = w.inference_id AND k.tenant_id = w.tenant_id
"""
_RESULT = """
SELECT result FROM kept_calls WHERE inference_id = :inference_id AND tenant_id = :tenant_id
"""
# The worker's claim in the database. No row: it has ended, or a newer attempt has it.
_TAKE = """
UPDATE kept_calls
   SET attempts = greatest(attempts, :attempt), started_at = coalesce(started_at, now()),
       driven_at = now()
 WHERE inference_id = :inference_id AND state = 'accepted' AND attempts < :attempt
RETURNING cancelled_at IS NOT NULL AS cancelled
"""
_CANCEL = """
UPDATE kept_calls SET cancelled_at = coalesce(cancelled_at, now())
 WHERE inference_id = :inference_id AND tenant_id = :tenant_id AND state = 'accepted'
"""


class KeptCallRow(SQLModel, table=True):
    """A call that was durable before its client heard of it; envelope and result are sealed."""

    __tablename__ = "kept_calls"
    __table_args__ = (
        UniqueConstraint(
            "tenant_id", "path", "idempotency_key_hash", name="kept_calls_idempotency_key"
        ),
        Index(
            "kept_calls_accepted_idx",
            "inference_id",
            postgresql_where=text("state = 'accepted'::text"),
        ),
        Index(
            "kept_calls_expires_at_idx",
            "expires_at",
            postgresql_where=text("state = 'done'::text"),
        ),
    )

    inference_id: UUID = Field(primary_key=True)
    receipt_id: UUID
    tenant_id: UUID
    agent_id: UUID
    dialect: str = Field(sa_type=Text)
    path: str = Field(sa_type=Text)
    stream: bool
    background: bool
    idempotency_key_hash: bytes | None = Field(default=None, sa_type=BYTEA)
    body_hash: bytes = Field(sa_type=BYTEA)
    envelope: bytes | None = Field(default=None, sa_type=BYTEA)
    state: str = Field(sa_type=Text, sa_column_kwargs={"server_default": "accepted"})
    outcome: str | None = Field(default=None, sa_type=Text)
    result: bytes | None = Field(default=None, sa_type=BYTEA)
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    accepted_at: datetime = moment()
    driven_at: datetime = moment()
    started_at: datetime | None = moment(optional=True)
    cancelled_at: datetime | None = moment(optional=True)
    finished_at: datetime | None = moment(optional=True)
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


def standing(state: str, outcome: str | None, *, started: bool) -> str:
    """One word for where a kept call stands, as clients are told it."""
    if state == ACCEPTED:
        return "running" if started else "queued"
    return DEAD if state == DEAD else ended_as(outcome)


def ended_as(outcome: str | None) -> str:
    """One word for an `outcome_status`: what is no word of its own here is a failure."""
    return outcome if outcome in ("succeeded", "cancelled", "expired") else "failed"


@dataclass(frozen=True, slots=True)
class KeptCall:
    """A call that is kept: `fresh` if it was written just now, else it had the key before.

    `same_request`: whether that call asked for the same.
    """

    inference_id: UUID
    receipt_id: UUID
    tenant_id: UUID
    state: str
    standing: str
    fresh: bool
    same_request: bool
    sealed_result: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class KeptResult:
    """All that the client of a call is told: packed records, its end included.

    `body` is the whole answer as one body of its dialect; empty for a call that failed.
    """

    records: bytes = field(repr=False)
    body: bytes = field(default=b"", repr=False)

    def pack(self) -> bytes:
        return _LENGTH.pack(len(self.records)) + self.records + self.body

    @classmethod
    def unpack(cls, packed: bytes) -> "KeptResult":
        (length,) = _LENGTH.unpack_from(packed)
        at = _LENGTH.size + length
        return cls(packed[_LENGTH.size : at], packed[at:])

    def told(self) -> Iterable[Record]:
        return unpack_records(self.records)


def hash_key(key: str) -> bytes:
    """What is stored of an idempotency key; its bytes are the client's business."""
    return hashlib.sha256(key.encode()).digest()


def hash_quote_key(dialect: Dialect, key: str) -> bytes:
    """What is stored of the idempotency key of a call that has a quote."""
    return hash_key(f"{dialect.value}\n{key}")


def hash_request(agent_id: str, path: str, body: bytes) -> bytes:
    """What two calls with one key must share: the agent, the path and the body, byte for byte."""
    digest = hashlib.sha256(f"{agent_id}\n{path}\n".encode())
    digest.update(body)
    return digest.digest()


class KeptCalls:
    """The table `kept_calls`. Errors are the database's own."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._sealer: Sealer = request_sealer(settings.master_key.get_secret_value())
        self._key_s = settings.idempotency_hours * 3600
        self._retain_s = settings.result_retention_hours * 3600
        self._withdrawing: set[asyncio.Task[None]] = set()

    async def keep(
        self,
        envelope: Envelope,
        path: str,
        key: str | None,
        *,
        stream: bool,
        background: bool,
    ) -> KeptCall:
        """Write the call down, unless its key is known: then it is the call that has the key.

        Raises `QuoteUsed` for a call that would run by a quote which is another call's.
        """
        inference_id, caller = envelope.inference_id, envelope.caller
        statement, named = _KEEP, {}
        if key is not None and envelope.quote is not None:
            statement = _KEEP_QUOTED
            named = {
                "quote_id": UUID(envelope.quote["id"]),
                "quote_key_hash": hash_quote_key(envelope.dialect, key),
            }
        body_hash = hash_request(caller["agent_id"], path, envelope.body)
        rows = await self._db.run_for(
            UUID(caller["tenant_id"]),
            statement,
            **named,
            inference_id=inference_id,
            receipt_id=envelope.receipt_id,
            tenant_id=UUID(caller["tenant_id"]),
            agent_id=UUID(caller["agent_id"]),
            dialect=envelope.dialect.value,
            path=path,
            stream=stream,
            background=background,
            key_hash=None if key is None else hash_key(key),
            body_hash=body_hash,
            envelope=self._sealer.seal(envelope.pack(), inference_id),
            key_s=self._key_s,
            retain_s=self._retain_s,
        )
        if not rows:
            raise refusal("USED")
        row = rows[0]
        return KeptCall(
            inference_id=row.inference_id,
            receipt_id=row.receipt_id,
            tenant_id=row.tenant_id,
            state=row.state,
            standing=standing(row.state, row.outcome, started=row.started_at is not None),
            fresh=row.inference_id == inference_id,
            same_request=hmac.compare_digest(row.body_hash, body_hash),
            sealed_result=row.result,
        )

    async def withdraw(self, envelope: Envelope) -> None:
        """Forget a call that was refused before anybody was told that it is accepted."""
        tenant_id = UUID(envelope.caller["tenant_id"])
        await self._db.run_for(
            tenant_id, _WITHDRAW, inference_id=envelope.inference_id, tenant_id=tenant_id
        )

    def withdraw_patiently(self, envelope: Envelope) -> None:
        """The same while Postgres is away, or has not said whether the call was written."""
        task = asyncio.create_task(self._withdraw(envelope), name="withdraw")
        self._withdrawing.add(task)
        task.add_done_callback(self._withdrawing.discard)

    async def _withdraw(self, envelope: Envelope) -> None:
        """The writing may end later than a withdrawal that found nothing: look again."""
        answered, wait_s = 0, WITHDRAW_EVERY_S
        while answered < WITHDRAWALS:
            try:
                await self.withdraw(envelope)
                answered += 1
                wait_s = WITHDRAW_EVERY_S
            except (DBAPIError, *TRANSIENT):
                if wait_s != WITHDRAWAL_WAITS_S:
                    log.warning("withdrawal_waits")
                wait_s = WITHDRAWAL_WAITS_S
            await asyncio.sleep(wait_s)

    async def aclose(self) -> None:
        for task in self._withdrawing:
            task.cancel()
        await asyncio.gather(*self._withdrawing, return_exceptions=True)

    async def states(self, wanted: Mapping[UUID, UUID]) -> dict[UUID, str]:
        """The states of calls by id, of those that are there; `wanted` has their tenants."""
        rows = await self._db.run(_STATES, ids=[*wanted], tenants=[*wanted.values()])
        return {row.inference_id: row.state for row in rows}

    async def result(self, inference_id: UUID, tenant_id: UUID) -> KeptResult | None:
        """What the call's client is told; None where there is nothing (any more)."""
        rows = await self._db.run_for(
            tenant_id, _RESULT, inference_id=inference_id, tenant_id=tenant_id
        )
        return self.open_result(inference_id, rows[0].result) if rows else None

    def open_result(self, inference_id: UUID, sealed: bytes | None) -> KeptResult | None:
        """The result; None where there is none that this master key opens."""
        try:
            opened = sealed and self._sealer.open(sealed, inference_id)
        except SealBroken:
            log.error("kept_result_unreadable", extra={"inference_id": str(inference_id)})
            return None
        return KeptResult.unpack(opened) if opened else None

    def open_envelope(self, inference_id: UUID, sealed: bytes) -> Envelope:
        """Raises `SealBroken` for one that was sealed with another master key."""
        return Envelope.unpack(self._sealer.open(sealed, inference_id))

    async def take(self, inference_id: UUID, attempt: int) -> bool | None:
        """A worker begins an attempt: whether it was cancelled; None: it is not to be run."""
        rows = await self._db.run(_TAKE, inference_id=inference_id, attempt=attempt)
        return bool(rows[0].cancelled) if rows else None

    async def cancel(self, inference_id: UUID, tenant_id: UUID) -> None:
        """Note that the call shall stop, for whoever claims it later."""
        await self._db.run_for(tenant_id, _CANCEL, inference_id=inference_id, tenant_id=tenant_id)

    def settlement(
        self, inference_id: UUID, outcome: str, result: KeptResult, *, frees_key: bool = False
    ) -> dict[str, Any]:
        """`kept` of a settlement, as `end_inferences` takes it."""
        sealed = self._sealer.seal(result.pack(), inference_id)
        return {
            "outcome": outcome,
            "result": base64.b64encode(sealed).decode(),
            "retain_s": self._retain_s,
            "frees_key": frees_key,
        }
