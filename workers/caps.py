"""What all agents of a tenant may spend together in a day; see `set_tenant_cap`."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.domain.ledger import ZERO, Caps, DrainProof, Wallet, drain_proof
from shared.operators import record_act

_SET = text(
    "SELECT c.*, (clock_timestamp() AT TIME ZONE 'UTC')::date AS day"
    " FROM set_tenant_cap(:tenant, :cap) c"
)
_SHOW = text(
    """
SELECT t.daily_cap_usd AS cap, d.day, count(w.id) AS agents, coalesce(sum(w.held), 0) AS held,
       coalesce(sum(w.spent_today) FILTER (WHERE w.spent_day = d.day), 0) AS spent
  FROM tenants t LEFT JOIN accounts w ON w.tenant_id = t.id,
       (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS day) d
 WHERE t.id = :tenant GROUP BY t.id, d.day
"""
)


@dataclass(frozen=True, slots=True)
class TenantCap:
    """A tenant's cap as it is now, what counts against it today (UTC), and whether it can still
    be passed by the calls in flight; US dollars. `before` was the cap until now.
    """

    cap: Decimal | None
    before: Decimal | None
    settled: Decimal
    held: Decimal
    agents: int
    proof: DrainProof

    @property
    def available(self) -> Decimal | None:
        return None if self.cap is None else max(self.cap - self.settled - self.held, ZERO)

    def as_json(self) -> dict[str, Any]:
        return {
            "daily_cap_usd": _text(self.cap),
            "before_usd": _text(self.before),
            "settled_usd": _text(self.settled),
            "held_usd": _text(self.held),
            "available_usd": _text(self.available),
            "agents": self.agents,
            "drain_proof_status": self.proof.value,
        }


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:.9f}"


async def set_tenant_cap(
    session: AsyncSession, tenant_id: UUID, cap: Decimal | None, reason: str, actor: str
) -> TenantCap | None:
    """Cap what a tenant spends in a day (UTC), or lift its cap; None for an unknown tenant.

    It holds for the next hold and the next extension of one. The caller commits.
    """
    row = (await session.execute(_SET, {"tenant": tenant_id, "cap": cap})).one_or_none()
    if row is None:
        return None
    found = _tenant_cap(row, row.before)
    await record_act(
        session, "cap.tenant", str(tenant_id), actor=actor, reason=reason, **found.as_json()
    )
    return found


async def read_tenant_cap(session: AsyncSession, tenant_id: UUID) -> TenantCap | None:
    """A tenant's cap and what counts against it, with nothing locked; None for an unknown one."""
    row = (await session.execute(_SHOW, {"tenant": tenant_id})).one_or_none()
    return None if row is None else _tenant_cap(row, row.cap)


def _tenant_cap(row: Row[Any], before: Decimal | None) -> TenantCap:
    whole = Wallet(row.spent + row.held, row.held, row.spent, row.day)
    proof = drain_proof(whole, row.held, Caps(daily=row.cap), row.day)
    return TenantCap(row.cap, before, row.spent, row.held, row.agents, proof)
