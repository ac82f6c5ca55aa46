"""Calls that ended in every way, written as the ledger writes them, for tests of the views."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from shared.db import Connection
from shared.domain.audit import draft
from shared.domain.ledger import PROVIDER_COST_ACCOUNT
from tests.workers.ledger_cases import Agent, call, ending, hold, outcome

TRIED = [{"model": "first", "provider": "p", "code": "provider_error", "upstream_status": 500}]


def agent_of(new: Mapping[str, Any]) -> Agent:
    """Signup's answer as the cases of the ledger know agents."""
    return Agent(new["tenant_id"], new["agent_id"], UUID(int=0))


async def leave(
    db: Connection,
    agent: Agent,
    charge: str = "0.5",
    status: str = "succeeded",
    *,
    routed: bool = True,
    tried: bool = False,
    refused: bool = False,
    code: str | None = None,
) -> str:
    """Hold and settle one call; returns its id. `status` is its `outcome_status`."""
    item = hold(agent, "1", routed=routed)
    inference = item["inference_id"]
    kind = {"succeeded": "provider.responded", "cancelled": "provider.responded"}
    event = "inference.rejected_cap_violation" if refused else kind.get(status, "provider.failed")
    told = {
        "inference_id": inference,
        "router": "ainfera-inference" if routed else "direct",
        "outcome": status,
        "code": code,
    }
    done = ending(
        agent,
        inference,
        charge,
        routed=routed,
        refused=refused,
        events=[draft(event, agent.agent_id, told).wire()],
    )
    if routed:
        done["outcome"] = {**outcome(charge, status), "fallback_chain": TRIED if tried else []}
    if not refused:
        assert (await call(db, "open_inferences", item))[0]["result"] == "OPENED"
    assert (await call(db, "settle_inferences", done))[0]["result"] == "SETTLED"
    return str(inference)


async def leave_at(owner: Connection, agent: Agent, at: datetime, cost: str) -> str:
    """One pinned call that ended at a moment of the past: its row and its entry in the ledger."""
    inference = uuid4()
    await owner.execute(
        """INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, state, hold_usd,
                                   hold_state, settled_usd, created_at, settled_at)
           VALUES ($1, $2, $3, false, 'native', 'gpt-5-5', 'settled', $4, 'posted', $4, $5, $5)""",
        inference,
        UUID(agent.tenant_id),
        UUID(agent.agent_id),
        Decimal(cost),
        at,
    )
    await owner.execute(
        """INSERT INTO transfers (tenant_id, debit_account, credit_account, amount, kind,
                                  inference_id, created_at)
           SELECT $1, id, $2, $3, 'usage', $4, $5 FROM accounts WHERE agent_id = $6""",
        UUID(agent.tenant_id),
        PROVIDER_COST_ACCOUNT,
        Decimal(cost),
        inference,
        at,
        UUID(agent.agent_id),
    )
    return str(inference)
