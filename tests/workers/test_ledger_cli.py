"""`fleet ledger`: what it prints, and with which exit code."""

import asyncio
import csv
import io
from collections.abc import Callable
from typing import Any

import asyncpg
import orjson
import pytest
from typer.testing import Result

from shared.domain.books import TRIAL_HEADINGS
from tests.test_cli import fleet
from tests.workers.books_cases import Books
from workers.ledger_proofs import PROOFS

Ledger = Callable[..., Any]


@pytest.fixture
def ledger(database_url: str, redis_url: str, kept_books: Books) -> Ledger:
    """`fleet ledger …` in a thread: it runs an event loop of its own."""

    async def run(*words: str) -> Result:
        told = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        return await asyncio.to_thread(fleet, "ledger", *words, **told)

    return run


async def test_it_says_what_it_proved(ledger: Ledger) -> None:
    done = await ledger("check")
    assert done.exit_code == 0, done.stderr
    for proof in PROOFS:
        assert f"proved     {proof.sentence} (" in done.stdout
    assert "is the sum of its transfers. (2 wallets, 71.499999999 USD)" in done.stdout
    assert done.stdout.endswith(f"All {len(PROOFS)} proofs hold.\n")


async def test_it_fails_with_the_first_ids(
    ledger: Ledger, superuser_url: str, kept_books: Books
) -> None:
    connection: Any = await asyncpg.connect(superuser_url)
    change = "UPDATE accounts SET balance = balance + $2 WHERE id = $1"
    await connection.execute(change, kept_books.agent.wallet_id, 1)
    try:
        broken = await ledger("check")
        answer = await ledger("check", "--json")
        theirs = await ledger("check", "--tenant", kept_books.other.tenant_id)
    finally:
        await connection.execute(change, kept_books.agent.wallet_id, -1)
        await connection.close()
    assert broken.exit_code == 1
    assert "BROKEN     Every wallet's balance is the sum of its transfers. (1 of" in broken.stdout
    assert f"           {kept_books.agent.wallet_id}: has " in broken.stdout
    assert f"1 of {len(PROOFS)} proofs are broken: balances_are_folds." in broken.stdout
    assert answer.exit_code == 1
    told = orjson.loads(answer.stdout)
    assert told["in_order"] is False
    [offence] = [each["offences"] for each in told["proofs"] if each["holds"] is False]
    assert [each["id"] for each in offence] == [str(kept_books.agent.wallet_id)]
    assert theirs.exit_code == 0


async def test_a_day_leaves_out_what_needs_all_of_them(ledger: Ledger) -> None:
    done = await ledger("check", "--day", "yesterday")
    assert done.exit_code == 0, done.stderr
    assert "not asked  Every wallet's balance" in done.stdout
    assert "proved     Of each day (UTC), debits equal credits. (0 days)" in done.stdout
    assert (await ledger("check", "--day", "31.1.2026")).exit_code == 2


async def test_finance_reads_a_trial_balance(ledger: Ledger, kept_books: Books) -> None:
    done = await ledger("trial-balance")
    assert done.exit_code == 0, done.stderr
    heading, *between, last = done.stdout.rstrip().splitlines()
    assert heading.split() == list(TRIAL_HEADINGS)
    names = {line.split()[1]: line.split()[2:-3] for line in between}
    assert names["00000000-0000-0000-0000-000000000007"] == ["stripe", "clearing"]
    assert all(names.values())
    assert last.split() == ["sum", "80.500000001", "80.500000001", "0.000000000"]


async def test_it_is_csv_for_their_spreadsheets(ledger: Ledger, kept_books: Books) -> None:
    done = await ledger("trial-balance", "--tenant", kept_books.agent.tenant_id, "--csv")
    heading, *lines, total = csv.reader(io.StringIO(done.stdout))
    assert tuple(heading) == TRIAL_HEADINGS
    wallet = next(line for line in lines if line[1] == str(kept_books.agent.wallet_id))
    assert wallet == [
        *("wallet", str(kept_books.agent.wallet_id), "an agent"),
        *("2.250000001", "53.750000000", "51.499999999"),
    ]
    assert str(kept_books.other.wallet_id) not in done.stdout
    assert total[3] == total[4]


async def test_a_call_has_a_trial_balance_of_its_own(ledger: Ledger, kept_books: Books) -> None:
    done = await ledger("trial-balance", "--inference", str(kept_books.dearer), "--json")
    told = orjson.loads(done.stdout)
    moved = {
        line["kind"]: (line["debits_usd"], line["credits_usd"])
        for line in told["accounts"]
        if line["balance_usd"] != "0.000000000"
    }
    assert moved == {
        "wallet": ("1.000000000", "0.000000000"),
        "losses": ("0.500000000", "0.000000000"),
        "provider_cost": ("0.000000000", "1.500000000"),
    }
    assert told["balanced"] is True
    yesterday = orjson.loads((await ledger("trial-balance", "--day", "yesterday", "--json")).stdout)
    assert yesterday["sum"]["debits_usd"] == "0.000000000"


async def test_two_ways_to_answer_are_one_too_many(ledger: Ledger) -> None:
    done = await ledger("trial-balance", "--csv", "--json")
    assert done.exit_code == 1
    assert "ask for one" in done.stderr
