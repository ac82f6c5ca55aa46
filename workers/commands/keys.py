"""`fleet keys`: API keys made, listed, given a new secret, limited, revoked."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession

from shared.api_keys import (
    Key,
    KeyNotFound,
    Minted,
    TooManySecrets,
    Wish,
    create_key,
    find_key,
    limit_key,
    list_keys,
    revoke_key,
    rotate_key,
    tell_key_changed,
)
from shared.domain.keys import Scope, in_order
from shared.domain.limits import LARGEST_RATE
from shared.models import AgentRow, TenantRow
from shared.operators import this_operator
from workers.commands.terminal import (
    AsJson,
    Reason,
    Stores,
    Yes,
    ask_first,
    duration,
    fail,
    run,
    say_json,
    say_unheard,
    show_rows,
    stores,
)
from workers.development import say

SHOWN_PREFIX = 12
HEADINGS = (
    *("id", "hash", "tenant", "agent", "scopes", "label", "limits"),
    *("created", "expires", "used"),
)
LIMITS = {
    "requests_per_minute": "req/min",
    "tokens_per_minute": "tokens/min",
    "concurrent_calls": "at once",
}
T = TypeVar("T")

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, limit, revoke.")

Named = Annotated[str, typer.Argument(help="The key's id, or how the hash of a secret begins.")]
Overlap = Annotated[
    str, typer.Option(metavar="DURATION", help="How long the old secret works yet: 1h, 7d.")
]
Requests = Annotated[
    int | None, typer.Option(min=0, max=LARGEST_RATE, help="Per minute; 0 is no limit.")
]
Tokens = Annotated[
    int | None, typer.Option(min=0, max=LARGEST_RATE, help="Per minute; 0 is no limit.")
]
Calls = Annotated[int | None, typer.Option(min=0, max=100_000, help="At a time; 0 is no limit.")]


@keys.command("create")
def create_command(
    tenant: Annotated[UUID, typer.Option(help="Whose key it will be.")],
    agent: Annotated[UUID | None, typer.Option(help="Bind it to this agent.")] = None,
    default_agent: Annotated[
        UUID | None, typer.Option(help="Who is meant where a call names no agent.")
    ] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Give it once for each; without it, all.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="After how long it ends: 12h, 90d.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_calls: Calls = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is shown this once. Limits that are not given are the settings'.

    Example: fleet keys create --tenant 0190… --scope call --expires 90d
    """
    del yes  # there is nothing to ask
    wish = Wish(
        tenant_id=tenant,
        agent_id=agent,
        default_agent_id=default_agent,
        label=label,
        expires_at=datetime.now(UTC) + duration(expires) if expires else None,
        scopes=in_order(scope or list(Scope)),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_calls=concurrent_calls,
    )
    minted = run(created(wish))
    if Scope.CALL in wish.scopes and agent is None and default_agent is None:
        sys.stderr.write(
            "The key has no default agent: each call has to name one, as agent_id in the body or "
            "in the header X-Ainfera-Agent-Id. --agent binds a key to one, --default-agent gives "
            "it one.\n"
        )
    show_once(minted, as_json, f"The key {minted.row.key_id} is shown this once.")


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
    show_rows(HEADINGS, [row_of(key) for key in found])


@keys.command("rotate")
def rotate_command(
    key: Named, overlap: Overlap = "24h", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Give a key a new secret, shown this once; the old one works until the overlap is over.

    The key keeps its id, its scopes, its limits and its end.

    Example: fleet keys rotate 3f9a0c21 --overlap 1h
    """
    ends_after = duration(overlap)
    ask_first(f"Replace the key {key}? The old secret ends after {overlap}.", yes)
    minted, old_ends = run(rotated(key, ends_after))
    told = f"The key {minted.row.key_id} keeps its id; its old secret works until {old_ends}."
    show_once(minted, as_json, told, old_expires_at=old_ends)


@keys.command("limit")
def limit_command(
    key: Named,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_calls: Calls = None,
    default: Annotated[
        bool, typer.Option("--default", help="The settings' limits where none is given.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Change how much a key may do, heard everywhere within a second.

    Example: fleet keys limit 3f9a0c21 --requests-per-minute 600 --default
    """
    del yes  # a limit is as easily set back
    wished = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_calls": concurrent_calls,
    }
    limits = {name: limit for name, limit in wished.items() if default or limit is not None}
    if not limits:
        fail("Nothing was done: name a limit, or --default.")

    async def change(session: AsyncSession, found: Key) -> None:
        await limit_key(session, found, limits, this_operator())

    row, _ = run(acted(key, change))
    say_json(key_json(row)) if as_json else say(f"The key {row.id} has new limits.")


