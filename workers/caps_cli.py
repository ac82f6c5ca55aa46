"""`fleet caps`: what all agents of a tenant may spend together in a day."""

from decimal import Decimal
from typing import Annotated
from uuid import UUID

import typer

from shared.operators import this_operator
from workers.caps import TenantCap, set_tenant_cap
from workers.corrections_cli import dollars
from workers.development import say
from workers.terminal import AsJson, Reason, Yes, ask_first, fail, run, say_json, stores

caps = typer.Typer(no_args_is_help=True, help="Caps on what a whole tenant spends.")


@caps.callback()
def group() -> None:
    """A group of commands, though there is one: agents' own caps are set over HTTP."""


@caps.command("tenant")
def tenant_command(
    tenant: Annotated[UUID, typer.Argument(help="The tenant's id.")],
    daily: Annotated[
        str | None, typer.Option(metavar="USD", help="What it may spend in a day (UTC).")
    ] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Take the cap away.")] = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cap what all agents of a tenant spend together in a day; days begin at midnight UTC.

    The cap holds for every call that begins and for every answer that outgrows its hold. It is
    exact: what calls in flight hold counts as if it were spent.

    Example: fleet caps tenant 0199… --daily 50
    """
    if (daily is None) is not lift:
        raise typer.BadParameter("Give --daily, or --lift.")
    cap = dollars(daily)
    ask_first(f"{'Lift the cap' if lift else f'Cap the day at {cap} USD'} of tenant {tenant}?", yes)
    found = run(changed(tenant, cap, reason))
    if as_json:
        say_json({"tenant_id": str(tenant), **found.as_json()})
        return
    told = "has no cap" if found.cap is None else f"may spend {found.cap:f} USD in a day (UTC)"
    say(f"Tenant {tenant} {told}; {found.settled:f} settled today, {found.held:f} held.")


async def changed(tenant: UUID, cap: Decimal | None, reason: str) -> TenantCap:
    async with stores() as opened, opened.db.session() as session:
        found = await set_tenant_cap(session, tenant, cap, reason, this_operator())
        if found is None:
            fail(f"There is no tenant {tenant}.")
        await session.commit()
        return found
