"""Books with something of everything in them, for tests of the proofs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from shared.db import Connection
from shared.domain.ledger import GRANTS_ACCOUNT
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent, outcome
from tests.workers.letter_cases import burial


@dataclass(frozen=True, slots=True)
class Books:
    """Two tenants' agents, and the ids of one call of each fate, all of the first agent."""

    agent: Agent
    other: Agent
    charged: UUID
    dearer: UUID
    passthrough: UUID
    free: UUID
    expired: UUID
    refused: UUID
    dead: UUID
    pending: UUID


async def grant(db: Connection, agent: Agent, amount: str, ends: timedelta) -> None:
    """A preview grant that ends in so long."""
    await db.execute(
        "SELECT transfer_funds($1, $2, $3, $4, 'grant')",
        uuid4(),
        GRANTS_ACCOUNT,
        agent.wallet_id,
        Decimal(amount),
    )
    await db.execute(
        "UPDATE accounts SET grant_expires_at = $2, grant_inferences_left = 100 WHERE id = $1",
        agent.wallet_id,
        datetime.now(UTC) + ends,
    )


async def ended(db: Connection, agent: Agent, held: str, charge: str, **changes: object) -> UUID:
    """A call that was held for and ended."""
    routed = bool(changes.get("routed", True))
    item = hold(agent, held, routed=routed)
    assert (await call(db, "open_inferences", item))[0]["result"] == "OPENED"
    done = ending(agent, item["inference_id"], charge, **changes)
    assert (await call(db, "settle_inferences", done))[0]["result"] == "SETTLED"
    return UUID(item["inference_id"])


async def correct(db: Connection, inference: UUID, amount: str) -> None:
    """Give back something of what a call was charged."""
    usage = await db.fetchval(
        "SELECT id FROM transfers WHERE inference_id = $1 AND kind = 'usage'", inference
    )
    done = "SELECT result FROM correct_transfer($1, $2, $3)"
    assert await db.fetchval(done, uuid4(), usage, Decimal(amount)) == "CREATED"


async def keep_books(db: Connection) -> Books:
    """Write them through the product's own functions."""
    agent = await new_agent(db, "50", per_call="5", daily="40")
    other = await new_agent(db, "20")
    await grant(db, agent, "3", timedelta(days=9))
    await grant(db, other, "2", -timedelta(minutes=1))
    await ended(db, other, "1", "0.75")
    await db.execute("SELECT expire_grants()")
    await db.execute("SELECT set_tenant_cap($1, 45)", UUID(agent.tenant_id))
    charged = await ended(db, agent, "2", "1.25")
    await correct(db, charged, "0.25")
    await correct(db, charged, "0.5")
    dearer = await ended(db, agent, "1", "1.5")
    passthrough = await ended(db, agent, "1", "0.000000001", routed=False)
    free = await ended(db, agent, "1", "0")
    lost = {"receipt": None, "outcome": outcome("0", "expired")}
    expired = await ended(db, agent, "1", "0", **lost)
    never = str(uuid4())
    turned_down = ending(
        agent, never, "0", refused=True, receipt=None, outcome=outcome("0", "rejected_funds")
    )
    await call(db, "settle_inferences", turned_down)
    dying = hold(agent, "1")
    await call(db, "open_inferences", dying)
    await call(db, "bury_inferences", burial(agent, dying["inference_id"], 1))
    running = hold(agent, "0.5")
    await call(db, "open_inferences", running)
    return Books(
        agent,
        other,
        charged,
        dearer,
        passthrough,
        free,
        expired,
        UUID(never),
        UUID(dying["inference_id"]),
        UUID(running["inference_id"]),
    )
