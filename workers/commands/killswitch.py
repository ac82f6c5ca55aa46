"""`fleet killswitch`: stop new calls of one tenant, or of all, until they are let in again."""

from typing import Annotated, Any
from uuid import UUID

import typer

from shared.control import KILLSWITCH
from shared.domain.spending import ALL
from shared.killswitch import engage, engaged_switches, release
from shared.models import TenantRow
from shared.operators import this_operator
from workers.commands.killswitch_books import (
    engaged_by,
    named,
    statement_command,
    threshold_command,
)
from workers.commands.terminal import (
    AsJson,
    NeededReason,
    Reason,
    Stores,
    Yes,
    announce,
    ask_first,
    fail,
    run,
    say_json,
    stores,
)
from workers.development import say

killswitch = typer.Typer(
    no_args_is_help=True, help="Stop new calls of one tenant, or of all; let them in again."
)

killswitch.command("threshold")(threshold_command)
killswitch.command("statement")(statement_command)

Tenant = Annotated[UUID | None, typer.Option(help="One tenant; without it, all of them.")]


@killswitch.command("status")
def status_command(as_json: AsJson = False) -> None:
    """Say what is engaged, since when, by whom and why."""
    engaged = run(status())
    if as_json:
        say_json({"engaged": engaged})
        return
    for each in engaged:
        say(f"{named(each['scope'])}: engaged {engaged_by(each)}")
    if not engaged:
        say("Nothing is engaged.")


@killswitch.command("engage")
def engage_command(
    reason: NeededReason, tenant: Tenant = None, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Refuse new calls with 503 cost_killswitch_engaged; calls under way end as they do.

    Example: fleet killswitch engage --tenant 0199… --reason "runaway agent"
    """
    scope = scope_of(tenant)
    ask_first(f"Stop all new calls of {named(scope)}?", yes)
    told(scope, run(change(scope, reason, engaged=True)), "engaged", as_json)


@killswitch.command("release")
def release_command(
    tenant: Tenant = None, reason: Reason = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Take new calls again.

    Example: fleet killswitch release --tenant 0199…
    """
    scope = scope_of(tenant)
    ask_first(f"Take new calls of {named(scope)} again?", yes)
    told(scope, run(change(scope, reason, engaged=False)), "released", as_json)


async def status() -> list[dict[str, Any]]:
    async with stores() as opened, opened.db.everyone() as session:
        rows = await engaged_switches(session)
    return [
        {
            "scope": row.scope,
            "engaged_at": row.engaged_at.isoformat(),
            "engaged_by": row.engaged_by,
            "reason": row.reason,
            "spent_usd": row.spent_usd,
            "threshold_usd": row.threshold_usd,
        }
        for row in rows
    ]


async def change(scope: str, reason: str, *, engaged: bool) -> bool:
    """Write it down, then tell every process; False if it was so already."""
    async with stores() as opened:
        done = await _written(opened, scope, reason, engaged)
        # told even if nothing changed: somebody may not have heard it the first time
        await announce(opened, KILLSWITCH, scope=scope, engaged=engaged)
        return done


async def _written(opened: Stores, scope: str, reason: str, engaged: bool) -> bool:
    async with opened.db.everyone() as session:
        if scope != ALL and await session.get(TenantRow, UUID(scope)) is None:
            fail(f"There is no tenant {scope}.")
        turn = engage if engaged else release
        done = await turn(session, scope, reason, this_operator())
        await session.commit()
        return done


def scope_of(tenant: UUID | None) -> str:
    return ALL if tenant is None else str(tenant)


def told(scope: str, changed: bool, state: str, as_json: bool) -> None:
    if as_json:
        say_json({"scope": scope, "state": state, "changed": changed})
    else:
        say(f"The killswitch of {named(scope)} {'is' if changed else 'was already'} {state}.")
