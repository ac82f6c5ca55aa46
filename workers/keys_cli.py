"""`fleet keys`: list API keys, replace one with an overlap, revoke one."""

from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from shared.control import KEY_REVOKED
from shared.models import ApiKeyRow
from shared.operators import this_operator
from workers.development import say
from workers.keys import SHOWN_PREFIX, KeyNotFound, Rotated, find_key, list_keys, revoke, rotate
from workers.terminal import (
    AsJson,
    Reason,
    Yes,
    announce,
    ask_first,
    duration,
    fail,
    run,
    say_json,
    stores,
)

keys = typer.Typer(no_args_is_help=True, help="API keys: list, rotate, revoke.")

Key = Annotated[str, typer.Argument(help="The key's id, or how its hash begins.")]
Overlap = Annotated[
    str, typer.Option(metavar="DURATION", help="How long the old key works yet: 1h, 7d.")
]


@keys.command("list")
def list_command(
    tenant: Annotated[UUID | None, typer.Option(help="Only this tenant's.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that are revoked or expired.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List keys, the oldest first: what they are for, never the keys themselves."""
    found = [key_json(key) for key in run(listed(tenant, everything))]
    if as_json:
        say_json(found)
        return
    table = Table("id", "hash", "tenant", "agent", "label", "created", "expires", "revoked")
    for key in found:
        agent = key["agent_id"] or key["default_agent_id"] or ""
        moments = (key["created_at"], key["expires_at"], key["revoked_at"])
        told = [(moment or "")[:19] for moment in moments]
        table.add_row(key["id"], key["hash"], key["tenant_id"], agent, key["label"] or "", *told)
    Console().print(table)


@keys.command("rotate")
def rotate_command(
    key: Key, overlap: Overlap = "24h", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Make a new key in place of one, which works until the overlap is over.

    The new key is shown this once.

    Example: fleet keys rotate 3f9a0c21 --overlap 1h
    """
    ends_after = duration(overlap)
    ask_first(f"Replace the key {key}? The old one ends after {overlap}.", yes)
    rotated = run(rotated_key(key, ends_after))
    assert rotated.old.expires_at is not None
    ends_at = rotated.old.expires_at.isoformat()
    if as_json:
        say_json({"api_key": rotated.api_key, "id": rotated.new.id, "old_expires_at": ends_at})
        return
    say(rotated.api_key)
    say(f"The key {rotated.new.id} is shown this once. The old one works until {ends_at}.")


@keys.command("revoke")
def revoke_command(
    key: Key, reason: Reason = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """End a key at once, everywhere within a second.

    Example: fleet keys revoke 3f9a0c21 --reason leaked
    """
    ask_first(f"Revoke the key {key}? Its calls are refused from now on.", yes)
    row, changed = run(revoked_key(key, reason))
    if as_json:
        say_json({**key_json(row), "changed": changed})
    else:
        say(f"The key {row.id} {'is' if changed else 'was already'} revoked.")


async def listed(tenant_id: UUID | None, everything: bool) -> list[ApiKeyRow]:
    async with stores() as opened, opened.db.everyone() as session:
        return await list_keys(session, tenant_id, everything=everything)


async def rotated_key(named: str, overlap: timedelta) -> Rotated:
    async with stores() as opened:
        async with opened.db.everyone() as session:
            try:
                key = await find_key(session, named)
            except KeyNotFound as error:
                fail(str(error))
            rotated = await rotate(session, key, overlap, this_operator())
            if rotated is None:
                fail("The key does not work any more: make a new one by a signup.")
            await session.commit()
        # what was kept of it does not know that it has an end now
        await announce(opened, KEY_REVOKED, key_hash=rotated.old.key_hash.hex())
        return rotated


async def revoked_key(named: str, reason: str) -> tuple[ApiKeyRow, bool]:
    async with stores() as opened:
        async with opened.db.everyone() as session:
            try:
                key = await find_key(session, named)
            except KeyNotFound as error:
                fail(str(error))
            changed = await revoke(session, key, reason, this_operator())
            await session.commit()
        await announce(opened, KEY_REVOKED, key_hash=key.key_hash.hex())
        return key, changed


def key_json(key: ApiKeyRow) -> dict[str, Any]:
    """A key as operators see it; the hash is cut short, and tells nothing of the key."""
    return {
        "id": str(key.id),
        "hash": key.key_hash.hex()[:SHOWN_PREFIX],
        "tenant_id": str(key.tenant_id),
        "agent_id": key.agent_id and str(key.agent_id),
        "default_agent_id": key.default_agent_id and str(key.default_agent_id),
        "label": key.label,
        "created_at": key.created_at and key.created_at.isoformat(),
        "expires_at": key.expires_at and key.expires_at.isoformat(),
        "revoked_at": key.revoked_at and key.revoked_at.isoformat(),
    }
