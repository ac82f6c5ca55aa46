"""Money that was moved by mistake, moved back: always by another transfer, never by an edit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from shared.domain.audit import EventType, draft
from shared.domain.ledger import CorrectionOutcome, TransferKind
from shared.models import TransferRow
from shared.operators import record_act

_CORRECT = text("SELECT * FROM correct_transfer(:id, :corrects, :amount, :memo)")
_APPEND = text("SELECT append_audit(cast(:batch AS jsonb))")


@dataclass(frozen=True, slots=True)
class Corrected:
    """What became of a correction; money in US dollars.

    `remaining` is what can still be taken back of the transfer, `balance` the wallet's, None where
    no wallet is concerned. `taken_back_by` are the transfers by which all of it was taken back
    before, where that is why this one was not made.
    """

    outcome: CorrectionOutcome
    id: UUID
    amount: Decimal | None
    remaining: Decimal | None
    balance: Decimal | None
    taken_back_by: tuple[UUID, ...] = ()


async def correct_transfer(
    session: AsyncSession,
    id: UUID,
    corrects: UUID,
    amount: Decimal | None,
    reason: str,
    actor: str,
) -> Corrected:
    """Take a transfer back, wholly (`amount` None: what is left of it) or in part. Idempotent by
    `id`. Audited in the agent's chain and among the operators' acts; the caller commits.
    """
    bound = {"id": id, "corrects": corrects, "amount": amount, "memo": reason or None}
    row = (await session.execute(_CORRECT, bound)).one()
    done = Corrected(CorrectionOutcome(row.result), id, row.amount, row.remaining, row.balance)
    if done.outcome is CorrectionOutcome.EXCEEDS_TRANSFER and not done.remaining:
        return replace(done, taken_back_by=await _taken_back_by(session, corrects))
    if done.outcome is not CorrectionOutcome.CREATED:
        return done
    told: dict[str, Any] = {
        "transfer_id": str(id),
        "corrects": str(corrects),
        "amount_usd": f"{row.amount:f}",
        "balance_usd": None if row.balance is None else f"{row.balance:f}",
    }
    if row.agent_id is not None:
        event = draft(EventType.WALLET_CORRECTED, str(row.agent_id), {**told, "reason": reason})
        owner = {"agent_id": str(row.agent_id), "tenant_id": str(row.tenant_id)}
        batch = orjson.dumps([{**owner, "event": event.wire()}]).decode()
        await session.execute(_APPEND, {"batch": batch})
    await record_act(session, "transfer.correct", str(corrects), actor=actor, reason=reason, **told)
    return done


async def _taken_back_by(session: AsyncSession, corrects: UUID) -> tuple[UUID, ...]:
    """The corrections of a transfer, the oldest first."""
    query = select(col(TransferRow.id)).where(col(TransferRow.corrects) == corrects)
    return tuple(await session.scalars(query.order_by(col(TransferRow.created_at))))


async def list_corrections(
    session: AsyncSession, tenant_id: UUID | None, limit: int
) -> Sequence[TransferRow]:
    """Corrections, the newest first."""
    query = select(TransferRow).where(
        col(TransferRow.kind) == TransferKind.CORRECTION, col(TransferRow.corrects).is_not(None)
    )
    if tenant_id is not None:
        query = query.where(col(TransferRow.tenant_id) == tenant_id)
    return (
        await session.scalars(query.order_by(col(TransferRow.created_at).desc()).limit(limit))
    ).all()
