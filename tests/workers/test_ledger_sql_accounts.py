"""Which transfers may be, between which accounts, and back again: held by the database itself."""

import asyncio
from decimal import Decimal
from itertools import product
from uuid import UUID, uuid4

import asyncpg
import pytest

from shared.db import APP_ROLE, Connection, connect
from shared.domain.ledger import (
    CLEARING_ACCOUNTS,
    LOSSES_ACCOUNT,
    PROVIDER_COST_ACCOUNT,
    SYSTEM_ACCOUNTS,
    TOPUPS_ACCOUNT,
    TransferKind,
    fits,
)
from tests.workers.ledger_cases import Agent, call, ending, hold, new_agent, wallet_of

INSERT = """INSERT INTO transfers (id, tenant_id, debit_account, credit_account, amount, kind,
                                   corrects, inference_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"""


async def test_the_accounts_of_the_system_are_those_of_the_rule(ledger_db: Connection) -> None:
    rows = await ledger_db.fetch("SELECT id, kind FROM accounts WHERE kind <> 'wallet'")
    assert {row["id"]: row["kind"] for row in rows} == SYSTEM_ACCOUNTS


async def test_the_database_and_the_rule_allow_the_same_transfers(ledger_db: Connection) -> None:
    """Every kind between every two accounts."""
    accounts = [*SYSTEM_ACCOUNTS, uuid4()]
    asked = [
        (kind.value, debit, credit)
        for kind, debit, credit in product(TransferKind, accounts, accounts)
    ]
    rows = await ledger_db.fetch(
        """SELECT transfer_fits(k, d, c) AS fits
             FROM unnest($1::text[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS u (k, d, c, ord)
            ORDER BY ord""",
        *map(list, zip(*asked, strict=True)),
    )
    answers = [row["fits"] for row in rows]
    assert answers == [fits(TransferKind(kind), debit, credit) for kind, debit, credit in asked]
    assert True in answers
    assert False in answers


