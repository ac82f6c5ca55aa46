"""`fleet caps`: what all agents of a tenant may spend together in a day."""

from decimal import Decimal
from typing import Annotated
from uuid import UUID

import typer

from shared.operators import this_operator
from workers.caps import TenantCap, read_tenant_cap, set_tenant_cap
from workers.commands.corrections import dollars
from workers.commands.terminal import AsJson, Reason, Yes, ask_first, fail, run, say_json, stores
from workers.development import say

caps = typer.Typer(no_args_is_help=True, help="Caps on what a whole tenant spends.")


TenantId = Annotated[UUID, typer.Argument(help="The tenant's id.")]


@caps.command("show")
def show_command(tenant: TenantId, as_json: AsJson = False) -> None:
    """Show a tenant's cap, and what counts against it today (UTC).

    Agents' own caps are over HTTP: GET /v1/agents/{id}, GET /v1/caps/rollup.

    Example: fleet caps show 0199…
    """
    found = run(read(tenant))
    if as_json:
        told = found.as_json()
        del told["before_usd"]  # nothing was changed
        say_json({"tenant_id": str(tenant), **told})
        return
    say(sentence(tenant, found))


@caps.command("tenant")
def tenant_command(
    tenant: TenantId,
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
        raise typer.BadParameter("Give --daily, or --lift. (`fleet caps show` tells what is set.)")
    cap = dollars(daily)
    act = "Lift the cap" if cap is None else f"Cap the day at {cap:f} USD"
    ask_first(f"{act} of tenant {tenant}?", yes)
    found = run(changed(tenant, cap, reason))
    if as_json:
        say_json({"tenant_id": str(tenant), **found.as_json()})
        return
    say(sentence(tenant, found))


def sentence(tenant: UUID, found: TenantCap) -> str:
    told = "has no cap" if found.cap is None else f"may spend {found.cap:f} USD in a day (UTC)"
    return f"Tenant {tenant} {told}; {found.settled:.9f} settled today, {found.held:.9f} held."


async def read(tenant: UUID) -> TenantCap:
    async with stores() as opened, opened.db.everyone() as session:
        found = await read_tenant_cap(session, tenant)
    return found if found is not None else fail(f"There is no tenant {tenant}.")


async def changed(tenant: UUID, cap: Decimal | None, reason: str) -> TenantCap:
    async with stores() as opened, opened.db.everyone() as session:
        found = await set_tenant_cap(session, tenant, cap, reason, this_operator())
        if found is None:
            fail(f"There is no tenant {tenant}.")
        await session.commit()
        return found