@keys.command("revoke")
def revoke_command(
    key: Named, reason: Reason = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """End a key with all its secrets at once, everywhere within a second.

    Example: fleet keys revoke 3f9a0c21 --reason leaked
    """
    ask_first(f"Revoke the key {key}? Its calls are refused from now on.", yes)

    async def end(session: AsyncSession, found: Key) -> bool:
        return await revoke_key(session, found, reason, this_operator())

    row, changed = run(acted(key, end))
    if as_json:
        say_json({**key_json(row), "changed": changed})
    else:
        say(f"The key {row.id} {'is' if changed else 'was already'} revoked.")


async def created(wish: Wish) -> Minted:
    async with stores() as opened, opened.db.everyone() as session:
        if await session.get(TenantRow, wish.tenant_id) is None:
            fail("There is no such tenant.")
        for agent_id in (wish.agent_id, wish.default_agent_id):
            agent = await session.get(AgentRow, agent_id) if agent_id is not None else None
            if agent_id is not None and (agent is None or agent.tenant_id != wish.tenant_id):
                fail("The tenant has no such agent.")
        minted = await create_key(session, wish, this_operator())
        await session.commit()
        return minted


async def listed(tenant_id: UUID | None, everything: bool) -> list[Key]:
    async with stores() as opened, opened.db.everyone() as session:
        return await list_keys(session, tenant_id, everything=everything)


async def rotated(named: str, overlap: timedelta) -> tuple[Minted, str]:
    async def replace(session: AsyncSession, found: Key) -> Minted | None:
        try:
            return await rotate_key(session, found, overlap, this_operator())
        except TooManySecrets as error:
            fail(str(error))

    key, minted = await acted(named, replace)
    if minted is None:
        fail("The key does not work any more: make a new one with `fleet keys create`.")
    ends_at = key.newest.expires_at
    assert ends_at is not None
    return minted, ends_at.isoformat()


async def acted(named: str, act: Callable[[AsyncSession, Key], Awaitable[T]]) -> tuple[Key, T]:
    """Do something to a key, then have every process ask for it anew."""
    async with stores() as opened:
        async with opened.db.everyone() as session:
            try:
                key = await find_key(session, named)
            except KeyNotFound as error:
                fail(str(error))
            done = await act(session, key)
            await session.commit()
        await tell(opened, key)
        return key, done


async def tell(opened: Stores, key: Key) -> None:
    try:
        await tell_key_changed(opened.redis, key)
    except (RedisError, OSError) as error:
        say_unheard(error)


def show_once(minted: Minted, as_json: bool, told: str, **more: Any) -> None:
    if as_json:
        secret = {"api_key": minted.api_key, "id": minted.row.key_id, "secret_id": minted.row.id}
        say_json({**secret, **more})
        return
    say(minted.api_key)
    say(told)


def row_of(key: Mapping[str, Any]) -> Sequence[str]:
    """A key, as `key_json` tells it, as a row under `HEADINGS`."""
    moments = (key["created_at"], key["expires_at"], key["last_used_at"])
    return (
        *(key["id"], key["hash"], key["tenant_id"]),
        key["agent_id"] or key["default_agent_id"] or "",
        " ".join(key["scopes"]),
        key["label"] or "",
        limits_in_words(key["limits"]),
        *((moment or "")[:19] for moment in moments),
    )


def limits_in_words(limits: Mapping[str, int | None]) -> str:
    """`60 req/min, 20 at once`: a key's own limits, of which 0 is none; nothing for those that
    are the settings'."""
    told = ((limits[name], unit) for name, unit in LIMITS.items())
    return ", ".join(f"{limit or 'unlimited'} {unit}" for limit, unit in told if limit is not None)


def key_json(key: Key) -> dict[str, Any]:
    """A key as operators see it; the hash is cut short, and tells nothing of the secret."""
    row = key.newest
    return {
        "id": str(key.id),
        "hash": row.key_hash.hex()[:SHOWN_PREFIX],
        "tenant_id": str(row.tenant_id),
        "agent_id": row.agent_id and str(row.agent_id),
        "default_agent_id": row.default_agent_id and str(row.default_agent_id),
        "label": row.label,
        "scopes": in_order(row.scopes),
        "limits": {
            "requests_per_minute": row.requests_per_minute,
            "tokens_per_minute": row.tokens_per_minute,
            "concurrent_calls": row.concurrent_calls,
        },
        "created_at": key.secrets[0].created_at.isoformat(),
        "expires_at": row.expires_at and row.expires_at.isoformat(),
        "revoked_at": row.revoked_at and row.revoked_at.isoformat(),
        "last_used_at": key.last_used_at and key.last_used_at.isoformat(),
        "secrets": [
            {
                "id": str(each.id),
                "hash": each.key_hash.hex()[:SHOWN_PREFIX],
                "expires_at": each.expires_at and each.expires_at.isoformat(),
                "last_used_at": each.last_used_at and each.last_used_at.isoformat(),
            }
            for each in key.secrets
        ],
    }
