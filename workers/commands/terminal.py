"""What the operators' commands have in common: stores, questions, moments, and how to fail."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from shared.config import Settings, SettingsError, StartError, read_settings
from shared.control import give_order
from shared.db import TRANSIENT, Database
from shared.operators import record_act
from shared.preflight import EXAMPLES, check_stores, refusal
from shared.valkey import open_valkey
from workers.development import SECRETS, STORES, running_environment

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, on standard output.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def given_reason(written: str) -> str:
    """What an operator gives as a reason. Raises `typer.BadParameter` where it is none."""
    if not written.strip():
        raise typer.BadParameter("Say why; it is written down.")
    return written


NeededReason = Annotated[
    str, typer.Option("--reason", callback=given_reason, help="Why; it is written down.")
]
Reason = Annotated[str, typer.Option(help="Why; it is written down.")]

# wider than any row of ours
WIDEST = 10_000
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Stores:
    settings: Settings
    db: Database
    redis: Redis


def fleet_settings(*needed: str) -> Settings:
    """The environment's settings; where it names no stores, those of the `fleet up` here.

    Raises `SettingsError` where neither names the stores that are `needed`.
    """
    settings = read_settings()
    if not (settings.database_url and settings.redis_url):
        running: dict[str, Any] = {**running_environment(settings.fleet_home)}
        unset = {name: value for name, value in running.items() if not os.environ.get(name)}
        settings = Settings(**unset)
    for name in needed:
        if not getattr(settings, name.lower()):
            raise unnamed(name, settings.fleet_home)
    return settings


async def note_act(act: str, target: str, **detail: Any) -> None:
    """Write an act down that was done without Postgres; where it is away, say so."""
    settings = fleet_settings()
    if not settings.database_url:
        sys.stderr.write("This was not written down: DATABASE_URL is not set.\n")
        return
    db = Database(settings)
    try:
        async with db.everyone() as session:
            await record_act(session, act, target, **detail)
            await session.commit()
    except (SQLAlchemyError, *TRANSIENT) as error:
        sys.stderr.write(f"This was not written down: {type(error).__name__}: {error}\n")
    finally:
        await db.aclose()


@asynccontextmanager
async def stores() -> AsyncIterator[Stores]:
    """The fleet's stores, as the environment names them, for as long as a command runs.

    Raises `StartError` where they are not named, or do not answer.
    """
    settings = fleet_settings(*STORES)
    await check_stores(settings)
    db, redis = Database(settings), open_valkey(settings.redis_url)
    try:
        yield Stores(settings, db, redis)
    finally:
        await redis.aclose()
        await db.aclose()


def unnamed(name: str, home: Path) -> SettingsError:
    """Why a store has no name: its fleet is not running, or nobody said which fleet is meant."""
    if (home / SECRETS).exists():
        return SettingsError(
            f"The fleet of {home} is not running; start it with `make up`. (Nor is {name} set.)"
        )
    return SettingsError(
        f"No fleet is known here: {name} is not set. Set it (it looks like {EXAMPLES[name]}), or "
        f"FLEET_HOME to the home of a fleet that runs on this machine (now {home})."
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do a command's work; a store that is away, or that refuses, is told in one line."""
    try:
        return asyncio.run(work)
    except StartError as error:
        raise typer.Exit(refusal(error)) from None
    except (SQLAlchemyError, RedisError, *TRANSIENT) as error:
        fail(f"The fleet's stores cannot be used: {type(error).__name__}: {error}")


async def announce(open_stores: Stores, kind: str, **fields: Any) -> None:
    """Tell every process what was done; those that cannot hear it now look it up later."""
    await tell(give_order(open_stores.redis, kind, **fields))


async def tell(telling: Awaitable[None]) -> None:
    """As `announce`, for what has words of its own."""
    try:
        await telling
    except (RedisError, OSError) as error:
        say_unheard(error)


def say_unheard(error: Exception) -> None:
    """What was done stands; who could not be told of it looks it up."""
    sys.stderr.write(
        f"Valkey cannot be reached ({type(error).__name__}): processes hear of it once they"
        " can reach it again.\n"
    )


def ask_first(question: str, yes: bool) -> None:
    """Exits unless the operator agrees, or has said so beforehand."""
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:  # the input ended, which it does at once where there is no terminal
        fail("\nNothing was done: nobody answered. Where nobody can, use --yes.")
    if not agreed:
        fail("Nothing was done.")


def show_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table where it fits; on a screen that is too narrow, a block of lines for each row.

    Through a pipe a row is always one line. Nothing is ever cut or broken, since ids are there to
    be pasted; nor is what clients wrote taken for markup.
    """
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ignore")
    told = [list(row) for row in rows]
    for row in told:
        table.add_row(*map(Text, row))
    screen = Console(highlight=False)
    if not screen.is_terminal or natural_width(screen, table) <= screen.width:
        show_whole(table)
        return
    longest = max(map(len, headings))
    for row in told:
        for heading, cell in zip(headings, row, strict=True):
            if cell:
                screen.print(Text(f"{heading:{longest}}  {cell}"), soft_wrap=True)
        screen.print()


def show_whole(what: RenderableType) -> None:
    """Print it as wide as it is, whatever the screen: that breaks lines, and copies them whole."""
    screen = Console(highlight=False)
    width = max(screen.width, natural_width(screen, what))
    Console(width=width, highlight=False).print(what, soft_wrap=isinstance(what, Text))


def natural_width(screen: Console, what: RenderableType) -> int:
    return Measurement.get(screen, screen.options.update(max_width=WIDEST), what).maximum


def say_json(value: Any) -> None:
    told = orjson.dumps(value, option=orjson.OPT_INDENT_2, default=_as_text)
    sys.stdout.write(told.decode() + "\n")


def _as_text(value: Any) -> str:
    """Amounts as plain digits: nobody reads `0E-9`."""
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def fail(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(1)


def duration(written: str) -> timedelta:
    """`90s`, `30m`, `24h` or `7d`. Raises `typer.BadParameter`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", written.strip())
    if match is None:
        raise typer.BadParameter(f"{written!r} is no duration; write 30m, 24h or 7d.")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        raise typer.BadParameter(f"{written!r} is too long.") from None


def moment_ago(written: str) -> datetime:
    """A moment in ISO 8601 (UTC unless it says otherwise), or how long ago it was: `2h`, `7d`.

    Raises `typer.BadParameter`.
    """
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return datetime.now(UTC) - duration(written)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
