"""Each proof finds what was planted for it, and what was planted for another leaves it alone."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from shared.db import Connection, connect
from shared.domain.books import Proof, Proved, Scope, in_order
from tests.workers.books_cases import Books
from tests.workers.ledger_cases import new_agent
from workers.ledger_check import ask, prove, snapshot
from workers.ledger_proofs import PROOFS

BALANCES = {
    "debits_equal_credits",
    "debits_equal_credits_per_tenant",
    "debits_equal_credits_per_day",
}
OF_A_CALL = "debits_equal_credits_per_inference"

# The triggers and constraints that a thief with the keys would take away first.
UNGUARDED = (
    "SET LOCAL session_replication_role = replica",
    "ALTER TABLE transfers DISABLE TRIGGER append_only",
    "ALTER TABLE receipts DISABLE TRIGGER append_only",
    "ALTER TABLE routing_outcomes DISABLE TRIGGER append_only",
    "ALTER TABLE transfers DISABLE TRIGGER correction_fits",
    "DROP INDEX transfers_inference_id_kind_key",
    "ALTER TABLE transfers DROP CONSTRAINT transfers_corrects_check",
    "ALTER TABLE transfers DROP CONSTRAINT transfers_kind_check",
    "ALTER TABLE transfers DROP CONSTRAINT transfers_amount_check",
    "ALTER TABLE receipts DROP CONSTRAINT receipts_inference_id_key",
    "ALTER TABLE routing_outcomes DROP CONSTRAINT routing_outcomes_pkey",
    "ALTER TABLE accounts DROP CONSTRAINT accounts_available_check",
    "ALTER TABLE accounts DROP CONSTRAINT accounts_held_check",
    "ALTER TABLE inferences DROP CONSTRAINT inferences_pending_check",
)


def copied(table: str, call: str, *changes: str) -> str:
    """A statement that writes a call's row once more, with changes: names and SQL by turns."""
    changed = f"jsonb_populate_record(x, jsonb_build_object({', '.join(changes)}))"
    return (
        f"INSERT INTO {table} SELECT ({changed}).* FROM {table} x WHERE inference_id = '{{{call}}}'"
    )


NEW = "gen_random_uuid()"

