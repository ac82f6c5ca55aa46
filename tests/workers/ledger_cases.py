"""Agents with wallets, and the items that the SQL functions take, for tests of the ledger."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from shared.db import Connection
from shared.domain.audit import AuditEvent, Verification, draft, verify_chain
from shared.domain.ledger import TOPUPS_ACCOUNT


@dataclass(frozen=True, slots=True)
class Agent:
    tenant_id: str
    agent_id: str
    wallet_id: UUID


async def new_agent(
    db: Connection,
    funds: str = "10",
    per_call: str | None = None,
    daily: str | None = None,
    *,
    tenant_of: Agent | None = None,
) -> Agent:
    """A tenant, or another agent's, with one more agent and a wallet that was topped up."""
    tenant = uuid4() if tenant_of is None else UUID(tenant_of.tenant_id)
    agent, wallet = uuid4(), uuid4()
    if tenant_of is None:
        await db.execute("INSERT INTO tenants (id, name) VALUES ($1, 'a tenant')", tenant)
    await db.execute(
        """INSERT INTO agents (id, tenant_id, name, canonical_uri, did_web, public_key_pem,
                               private_key_sealed, per_call_cap_usd, daily_cap_usd)
           VALUES ($1::uuid, $2, 'an agent', $1::text, '', '', '', $3, $4)""",
        agent,
        tenant,
        per_call and Decimal(per_call),
        daily and Decimal(daily),
    )
    await db.execute(
        "INSERT INTO accounts (id, tenant_id, agent_id) VALUES ($1, $2, $3)", wallet, tenant, agent
    )
    if Decimal(funds):
        await db.execute(
            "SELECT transfer_funds($1, $2, $3, $4, 'topup')",
            uuid4(),
            TOPUPS_ACCOUNT,
            wallet,
            Decimal(funds),
        )
    return Agent(str(tenant), str(agent), wallet)


def hold(agent: Agent, amount: str, inference: str | None = None, **changes: Any) -> dict[str, Any]:
    """An item of `open_inferences`."""
    inference = inference or str(uuid4())
    event = draft("inference.routed", agent.agent_id, {"inference_id": inference, "hold": amount})
    item = {
        "inference_id": inference,
        "tenant_id": agent.tenant_id,
        "agent_id": agent.agent_id,
        "attempt": 1,
        "amount": amount,
        "ttl_s": 60,
        "routed": True,
        "dialect": "native",
        "model": "ainfera-inference",
        "event": event.wire(),
    }
    return {**item, **changes}


def ending(agent: Agent, inference: str, charge: str, **changes: Any) -> dict[str, Any]:
    """An item of `settle_inferences`: a routed call that a provider answered."""
    told = {"inference_id": inference, "cost_usd": charge}
    routed = changes.get("routed", True)
    reached = not changes.get("refused", False)
    item = {
        "inference_id": inference,
        "tenant_id": agent.tenant_id,
        "agent_id": agent.agent_id,
        "attempt": 1,
        "refused": False,
        "charge": charge,
        "routed": True,
        "dialect": "native",
        "model": "ainfera-inference",
        "events": [
            draft("provider.responded", agent.agent_id, told).wire(),
            draft("receipt.created", agent.agent_id, told).wire(),
        ],
        "outcome": outcome(charge) if routed else None,
        "receipt": receipt(charge) if reached else None,
    }
    return {**item, **changes}


def outcome(cost: str, status: str = "succeeded") -> dict[str, Any]:
    return {
        "task_type": "chat",
        "cell": "chat:a-model:balanced",
        "decision_rule": "cheapest_clearing_floor",
        "policy_version": "v1",
        "ruleset_hash": "0123456789abcdef",
        "min_quality": "0.50",
        "chosen_model_slug": "a-model",
        "provider": "a-provider",
        "cost_projected": cost,
        "cost_actual": cost,
        "observed_latency_ms": 12,
        "ttft_ms": 3,
        "outcome_status": status,
        "fallback_chain": [],
        "decision": {"candidates": []},
        "input_tokens": 1,
        "output_tokens": 2,
    }


def receipt(cost: str) -> dict[str, Any]:
    return {
        "receipt_id": str(uuid4()),
        "cost_usd": cost,
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "usage_estimated": False,
        "model_used": "a-model-2026",
        "model_slug": "a-model",
        "provider": "a-provider",
        "simulated": False,
    }


async def call(db: Connection, function: str, *items: dict[str, Any]) -> list[asyncpg.Record]:
    """The function's rows in the order of the items, which must be of different inferences."""
    rows = await db.fetch(f"SELECT * FROM {function}($1::jsonb)", orjson.dumps(items).decode())
    found = {str(row["inference_id"]): row for row in rows}
    return [found[item["inference_id"]] for item in items]


async def results(db: Connection, function: str, *items: dict[str, Any]) -> list[str]:
    return [row["result"] for row in await call(db, function, *items)]


async def cap_tenant(db: Connection, agent: Agent, cap: str | None) -> asyncpg.Record:
    row = await db.fetchrow(
        "SELECT * FROM set_tenant_cap($1, $2)",
        UUID(agent.tenant_id),
        None if cap is None else Decimal(cap),
    )
    assert row is not None
    return row


async def wallet_of(db: Connection, agent: Agent) -> asyncpg.Record:
    row = await db.fetchrow("SELECT * FROM accounts WHERE id = $1", agent.wallet_id)
    assert row is not None
    return row


async def written(db: Connection) -> dict[str, int]:
    """How many rows there are of everything that a call can leave behind."""
    tables = ("inferences", "transfers", "routing_outcomes", "receipts", "audit_events")
    return {table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in tables}


async def chain_of(db: Connection, agent: Agent) -> Verification:
    rows = await db.fetch(
        "SELECT * FROM audit_events WHERE agent_id = $1 ORDER BY seq", UUID(agent.agent_id)
    )
    return verify_chain(
        AuditEvent(
            agent_id=str(row["agent_id"]),
            seq=row["seq"],
            event_type=row["event_type"],
            payload=row["payload"],
            previous_hash=row["previous_hash"],
            event_hash=row["event_hash"],
        )
        for row in rows
    )


async def check_books(db: Connection) -> None:
    """The promises about money and chains, over everything in the database."""
    assert await db.fetchval("SELECT coalesce(sum(amount), 0) FROM ledger_entries") == 0
    folded = """SELECT count(*) FROM accounts a
      WHERE a.kind = 'wallet' AND a.balance <>
            (SELECT coalesce(sum(e.amount), 0) FROM ledger_entries e WHERE e.account_id = a.id)"""
    assert await db.fetchval(folded) == 0
    held = """SELECT count(*) FROM accounts a
      WHERE a.kind = 'wallet' AND a.held <>
            (SELECT coalesce(sum(i.hold_usd), 0) FROM inferences i
              WHERE i.agent_id = a.agent_id AND i.state = 'held')"""
    assert await db.fetchval(held) == 0
    captured = """SELECT count(*) FROM inferences i LEFT JOIN routing_outcomes o
                      ON o.inference_id = i.id
      WHERE (i.routed AND i.state NOT IN ('held', 'dead')) <> (o.inference_id IS NOT NULL)"""
    assert await db.fetchval(captured) == 0
    heads = """SELECT count(*) FROM audit_heads h WHERE NOT EXISTS
      (SELECT FROM audit_events e WHERE e.agent_id = h.agent_id
        GROUP BY e.agent_id HAVING max(e.seq) = h.seq AND count(*) = h.seq
           AND (array_agg(e.event_hash ORDER BY e.seq DESC))[1] = h.hash)"""
    assert await db.fetchval(heads) == 0
