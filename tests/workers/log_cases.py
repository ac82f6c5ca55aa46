"""Agents with chains, the log over them, and the report of a verification, for tests."""

from pathlib import Path

import orjson

from shared.config import Settings
from shared.db import Connection, Database
from shared.domain.audit import draft
from shared.domain.audit_findings import Report
from tests.workers.ledger_cases import Agent
from workers.commands.audit import verify_live
from workers.commands.terminal import Stores


async def witness(connection: Connection, agent: Agent, events: int = 1) -> None:
    """Append events to an agent's chain."""
    drafted = [draft("receipt.created", agent.agent_id, {"n": n}) for n in range(events)]
    owner = {"agent_id": agent.agent_id, "tenant_id": agent.tenant_id}
    batch = [{**owner, "event": each.wire()} for each in drafted]
    await connection.execute("SELECT append_audit($1::jsonb)", orjson.dumps(batch).decode())


async def verified(settings: Settings, db: Database, exported: Path | None = None) -> Report:
    """What `fleet audit verify --live` finds."""
    return await verify_live(Stores(settings, db, None), None, exported)  # type: ignore[arg-type]