# What is planted, and what must see it. Nothing else may.
PLANTED: dict[str, tuple[str, set[str]]] = {
    "a transfer to nobody": (
        "UPDATE transfers SET credit_account = '{nobody}' "
        "WHERE inference_id = '{dearer}' AND kind = 'usage'",
        {*BALANCES, OF_A_CALL, "transfers_stay_with_their_tenant"},
    ),
    "a transfer in another tenant's name": (
        "UPDATE transfers SET tenant_id = '{other.tenant_id}' "
        "WHERE debit_account = '{agent.wallet_id}' AND inference_id = '{dearer}'",
        # the losses of the same call keep their tenant, so one of two is left without its wallet
        {*BALANCES, OF_A_CALL, "transfers_stay_with_their_tenant", "nothing_without_its_call"},
    ),
    "an amount that is not a number": (
        "UPDATE transfers SET amount = 'NaN' WHERE inference_id = '{dearer}' AND kind = 'writeoff'",
        {*BALANCES, OF_A_CALL, "transfers_move_money", "receipts_are_what_was_settled"},
    ),
    "a negative write-off": (
        "INSERT INTO transfers SELECT gen_random_uuid(), tenant_id, debit_account, credit_account, "
        "-amount, kind FROM transfers WHERE inference_id = '{dearer}' AND kind = 'writeoff'",
        {"transfers_move_money"},
    ),
    "a kind without a rule": (
        "UPDATE transfers SET kind = 'gift' WHERE kind = 'topup'",
        {"transfers_are_of_allowed_kinds"},
    ),
    "usage that goes to the grants": (
        "UPDATE transfers SET credit_account = '00000000-0000-0000-0000-000000000002' "
        "WHERE inference_id = '{dearer}' AND kind = 'usage'",
        {"transfers_are_of_allowed_kinds"},
    ),
    "a correction of more than there was": (
        "UPDATE transfers SET amount = 0.6 WHERE inference_id = '{charged}' AND kind = 'usage'",
        {
            *("corrections_go_back_and_no_further", "balances_are_folds"),
            *("running_balances_are_one_path", "spent_today_is_settled"),
            *("settled_is_what_was_charged", "receipts_are_what_was_settled"),
        },
    ),
    "a correction of nothing": (
        "UPDATE transfers SET corrects = '{nobody}' WHERE corrects IS NOT NULL AND amount = 0.5",
        {"corrections_go_back_and_no_further"},
    ),
    "a correction that goes elsewhere": (
        "UPDATE transfers SET debit_account = '00000000-0000-0000-0000-000000000005' "
        "WHERE corrects IS NOT NULL AND amount = 0.5",
        {"corrections_go_back_and_no_further"},
    ),
    "a richer wallet": (
        "UPDATE accounts SET balance = balance + 1 WHERE id = '{agent.wallet_id}'",
        {"balances_are_folds"},
    ),
    "a wallet of no number": (
        "UPDATE accounts SET balance = 'NaN' WHERE id = '{agent.wallet_id}'",
        {"balances_are_folds", "available_is_never_negative"},
    ),
    "a running balance that lies": (
        "UPDATE transfers SET debit_balance_after = debit_balance_after + 1 "
        "WHERE inference_id = '{charged}'",
        {"running_balances_are_one_path"},
    ),
    "a running balance that is missing": (
        "UPDATE transfers SET debit_balance_after = NULL WHERE inference_id = '{charged}'",
        {"running_balances_are_one_path"},
    ),
    "a transfer that is lost": (
        "DELETE FROM transfers WHERE kind = 'topup' AND credit_account = '{agent.wallet_id}'",
        {"balances_are_folds", "running_balances_are_one_path"},
    ),
    "money held for nobody": (
        "UPDATE accounts SET held = held + 1 WHERE id = '{agent.wallet_id}'",
        {"held_is_what_calls_hold"},
    ),
    "a hold that nothing is held for": (
        "UPDATE inferences SET hold_usd = hold_usd + 1 WHERE id = '{pending}'",
        {"held_is_what_calls_hold"},
    ),
    "a hold without a wallet": (
        "UPDATE inferences SET agent_id = '{nobody}' WHERE id = '{pending}'",
        {"held_is_what_calls_hold", "calls_are_their_agents"},
    ),
    "a call that is another agent's now": (
        "UPDATE inferences SET agent_id = '{other.agent_id}' WHERE id = '{charged}'",
        {"calls_are_their_agents"},
    ),
    "a receipt of another agent": (
        "UPDATE receipts SET agent_id = '{other.agent_id}' WHERE inference_id = '{free}'",
        {"calls_are_their_agents"},
    ),
    "a wallet that holds more than it has": (
        "UPDATE accounts SET held = 1000 WHERE id = '{agent.wallet_id}'",
        {"held_is_what_calls_hold", "available_is_never_negative"},
    ),
    "a day's spending forgotten": (
        "UPDATE accounts SET spent_today = 0 WHERE id = '{agent.wallet_id}'",
        {"spent_today_is_settled"},
    ),
    "spending of no day": (
        "UPDATE accounts SET spent_day = NULL WHERE id = '{agent.wallet_id}'",
        {"spent_today_is_settled"},
    ),
    "a grant forgotten": (
        "UPDATE accounts SET grant_expires_at = NULL WHERE id = '{agent.wallet_id}'",
        {"grants_are_taken_back"},
    ),
    "more taken back than was given": (
        "UPDATE transfers SET kind = 'grant_return', inference_id = NULL, credit_account = "
        "'00000000-0000-0000-0000-000000000002' WHERE kind = 'usage' "
        "AND debit_account = '{other.wallet_id}';"
        "UPDATE transfers SET amount = 0.5 "
        "WHERE kind = 'grant' AND credit_account = '{other.wallet_id}'",
        {
            "grants_are_taken_back",
            # a wallet that was given less has not come to what it has
            *("balances_are_folds", "running_balances_are_one_path", "spent_today_is_settled"),
            # and a call that was charged has nothing to show for it
            *("posted_holds_have_moved_money", "settled_is_what_was_charged"),
            "receipts_are_what_was_settled",
        },
    ),
    "a grant that outlives its date": (
        "UPDATE accounts SET grant_expires_at = now() - interval '2 hours' "
        "WHERE id = '{agent.wallet_id}'",
        {"grants_end_in_time"},
    ),
    "a hold that outlives its expiry": (
        "UPDATE inferences SET hold_expires_at = now() - interval '1 minute' "
        "WHERE id = '{pending}'",
        {"holds_end_in_time"},
    ),
    "more charged than was held": (
        "UPDATE inferences SET hold_usd = 1 WHERE id = '{charged}'",
        {"settled_within_the_hold"},
    ),
    "a call that ended and still holds": (
        "UPDATE inferences SET hold_state = 'pending' WHERE id = '{free}'",
        {"holds_end_once"},
    ),
    "a call that runs without a pending hold": (
        "UPDATE inferences SET hold_state = 'voided' WHERE id = '{pending}'",
        {"holds_end_once"},
    ),
    "a dead call whose hold was posted": (
        "UPDATE inferences SET hold_state = 'posted' WHERE id = '{dead}'",
        {"holds_end_once", "posted_holds_have_moved_money"},
    ),
    "a refused call that was charged": (
        "UPDATE inferences SET settled_usd = 1, hold_usd = 1 WHERE id = '{refused}'",
        {"holds_end_once", "settled_is_what_was_charged"},
    ),
    "a hold that was posted for nothing": (
        "UPDATE inferences SET hold_state = 'posted' WHERE id = '{free}'",
        {"posted_holds_have_moved_money"},
    ),
    "a hold that was voided and charged": (
        "UPDATE inferences SET hold_state = 'voided' WHERE id = '{charged}'",
        {"posted_holds_have_moved_money"},
    ),
    "a call that says it was cheaper": (
        "UPDATE inferences SET settled_usd = 1 WHERE id = '{charged}'",
        {"settled_is_what_was_charged"},
    ),
    "a call charged twice": (
        copied("transfers", "passthrough", "'id'", NEW),
        {
            *("one_transfer_of_a_kind", "settled_is_what_was_charged"),
            *("receipts_are_what_was_settled", "balances_are_folds", "spent_today_is_settled"),
            "running_balances_are_one_path",
        },
    ),
    "a receipt over less": (
        "UPDATE receipts SET cost_usd = 1 WHERE inference_id = '{passthrough}'",
        {"receipts_are_what_was_settled"},
    ),
    "a receipt that is lost": (
        "DELETE FROM receipts WHERE inference_id = '{charged}'",
        {
            *("receipts_are_what_was_settled", "one_settlement_per_answer"),
            "captures_cost_what_receipts_do",
        },
    ),
    "a free receipt that is lost": (
        "DELETE FROM receipts WHERE inference_id = '{free}'",
        {"one_settlement_per_answer"},
    ),
    "a second receipt": (
        copied("receipts", "free", "'receipt_id'", NEW),
        {"one_settlement_per_answer"},
    ),
    "a receipt for a refusal": (
        copied("receipts", "free", "'receipt_id'", NEW, "'inference_id'", "'{refused}'"),
        {"one_settlement_per_answer"},
    ),
    "a capture of another cost": (
        "UPDATE routing_outcomes SET cost_actual = 1 WHERE inference_id = '{charged}'",
        {"captures_cost_what_receipts_do"},
    ),
    "a capture that is lost": (
        "DELETE FROM routing_outcomes WHERE inference_id = '{charged}'",
        {"routed_calls_are_captured_once"},
    ),
    "a capture that is there twice": (
        copied("routing_outcomes", "free"),
        {"routed_calls_are_captured_once"},
    ),
    "a capture of a passthrough": (
        "UPDATE inferences SET routed = false WHERE id = '{charged}'",
        {"routed_calls_are_captured_once"},
    ),
    "a capture of a call that runs": (
        copied("routing_outcomes", "expired", "'inference_id'", "'{pending}'"),
        {"routed_calls_are_captured_once"},
    ),
    "a call that is lost": (
        "DELETE FROM inferences WHERE id = '{charged}'",
        {"nothing_without_its_call"},
    ),
    "a cap that was lowered": (
        "UPDATE agents SET daily_cap_usd = 1 WHERE id = '{agent.agent_id}'",
        {"days_within_the_daily_cap"},
    ),
    "a tenant's cap that was lowered": (
        "UPDATE tenants SET daily_cap_usd = 1 WHERE id = '{agent.tenant_id}'",
        {"days_within_the_tenants_cap"},
    ),
    "a cap per call that was lowered": (
        "UPDATE agents SET per_call_cap_usd = 1.2 WHERE id = '{agent.agent_id}'",
        {"calls_within_the_cap_per_call"},
    ),
}

