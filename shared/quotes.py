"""Quotes that are held: kept until they expire, and given to the one call that names them.

A quote holds no money. What it promises is the choice and the prices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Column, DateTime, Index, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import BYTEA
from sqlmodel import Field, SQLModel

from shared.config import Settings
from shared.db import Database
from shared.domain.planning import HeldQuote, Planned, terms_of
from shared.domain.routing import RULESET_HASH
from shared.errors import AinferaError, NotFound, QuoteExpired, QuoteMismatch, QuoteUsed
from shared.models import document, moment

# A quote that is over is forgotten after a day, or once no repeat of its call may come any more.
REMEMBERED_S = 24 * 3600

_HOLD = """
SELECT hold_quote(cast(:id AS uuid), cast(:tenant_id AS uuid), cast(:agent_id AS uuid),
  cast(:request_hash AS bytea), :routed, :model_slug, :ruleset_hash, :catalog_hash,
  cast(:terms AS jsonb), :hold_for_s, :most) AS expires_at
"""
_TAKE = """
SELECT * FROM take_quote(cast(:id AS uuid), cast(:tenant_id AS uuid), cast(:agent_id AS uuid),
  cast(:request_hash AS bytea), :ruleset_hash, cast(:inference_id AS uuid),
  cast(:key_hash AS bytea))
"""
_GIVE_BACK = """
DELETE FROM quote_uses
 WHERE quote_id = :id AND tenant_id = :tenant_id AND inference_id = :inference_id
"""
_FORGET = """
DELETE FROM quotes WHERE id IN (
  SELECT q.id FROM quotes q WHERE q.expires_at < now() - make_interval(secs => :remembered_s)
   ORDER BY q.expires_at LIMIT :most)
RETURNING 1
"""


class QuoteRow(SQLModel, table=True):
    """A quote that is held. `terms` has no word of the prompt."""

    __tablename__ = "quotes"
    __table_args__ = (
        Index("quotes_tenant_id_idx", "tenant_id", "expires_at"),
        Index("quotes_expires_at_idx", "expires_at"),
    )

    id: UUID = Field(primary_key=True)
    tenant_id: UUID
    agent_id: UUID
    request_hash: bytes = Field(sa_type=BYTEA)
    routed: bool
    model_slug: str = Field(sa_type=Text)
    ruleset_hash: str = Field(sa_type=Text)
    catalog_hash: str = Field(sa_type=Text)
    terms: dict[str, Any] = document()
    created_at: datetime = moment()
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class QuoteUseRow(SQLModel, table=True):
    """The one call that has a quote."""

    __tablename__ = "quote_uses"
    __table_args__ = (UniqueConstraint("inference_id", name="quote_uses_inference_id_key"),)

    quote_id: UUID = Field(primary_key=True, foreign_key="quotes.id", ondelete="CASCADE")
    tenant_id: UUID
    inference_id: UUID
    key_hash: bytes | None = Field(default=None, sa_type=BYTEA)
    used_at: datetime = moment()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and for what: a quote is good for the same request of the same agent."""

    tenant_id: UUID
    agent_id: UUID
    request_hash: bytes


class Quotes:
    """The tables `quotes` and `quote_uses`. Errors are the database's own."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._most = settings.quotes_per_tenant

    async def hold(
        self, quote_id: UUID, asker: Asker, planned: Planned, catalog_hash: str, hold_for_s: int
    ) -> datetime | None:
        """Keep a quote; when it expires, by the database's clock.

        None: the tenant has too many that no call has used.
        """
        rows = await self._db.run_for(
            asker.tenant_id,
            _HOLD,
            id=quote_id,
            tenant_id=asker.tenant_id,
            agent_id=asker.agent_id,
            request_hash=asker.request_hash,
            routed=planned.decision is not None,
            model_slug=planned.candidates[0].slug,
            ruleset_hash=RULESET_HASH,
            catalog_hash=catalog_hash,
            terms=orjson.dumps(terms_of(planned)).decode(),
            hold_for_s=hold_for_s,
            most=self._most,
        )
        expires_at: datetime | None = rows[0].expires_at
        return expires_at

    async def take(
        self, quote_id: UUID, asker: Asker, inference_id: UUID, key_hash: bytes | None
    ) -> HeldQuote:
        """Give the quote to this call, once.

        A call that comes again under the same idempotency key gets it too, to join the call that
        has it: `KeptCalls.keep` lets none run by it but the one it belongs to. Raises `NotFound`
        (unknown, or someone else's), `QuoteUsed`, `QuoteExpired`, `QuoteMismatch`.
        """
        (row,) = await self._db.run_for(
            asker.tenant_id,
            _TAKE,
            id=quote_id,
            tenant_id=asker.tenant_id,
            agent_id=asker.agent_id,
            request_hash=asker.request_hash,
            ruleset_hash=RULESET_HASH,
            inference_id=inference_id,
            key_hash=key_hash,
        )
        if row.result not in ("TAKEN", "REPEATED"):
            raise refusal(row.result)
        return HeldQuote(str(quote_id), row.routed, row.model_slug, row.terms, row.models)

    async def give_back(self, quote_id: UUID, tenant_id: UUID, inference_id: UUID) -> None:
        """The call was never accepted: another one may have its quote."""
        await self._db.run_for(
            tenant_id, _GIVE_BACK, id=quote_id, tenant_id=tenant_id, inference_id=inference_id
        )


def refusal(result: str) -> AinferaError:
    """Why a quote is not given, as the client is told."""
    told: Mapping[str, AinferaError] = {
        "USED": QuoteUsed("This quote was used by another call: it is good for one. Ask anew."),
        "EXPIRED": QuoteExpired("This quote has expired. Ask for a new one."),
        "OTHER_RULES": QuoteExpired(
            "This quote was made by a decision rule that no longer runs. Ask for a new one."
        ),
        "OTHER_REQUEST": QuoteMismatch(
            "This quote is for another request. Send the very same body in the same dialect, or "
            "ask for a quote of this one."
        ),
    }
    # the words are those of every id that is not the caller's
    return told.get(result) or NotFound("Nothing of yours has this id.")


async def forget_quotes(db: Database, remembered_s: float, most: int = 1_000) -> int:
    """Delete quotes that have been over for so long; how many."""
    return len(await db.run(_FORGET, remembered_s=remembered_s, most=most))
