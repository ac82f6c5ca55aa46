"""`fleet policy preference`: whether the preference dial moves floors, flipped while all runs."""

from typing import Any

import typer

from shared.operators import this_operator
from shared.policies import preference_gate, set_preference_gate, tell_policies_changed
from workers.commands.terminal import AsJson, Reason, Yes, ask_first, run, say_json, stores, tell
from workers.development import say

preference = typer.Typer(
    no_args_is_help=True, help="The gate of the preference dial: whether it does anything."
)


@preference.command("status")
def status_command(as_json: AsJson = False) -> None:
    """Say whether the gate is open, and who set it; else it is as the environment says."""
    found = run(status())
    if as_json:
        say_json(found)
        return
    by = f"since {found['set_at']} by {found['set_by']}: {found['reason']}"
    if found["set_by"] is None:
        by = "as AINFERA_ROUTING_PREFERENCE_LIVE says; no operator has set it"
    say(f"The preference dial is {_state(found['live'])}, {by}")


@preference.command("on")
def on_command(reason: Reason = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Let the dial move floors: `quality` up, `cost` down. Stays so over restarts."""
    ask_first("Let `routing_preference` move the floors of all tenants?", yes)
    _told(True, run(flipped(True, reason)), as_json)


@preference.command("off")
def off_command(reason: Reason = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Let the dial do nothing. Stays so over restarts."""
    ask_first("Let `routing_preference` do nothing, for all tenants?", yes)
    _told(False, run(flipped(False, reason)), as_json)


async def status() -> dict[str, Any]:
    async with stores() as opened, opened.db.everyone() as session:
        row = await preference_gate(session)
    if row is None:
        live = opened.settings.routing_preference_live
        return {"live": live, "set_at": None, "set_by": None, "reason": None}
    return {
        "live": row.live,
        "set_at": row.set_at.isoformat(),
        "set_by": row.set_by,
        "reason": row.reason,
    }


async def flipped(live: bool, reason: str) -> bool:
    """Write it down, then tell every process; False if an operator had it so already."""
    async with stores() as opened:
        async with opened.db.everyone() as session:
            changed = await set_preference_gate(session, live, reason, this_operator())
            await session.commit()
        await tell(tell_policies_changed(opened.redis))
        return changed


def _told(live: bool, changed: bool, as_json: bool) -> None:
    if as_json:
        say_json({"live": live, "changed": changed})
    else:
        say(f"The preference dial {'is' if changed else 'was already'} {_state(live)}.")


def _state(live: bool) -> str:
    return "on" if live else "off"