OF_BOTH_TENANTS = {
    "a transfer in another tenant's name",
    "a kind without a rule",
    "more taken back than was given",
}


@pytest_asyncio.fixture(loop_scope="session")
async def spoiling(superuser_url: str) -> AsyncIterator[Connection]:
    """A transaction in which nothing is guarded, and of which nothing stays."""
    connection = await connect(superuser_url, None, "test")
    transaction = connection.transaction()
    await transaction.start()
    for statement in UNGUARDED:
        await connection.execute(statement)
    yield connection
    await transaction.rollback()
    await connection.close()


def broken(proved: list[Proved]) -> set[str]:
    return {each.proof.name for each in proved if each.wrong}


async def test_books_in_order_are_proved(app: Connection, kept_books: Books) -> None:
    proved = await prove(app)
    assert broken(proved) == set()
    assert in_order(proved)
    seen = {each.proof.name: (each.looked_at, each.amount) for each in proved}
    assert [name for name, (looked_at, _) in seen.items() if not looked_at] == []
    assert seen["balances_are_folds"][0] == 2
    assert seen["debits_equal_credits_per_inference"][0] == 4
    assert seen["holds_end_in_time"][0] == 1
    # 2 top-ups, 2 grants, one of them back but for 0.75, what 4 calls cost, what was corrected
    assert str(seen["debits_equal_credits"][1]) == "80.500000001"


