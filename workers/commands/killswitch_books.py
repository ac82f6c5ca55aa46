"""`fleet killswitch threshold` and `statement`: what may be spent, and what a switch did."""

import sys
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any
from uuid import UUID

import typer
from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from shared.closing_statement import CSV_HEADER, find_switch, read_statement, statement_pages
from shared.domain.counting import counted
from shared.domain.spending import ALL
from shared.domain.spreadsheet import csv_line
from shared.killswitch import KillswitchThresholdRow, read_thresholds
from shared.models import TenantRow
from shared.operators import record_act, this_operator
from workers.commands.terminal import AsJson, Stores, Yes, ask_first, fail, run, say_json, stores
from workers.development import say

NO_THRESHOLD, AS_SET = "off", "default"
LARGEST_USD = Decimal(10) ** 11

TenantOption = Annotated[UUID | None, typer.Option(help="One tenant; without it, the system.")]
UsdOption = Annotated[
    str, typer.Option(help="Dollars in the window; `off`: none; `default`: as the settings say.")
]
AsCsv = Annotated[bool, typer.Option("--csv", help="All calls as CSV, on standard output.")]
LATEST = "latest"


def an_engagement(written: str) -> str:
    """An id, or `latest`. Raises `typer.BadParameter`."""
    try:
        return written if written == LATEST else str(UUID(written))
    except ValueError:
        raise typer.BadParameter(f"{written!r} is no id; give one, or `{LATEST}`.") from None


SwitchArgument = Annotated[
    str, typer.Argument(callback=an_engagement, help="The id of an engagement, or `latest`.")
]


def threshold_command(
    tenant: TenantOption = None, usd: UsdOption = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Say what may be spent before the killswitch engages by itself, or set it with --usd.

    Example: fleet killswitch threshold --tenant 0199… --usd 250
    """
    if usd:
        scope = ALL if tenant is None else str(tenant)
        amount = _amount(usd)
        whose = "the whole system" if scope == ALL else f"tenant {scope}"
        ask_first(f"Set the threshold of {whose} to {usd}?", yes)
        run(_set(scope, usd, amount))
    told = run(_thresholds())
    if as_json:
        say_json(told)
        return
    say(f"In {told['window_seconds']} s: system {_said(told['system_usd'])},")
    say(f"each tenant {_said(told['tenant_usd'])}, by the settings that this command sees.")
    for chosen in told["chosen"]:
        say(f"{chosen['scope']}: {_said(chosen['threshold_usd'])}, set by {chosen['set_by']}")


def _said(usd: Any) -> str:
    return "no threshold" if usd is None else f"{usd:f} USD"


def _amount(written: str) -> Decimal | None:
    """Dollars; None for the two words. Exits for anything else."""
    if written in (NO_THRESHOLD, AS_SET):
        return None
    try:
        amount = Decimal(written)
    except InvalidOperation:
        fail(f"{written!r} is no amount; write dollars, `off` or `default`.")
    places = amount.as_tuple().exponent
    if not amount.is_finite() or not 0 < amount < LARGEST_USD or int(places) < -9:
        fail(f"{written!r} is no amount above zero with at most nine places.")
    return amount


async def _set(scope: str, written: str, amount: Decimal | None) -> None:
    async with stores() as opened, opened.db.everyone() as session:
        if scope != ALL and await session.get(TenantRow, UUID(scope)) is None:
            fail(f"There is no tenant {scope}.")
        actor = this_operator()
        if written == AS_SET:
            mine = col(KillswitchThresholdRow.scope) == scope
            await session.execute(delete(KillswitchThresholdRow).where(mine))
        else:
            values = {"threshold_usd": amount, "set_by": actor}
            setting = insert(KillswitchThresholdRow).values(scope=scope, **values)
            await session.execute(
                setting.on_conflict_do_update(index_elements=["scope"], set_=values)
            )
        await record_act(session, "killswitch.threshold", scope, actor=actor, usd=written)
        await session.commit()


async def _thresholds() -> dict[str, Any]:
    async with stores() as opened, opened.db.everyone() as session:
        return await read_thresholds(session, opened.settings)


def statement_command(
    switch: SwitchArgument = LATEST, as_csv: AsCsv = False, as_json: AsJson = False
) -> None:
    """The closing statement: why it was engaged, what it stopped, what was under way, its end.

    Example: fleet killswitch statement --csv > statement.csv
    """
    wanted = None if switch == LATEST else UUID(switch)
    if as_csv:
        run(_write_csv(wanted))
        return
    statement = run(_statement(wanted))
    if as_json:
        say_json(statement)
        return
    say(f"Killswitch {statement['id']} of {named(statement['scope'])}:")
    ended = statement["released_at"]
    for line in (
        f"engaged {engaged_by(statement)}",
        *sentences(statement),
        f"released {ended} by {statement['released_by']}" if ended else "still engaged",
    ):
        say(f"  {line}")


def sentences(statement: Mapping[str, Any]) -> list[str]:
    """Whom an engagement stopped, and what was under way and cost."""
    stopped, way = statement["stopped"]["calls"], statement["under_way"]
    calls, running, late = way["calls"], way["running"], way["let_in_late"]
    said = [f"{_calls(stopped)} refused", f"{_calls(calls)} under way"]
    if calls:
        said[1] += f" ({late} of them let in late)" if late else ""
        said[1] += f"; they cost {way['cost_usd']} USD in all"
    if running:
        does = "still runs and holds" if running == 1 else "still run and hold"
        said.append(f"{running} of them {does} {way['held_usd']} USD")
    return said


def _calls(number: int) -> str:
    was = "was" if number in (0, 1) else "were"
    return f"{counted(number, 'call') if number else 'no call'} {was}"


def engaged_by(switch: Mapping[str, Any]) -> str:
    """Since when, by whom and why."""
    why = switch["reason"].strip()
    said = f": {why}" if why else ", who gave no reason"
    return f"{switch['engaged_at']} by {switch['engaged_by']}{said}"


def named(scope: str) -> str:
    return "ALL tenants" if scope == ALL else f"tenant {scope}"


async def _statement(switch: UUID | None) -> dict[str, Any]:
    async with stores() as opened, opened.db.everyone() as session:
        return await read_statement(session, await _found(opened, switch))


async def _write_csv(switch: UUID | None) -> None:
    async with stores() as opened:
        found = await _found(opened, switch)
        sys.stdout.write(csv_line(CSV_HEADER))
        async for page in statement_pages(opened.db, found):
            sys.stdout.write("".join(csv_line(row) for row in page))


async def _found(opened: Stores, switch: UUID | None) -> Any:
    async with opened.db.everyone() as session:
        found = await find_switch(session, switch)
    if found is None and switch is None:
        fail("The killswitch has never been engaged.")
    if found is None:
        fail(f"There is no engagement {switch} of the killswitch.")
    return found
