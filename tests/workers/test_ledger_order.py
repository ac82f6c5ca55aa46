"""A wallet's entries have one order in time, and read in it the balance never jumps."""

from decimal import Decimal
from uuid import UUID, uuid4

from shared.db import APP_ROLE, Connection, connect
from shared.domain.ledger import TOPUPS_ACCOUNT
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent

TOP_UP = "SELECT transfer_funds($1, $2, $3, 1, 'topup')"


async def read_through(db: Connection, agent: Agent) -> None:
    """The entries oldest first: each a moment after the one before, and adding up."""
    entries = await db.fetch(
        "SELECT * FROM ledger_entries WHERE account_id = $1 ORDER BY created_at, random()",
        agent.wallet_id,
    )
    balance = Decimal(0)
    for entry in entries:
        balance += entry["amount"]
        assert entry["balance_after"] == balance
    moments = [entry["created_at"] for entry in entries]
    assert len(set(moments)) == len(moments)


async def spend(db: Connection, agent: Agent, calls: int) -> None:
    """Settle calls in one batch."""
    items = [hold(agent, "0.2") for _ in range(calls)]
    await call(db, "open_inferences", *items)
    ends = [
        ending(agent, item["inference_id"], f"0.0{nth}") for nth, item in enumerate(items, start=1)
    ]
    assert {row["result"] for row in await call(db, "end_inferences", *ends)} == {"SETTLED"}


async def test_the_calls_of_one_batch_follow_each_other(ledger_db: Connection) -> None:
    agent, other = await new_agent(ledger_db), await new_agent(ledger_db)
    await spend(ledger_db, agent, 7)
    await spend(ledger_db, other, 2)
    await read_through(ledger_db, agent)
    await read_through(ledger_db, other)
    # its calls all the same ended at one moment
    query = "SELECT count(DISTINCT settled_at) FROM inferences WHERE agent_id = $1"
    assert await ledger_db.fetchval(query, UUID(agent.agent_id)) == 1


async def test_who_waited_for_the_wallet_comes_after_whom_it_waited_for(
    ledger_db: Connection, database_url: str
) -> None:
    """A transaction that began before another's and moved money after it."""
    agent = await new_agent(ledger_db)
    first = await connect(database_url, APP_ROLE, "test")
    for move in ("top up", "correct"):
        async with first.transaction():
            await first.fetchval("SELECT now()")
            await spend(ledger_db, agent, 1)
            usage = await ledger_db.fetchval(
                "SELECT id FROM transfers WHERE debit_account = $1 AND corrects IS NULL"
                " ORDER BY created_at DESC LIMIT 1",
                agent.wallet_id,
            )
            if move == "top up":
                await first.execute(TOP_UP, uuid4(), TOPUPS_ACCOUNT, agent.wallet_id)
            else:
                await first.execute("SELECT correct_transfer($1, $2, NULL)", uuid4(), usage)
    await first.close()
    await read_through(ledger_db, agent)