async def test_no_transfer_joins_the_wrong_accounts(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    tenant, wallet = UUID(agent.tenant_id), agent.wallet_id
    wrong = [
        (wallet, TOPUPS_ACCOUNT, "topup"),
        (wallet, LOSSES_ACCOUNT, "usage"),
        (TOPUPS_ACCOUNT, wallet, "refund"),
        (wallet, PROVIDER_COST_ACCOUNT, "gift"),
        (CLEARING_ACCOUNTS["cdp"], PROVIDER_COST_ACCOUNT, "topup"),
    ]
    for debit, credit, kind in wrong:
        with pytest.raises(asyncpg.CheckViolationError):
            await ledger_db.execute(
                INSERT, uuid4(), tenant, debit, credit, Decimal(1), kind, None, None
            )
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await ledger_db.execute(
                "SELECT transfer_funds($1, $2, $3, 1, $4)", uuid4(), debit, credit, kind
            )


@pytest.mark.parametrize("rail", CLEARING_ACCOUNTS)
async def test_money_comes_and_goes_through_a_rails_clearing(
    ledger_db: Connection, rail: str
) -> None:
    agent, clearing = await new_agent(ledger_db, funds="0"), CLEARING_ACCOUNTS[rail]
    move = "SELECT result FROM transfer_funds($1, $2, $3, $4, $5)"
    moves = [
        (clearing, agent.wallet_id, "5", "topup"),
        (agent.wallet_id, clearing, "2", "refund"),
        (agent.wallet_id, clearing, "4", "refund"),
    ]
    answers = [
        await ledger_db.fetchval(move, uuid4(), debit, credit, Decimal(amount), kind)
        for debit, credit, amount, kind in moves
    ]
    assert answers == ["CREATED", "CREATED", "INSUFFICIENT_FUNDS"]
    assert (await wallet_of(ledger_db, agent))["balance"] == 3


async def test_an_account_is_of_the_kind_that_its_id_says(ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger_db.execute(
            "UPDATE accounts SET kind = 'losses' WHERE id = $1", agent.wallet_id
        )
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger_db.execute("INSERT INTO accounts (id, kind) VALUES ($1, 'margin')", uuid4())


# -- corrections --------------------------------------------------------------------------------


async def charged(db: Connection, agent: Agent, amount: str) -> UUID:
    """A settled call's usage transfer."""
    item = hold(agent, amount)
    await call(db, "open_inferences", item)
    await call(db, "settle_inferences", ending(agent, item["inference_id"], amount))
    found: UUID = await db.fetchval(
        "SELECT id FROM transfers WHERE inference_id = $1", UUID(item["inference_id"])
    )
    return found


async def correct(
    db: Connection, transfer: UUID, amount: str | None = None, id: UUID | None = None
) -> asyncpg.Record:
    row = await db.fetchrow(
        "SELECT * FROM correct_transfer($1, $2, $3, 'why')",
        id or uuid4(),
        transfer,
        None if amount is None else Decimal(amount),
    )
    assert row is not None
    return row


async def test_a_charge_is_taken_back_in_parts_and_never_more_than_it_was(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db)
    usage, id = await charged(ledger_db, agent, "2"), uuid4()
    first = await correct(ledger_db, usage, "0.5", id)
    assert (first["result"], first["remaining"], first["balance"]) == ("CREATED", 1.5, 8.5)
    assert str(first["agent_id"]) == agent.agent_id
    assert (await correct(ledger_db, usage, "0.5", id))["result"] == "EXISTS"
    other = await correct(ledger_db, usage, "0.6", id)
    assert other["result"] == "EXISTS_WITH_DIFFERENT_AMOUNT"
    assert (await correct(ledger_db, usage, "1.500000001"))["result"] == "EXCEEDS_TRANSFER"
    assert (await correct(ledger_db, usage))["amount"] == 1.5
    assert (await correct(ledger_db, usage))["result"] == "EXCEEDS_TRANSFER"
    assert (await correct(ledger_db, uuid4(), "1"))["result"] == "TRANSFER_UNKNOWN"
    wallet = await wallet_of(ledger_db, agent)
    # the money is back; what was spent under a cap that day stays spent
    assert (wallet["balance"], wallet["spent_today"]) == (10, 2)
    entry = await ledger_db.fetchrow(
        "SELECT * FROM ledger_entries WHERE transfer_id = $1 AND account_id = $2",
        id,
        agent.wallet_id,
    )
    assert entry is not None
    assert (entry["amount"], entry["balance_after"], entry["kind"]) == (0.5, 8.5, "correction")
    assert entry["inference_id"] is not None


async def test_a_correction_never_takes_from_a_wallet_what_it_has_not(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db, funds="3")
    topup = await ledger_db.fetchval(
        "SELECT id FROM transfers WHERE credit_account = $1", agent.wallet_id
    )
    await call(ledger_db, "open_inferences", hold(agent, "2"))
    refused = await correct(ledger_db, topup, "1.1")
    assert (refused["result"], refused["balance"]) == ("INSUFFICIENT_FUNDS", 3)
    assert (await correct(ledger_db, topup, "1"))["result"] == "CREATED"
    wallet = await wallet_of(ledger_db, agent)
    assert (wallet["balance"], wallet["held"]) == (2, 2)


async def test_a_mistaken_correction_is_corrected_itself(ledger_db: Connection) -> None:
    agent, id = await new_agent(ledger_db), uuid4()
    usage = await charged(ledger_db, agent, "2")
    await correct(ledger_db, usage, id=id)
    assert (await correct(ledger_db, id, "0.5"))["balance"] == 9.5


async def test_what_no_wallet_paid_is_corrected_too(ledger_db: Connection) -> None:
    agent, item = await new_agent(ledger_db), None
    item = hold(agent, "1")
    await call(ledger_db, "open_inferences", item)
    await call(ledger_db, "settle_inferences", ending(agent, item["inference_id"], "3"))
    writeoff = await ledger_db.fetchval(
        "SELECT id FROM transfers WHERE inference_id = $1 AND kind = 'writeoff'",
        UUID(item["inference_id"]),
    )
    done = await correct(ledger_db, writeoff)
    assert (done["result"], done["amount"], done["balance"]) == ("CREATED", 2, None)
    assert str(done["agent_id"]) == agent.agent_id


async def test_a_crowd_takes_a_transfer_back_once(database_url: str, ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    usage = await charged(ledger_db, agent, "4")
    connections = [await connect(database_url, APP_ROLE, "test") for _ in range(16)]
    try:
        rows = await asyncio.gather(*(correct(each, usage, "1") for each in connections))
    finally:
        await asyncio.gather(*(each.close() for each in connections))
    answers = [row["result"] for row in rows]
    assert (answers.count("CREATED"), answers.count("EXCEEDS_TRANSFER")) == (4, 12)
    assert (await wallet_of(ledger_db, agent))["balance"] == 10


async def test_nobody_writes_a_correction_that_takes_back_something_else(
    ledger_db: Connection,
) -> None:
    """Not by the function: straight into the table, with the rights of the application."""
    agent, stranger = await new_agent(ledger_db), await new_agent(ledger_db)
    usage = await charged(ledger_db, agent, "2")
    inference = await ledger_db.fetchval("SELECT inference_id FROM transfers WHERE id = $1", usage)
    mine, cost, wallet = UUID(agent.tenant_id), PROVIDER_COST_ACCOUNT, agent.wallet_id
    wrong = [
        (mine, cost, wallet, "2.1", "correction", usage, inference),
        (mine, wallet, cost, "1", "correction", usage, inference),
        (mine, cost, stranger.wallet_id, "1", "correction", usage, inference),
        (UUID(stranger.tenant_id), cost, wallet, "1", "correction", usage, inference),
        (mine, cost, wallet, "1", "correction", usage, None),
        (mine, cost, wallet, "1", "correction", uuid4(), inference),
        (mine, cost, wallet, "1", "correction", None, inference),
        (mine, cost, wallet, "1", "refund", usage, inference),
    ]
    for tenant, debit, credit, amount, kind, corrects, about in wrong:
        with pytest.raises(asyncpg.CheckViolationError):
            await ledger_db.execute(
                INSERT, uuid4(), tenant, debit, credit, Decimal(amount), kind, corrects, about
            )


async def test_a_corrected_charge_is_no_longer_taken_from_the_grant(
    ledger_db: Connection,
) -> None:
    agent = await new_agent(ledger_db, funds="0")
    grants = UUID("00000000-0000-0000-0000-000000000002")
    await ledger_db.execute(
        "SELECT transfer_funds($1, $2, $3, 5, 'grant')", uuid4(), grants, agent.wallet_id
    )
    await correct(ledger_db, await charged(ledger_db, agent, "2"), "1.5")
    await ledger_db.execute(
        "UPDATE accounts SET grant_expires_at = now() WHERE id = $1", agent.wallet_id
    )
    rows = await ledger_db.fetch("SELECT * FROM expire_grants()")
    (returned,) = [row["returned"] for row in rows if str(row["agent_id"]) == agent.agent_id]
    assert returned == Decimal("4.5")
