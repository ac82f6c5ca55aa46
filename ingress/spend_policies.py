"""Caps of one agent: how they are told, and whether they can be passed by what is in flight."""

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ingress.wire import cap, usd
from shared.domain.ledger import ZERO, Caps, Wallet, drain_proof
from shared.models import AgentRow

# Whoever holds money of this wallet has committed by then, or waits and knows the new caps.
_LOCKED_WALLET = """
SELECT balance, held, spent_today, spent_day FROM accounts WHERE agent_id = :agent FOR UPDATE
"""
_IN_FLIGHT = """
SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date AS today,
       (SELECT max(hold_usd) FROM inferences WHERE state = 'held' AND agent_id = :agent) AS largest
"""


def spend_policy(agent: AgentRow) -> dict[str, str | None]:
    return {
        "per_call_cap_usd": cap(agent.per_call_cap_usd),
        "daily_cap_usd": cap(agent.daily_cap_usd),
    }


async def prove_caps(s: AsyncSession, agent: AgentRow) -> dict[str, Any]:
    """`{status, figures}` of the agent's caps as they are in this transaction, which sets them.

    Locks the wallet until the transaction ends. The figures are of the day in UTC that they name.
    """
    bound: dict[str, UUID] = {"agent": agent.id}
    wallet = Wallet(*(await s.execute(text(_LOCKED_WALLET), bound)).one())
    today, largest = (await s.execute(text(_IN_FLIGHT), bound)).one()
    caps = Caps(agent.per_call_cap_usd, agent.daily_cap_usd)
    settled, held = wallet.spent_on(today), wallet.held
    left = None if caps.daily is None else max(caps.daily - settled - held, ZERO)
    figures = {
        "day": today.isoformat(),
        "settled_usd": usd(settled),
        "held_usd": usd(held),
        "available_usd": cap(left),
        "largest_hold_usd": usd(largest or ZERO),
    }
    return {"status": drain_proof(wallet, largest or ZERO, caps, today).value, "figures": figures}
