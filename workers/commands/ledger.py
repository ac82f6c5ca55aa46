"""`fleet ledger`: prove the books from the tables alone, and read them."""

import csv
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.status import Status

from shared.db import APPLICATION_NAME, Connection, Database
from shared.domain.books import (
    TRIAL_HEADINGS,
    Proved,
    Scope,
    TrialLine,
    TrialTotals,
    in_order,
)
from shared.domain.counting import counted, one_of
from shared.preflight import check_postgres
from workers.commands.terminal import AsJson, fail, fleet_settings, run, say_json
from workers.development import say
from workers.ledger_check import prove, trial_balance

# the columns of a trial balance that are words; the others are amounts
WORDS = 3

ledger = typer.Typer(
    no_args_is_help=True, help="Money: prove that none of it drifted, and read trial balances."
)


def utc_day(written: str) -> date:
    """A day in ISO 8601, `today` or `yesterday` being UTC's. Raises `typer.BadParameter`."""
    today = datetime.now(UTC).date()
    try:
        return {"today": today, "yesterday": date.fromordinal(today.toordinal() - 1)}.get(
            written
        ) or date.fromisoformat(written)
    except ValueError:
        raise typer.BadParameter(
            f"{written!r} is no day; write 2026-01-31, today or yesterday."
        ) from None


Tenant = Annotated[UUID | None, typer.Option(help="Only this tenant's money.")]
Day = Annotated[
    date | None,
    typer.Option(parser=utc_day, metavar="DAY", help="Only this day, in UTC: 2026-01-31."),
]


@ledger.command("check")
def check_command(tenant: Tenant = None, day: Day = None, as_json: AsJson = False) -> None:
    """Prove that no money drifted, from nothing but the tables, and say what was proved.

    All is asked of one snapshot, and nothing is locked: it may run beside a fleet at work.
    Exit code 1 if anything is broken, with the first ids of each broken proof. What is only
    worth knowing, such as days over a cap that was lowered since, is noted and breaks nothing.
    With --day, only what can be told from one day is asked; balances need all of them.

    Example: fleet ledger check --day yesterday
    """
    proved = run(_proved(Scope(tenant, day)))
    if as_json:
        say_json({"in_order": in_order(proved), "proofs": [each.as_json() for each in proved]})
    else:
        for each in proved:
            _say_proved(each)
        say(_verdict(proved))
    if not in_order(proved):
        raise typer.Exit(1)


@ledger.command("trial-balance")
def trial_balance_command(
    tenant: Tenant = None,
    day: Day = None,
    inference: Annotated[UUID | None, typer.Option(help="Only this call's transfers.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Answer in CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """The accounts with what left them (debits), what entered them (credits), and the difference.

    A wallet's balance is what its agent has; of a day or of a call it is what that changed.
    The wallets of a tenant are one line unless a tenant or a call is asked for. The sums of both
    columns are equal; exit code 1 if they are not.

    Example: fleet ledger trial-balance --day yesterday --csv
    """
    if as_csv and as_json:
        fail("--csv and --json are two ways to answer; ask for one.")
    show = _csv if as_csv else _json if as_json else _table
    totals = run(_shown(show, Scope(tenant, day), inference))
    if not totals.balanced:
        fail(f"Debits are {totals.debits:f} and credits {totals.credits:f}: `fleet ledger check`.")


# -- asking the database ------------------------------------------------------------------------


@asynccontextmanager
async def _connected() -> AsyncIterator[Connection]:
    """Raises `StartError` where there is no database to ask."""
    settings = fleet_settings("DATABASE_URL")
    await check_postgres("DATABASE_URL", settings.database_url)
    connection = await Database(settings).connect_raw(f"{APPLICATION_NAME} ledger")
    try:
        yield connection
    finally:
        await connection.close()


async def _proved(scope: Scope) -> list[Proved]:
    async with _connected() as connection:
        with Status("", console=Console(stderr=True)) as status:
            return await prove(connection, scope, lambda proof: status.update(proof.sentence))


async def _shown(show: Any, scope: Scope, inference: UUID | None) -> TrialTotals:
    async with _connected() as connection:
        totals: TrialTotals = await show(trial_balance(connection, scope, inference))
        return totals


# -- what is shown ------------------------------------------------------------------------------


def _say_proved(proved: Proved) -> None:
    if not proved.asked:
        say(f"not asked  {proved.proof.sentence}")
        return
    word = "proved" if not proved.wrong else "noted" if proved.proof.informs else "BROKEN"
    subjects = proved.proof.subjects
    looked_at = counted(proved.looked_at or 0, one_of(subjects), subjects)
    if proved.wrong:
        looked_at = f"{proved.wrong:,} of {looked_at}"
    amount = "" if proved.amount is None else f", {_usd(proved.amount)}"
    say(f"{word:9}  {proved.proof.sentence} ({looked_at}{amount})")
    for each in proved.offences:
        say(f"           {each.id}: {each.detail}")
    if proved.wrong > len(proved.offences):
        say(f"           and {proved.wrong - len(proved.offences):,} more")


def _verdict(proved: list[Proved]) -> str:
    asked = [each for each in proved if each.asked]
    broken = [each.proof.name for each in asked if not each.holds]
    if broken:
        return f"{len(broken)} of {len(asked)} proofs are broken: {', '.join(broken)}."
    return f"All {len(asked)} proofs hold."


def _usd(amount: Decimal) -> str:
    return f"{amount:,.9f} USD"


async def _csv(lines: AsyncIterator[TrialLine]) -> TrialTotals:
    """One line after the other, so that any number of them fits."""
    totals, writer = TrialTotals(), csv.writer(sys.stdout)
    writer.writerow(TRIAL_HEADINGS)
    async for line in lines:
        totals.add(line)
        writer.writerow(line.cells())
    writer.writerow(totals.line().cells())
    return totals


async def _json(lines: AsyncIterator[TrialLine]) -> TrialTotals:
    totals, found = TrialTotals(), []
    async for line in lines:
        totals.add(line)
        found.append(line.as_json())
    say_json({"balanced": totals.balanced, "sum": totals.line().as_json(), "accounts": found})
    return totals


async def _table(lines: AsyncIterator[TrialLine]) -> TrialTotals:
    """Amounts below each other, ids whole, whatever the width of the terminal."""
    totals = TrialTotals()
    found: list[tuple[str, ...]] = [TRIAL_HEADINGS]
    async for line in lines:
        totals.add(line)
        found.append(line.cells())
    found.append(totals.line().cells())
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    for row in found:
        cells = [
            f"{cell:<{width}}" if n < WORDS else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
    return totals
