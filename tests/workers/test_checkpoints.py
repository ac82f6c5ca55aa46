"""The log's one writer: complete, in one transaction, never two histories, and exported."""

from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from shared.audit_log import consistency_proof, inclusion_proof, leaf_of, newest_checkpoint
from shared.config import Settings
from shared.db import APP_ROLE, Connection, Database, connect
from shared.domain.audit import draft
from shared.domain.checkpoint import entry, open_note
from shared.domain.merkle import leaf_hash, verify_consistency, verify_inclusion
from shared.log_key import check_signature, log_key
from shared.metrics import FLEET
from tests.workers.ledger_cases import Agent, new_agent
from workers.checkpoints import Checkpointer

APPEND = "SELECT append_audit($1::jsonb)"


async def witness(db: Connection, agent: Agent, events: int = 1) -> None:
    """Append events to an agent's chain."""
    drafted = [draft("receipt.created", agent.agent_id, {"n": n}) for n in range(events)]
    owner = {"agent_id": agent.agent_id, "tenant_id": agent.tenant_id}
    batch = [{**owner, "event": each.wire()} for each in drafted]
    await db.execute(APPEND, orjson.dumps(batch).decode())


def refused(reason: str) -> float:
    return FLEET.get_sample_value("ainfera_audit_signing_refused_total", {"reason": reason}) or 0


@pytest_asyncio.fixture(loop_scope="session")
async def app(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url, APP_ROLE, "test")
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def db(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings)
    yield database
    await database.aclose()


@pytest.fixture
def checkpointer(settings: Settings, db: Database) -> Checkpointer:
    return Checkpointer(settings, db, [])


async def test_every_event_gets_a_place_under_a_signed_head(
    app: Connection, db: Database, settings: Settings, checkpointer: Checkpointer
) -> None:
    one, two = await new_agent(app, "0"), await new_agent(app, "0")
    await witness(app, one, 3)
    await witness(app, two, 2)
    assert await checkpointer.round() == 5
    await witness(app, one, 2)
    assert await checkpointer.round() == 2
    assert await checkpointer.round() == 0
    async with db.session() as s:
        key = (await log_key(s, settings)).verifier
        row = await newest_checkpoint(s)
        assert row is not None
        head = open_note(row.note, key, check_signature)
        for agent, events in ((one, 5), (two, 2)):
            for seq in range(1, events + 1):
                event_hash = await app.fetchval(
                    "SELECT event_hash FROM audit_events WHERE agent_id = $1::uuid AND seq = $2",
                    agent.agent_id,
                    seq,
                )
                leaf = await leaf_of(s, UUID(agent.agent_id), seq)
                assert leaf is not None
                assert leaf.leaf_hash == leaf_hash(entry(agent.agent_id, seq, event_hash))
                proof = await inclusion_proof(s, leaf.index, head.size)
                assert verify_inclusion(leaf.index, head.size, leaf.leaf_hash, proof, head.root)
        found = await consistency_proof(s, head.size - 2, head.size)
        assert found.new_root == head.root
        assert verify_consistency(found.old, found.new, found.proof, found.old_root, head.root)