def test_every_proof_has_something_planted_for_it() -> None:
    assert {name for _, names in PLANTED.values() for name in names} == {p.name for p in PROOFS}


@pytest.mark.parametrize("what", PLANTED)
async def test_what_was_planted_is_found(
    what: str, spoiling: Connection, kept_books: Books
) -> None:
    statement, expected = PLANTED[what]
    names: dict[str, Any] = {name: getattr(kept_books, name) for name in asdict(kept_books)}
    await spoiling.execute(statement.format(**names, nobody=uuid4()))
    proved = [await ask(spoiling, proof) for proof in PROOFS]
    assert broken(proved) == expected
    for each in proved:
        assert len(each.offences) == min(each.wrong, 5)
        assert all(offence.id and offence.detail for offence in each.offences)
    assert in_order(proved) is all(each.proof.informs for each in proved if each.wrong)


async def test_the_offence_is_named(spoiling: Connection, kept_books: Books) -> None:
    await spoiling.execute(
        "UPDATE receipts SET cost_usd = 9 WHERE inference_id = $1", kept_books.free
    )
    found = {proof.name: await ask(spoiling, proof) for proof in PROOFS}
    offence = found["receipts_are_what_was_settled"].offences[0]
    assert offence.id == str(kept_books.free)
    assert offence.detail == "receipt 9.000000000, charged , written off "


@pytest.mark.parametrize("of", ["agent", "other"])
async def test_a_tenant_is_judged_by_its_own_books(
    spoiling: Connection, kept_books: Books, of: str
) -> None:
    """Each proof keeps to whom it was asked about, in what it counts and in what it finds."""
    mine = UUID(getattr(kept_books, of).tenant_id)
    names: dict[str, Any] = {name: getattr(kept_books, name) for name in asdict(kept_books)}
    for what in PLANTED.keys() - OF_BOTH_TENANTS:
        nested = spoiling.transaction()
        await nested.start()
        await spoiling.execute(PLANTED[what][0].format(**names, nobody=uuid4()))
        theirs = [await ask(spoiling, proof, Scope(mine)) for proof in PROOFS]
        assert bool(broken(theirs)) is (of == "agent"), what
        await nested.rollback()


async def test_a_day_is_judged_by_what_happened_in_it(
    spoiling: Connection, kept_books: Books
) -> None:
    today = datetime.now(UTC).date()
    await spoiling.execute(
        "UPDATE receipts SET cost_usd = 9 WHERE inference_id = $1", kept_books.free
    )
    for day, found in ((today, True), (today - timedelta(days=1), False)):
        proved = [await ask(spoiling, proof, Scope(day=day)) for proof in PROOFS]
        assert ("receipts_are_what_was_settled" in broken(proved)) is found
        assert {each.proof.name for each in proved if not each.asked} == {
            proof.name for proof in PROOFS if not proof.daily
        }
    assert {"balances_are_folds", "held_is_what_calls_hold"} <= {
        proof.name for proof in PROOFS if not proof.daily
    }


async def test_it_sees_one_moment_and_writes_nothing(
    app: Connection, ledger_db: Connection, kept_books: Books
) -> None:
    """Money that moves in the middle of a check is not half seen."""
    begun: list[Proof] = []

    async def asked_while_money_moves() -> list[Proved]:
        async with snapshot(app):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                async with app.transaction():
                    await app.execute("UPDATE accounts SET held = held")
            before = [await ask(app, proof) for proof in PROOFS]
            await new_agent(ledger_db, "7")
            return [*before, *[await ask(app, proof) for proof in PROOFS]]

    proved = await asked_while_money_moves()
    assert proved[: len(PROOFS)] == proved[len(PROOFS) :]
    later = await prove(app, begun=begun.append)
    assert begun == list(PROOFS)
    assert in_order(later)
    assert later != proved[: len(PROOFS)]
