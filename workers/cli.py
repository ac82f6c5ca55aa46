"""The `fleet` command: everything an operator or a developer does by hand."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated

import httpx
import typer

import migrations
from shared.catalog import seed_catalog
from shared.config import VERSION, SettingsError, StartError, read_settings
from shared.domain.counting import counted
from shared.fleet import list_workers
from shared.preflight import check_postgres, check_valkey, refusal
from shared.valkey import open_valkey
from workers.commands import operating
from workers.commands.audit import audit
from workers.commands.caps import caps
from workers.commands.catalog import catalog
from workers.commands.corrections import corrections
from workers.commands.dead_letters import dead_letters
from workers.commands.keys import keys
from workers.commands.killswitch import killswitch
from workers.commands.learning import learning
from workers.commands.ledger import ledger
from workers.commands.policy import policy
from workers.commands.receipts import receipt
from workers.commands.terminal import fail, fleet_settings
from workers.development import new_secrets, say, up

COMPOSE_PASSWORDS = tuple(
    f"{name}_PASSWORD" for name in ("POSTGRES", "OWNER", "APP", "CALLER", "REDIS")
)

main = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The Ainfera fleet.\n\n"
    "To try it: `fleet up` (or `make up`) brings everything up on this machine and says how to"
    " call it.\n\n"
    "To run it elsewhere: `fleet secrets` once, `fleet migrate` and `fleet seed` at each release,"
    " then the processes of the Procfile. What can be set is read from the environment; README.md"
    " lists it.\n\n"
    "To see and drive one that runs: `fleet status`, `workers`, `drain`, `resume`, `jobs`.",
)

main.add_typer(operating.app)
main.add_typer(audit, name="audit")
main.add_typer(dead_letters, name="dead-letters")
main.add_typer(caps, name="caps")
main.add_typer(catalog, name="catalog")
main.add_typer(corrections, name="corrections")
main.add_typer(keys, name="keys")
main.add_typer(killswitch, name="killswitch")
main.add_typer(learning, name="learning")
main.add_typer(ledger, name="ledger")
main.add_typer(policy, name="policy")
main.add_typer(receipt, name="receipt")


def tell_version(wanted: bool) -> None:
    if wanted:
        say(VERSION)
        raise typer.Exit()


@main.callback()
def before_all(
    version: Annotated[
        bool,
        typer.Option("--version", callback=tell_version, is_eager=True, help="Which one this is."),
    ] = False,
) -> None:
    """Options of the command itself."""


@main.command("up")
def up_command() -> None:
    """Run a whole fleet here: servers, schema, catalogue, processes, a development agent.

    State is kept in FLEET_HOME (default .fleet), so that the next start finds it again.
    DATABASE_URL and REDIS_URL, where set, are used instead of servers of its own.
    A process that crashes is started again, up to five times in a row.
    Ctrl-C or SIGTERM stops all of it, in order; a second one stops it at once.

    Example: PORT=8081 INFERENCE_WORKERS=2 fleet up
    """
    raise typer.Exit(up())


class Worker(StrEnum):
    INFERENCE = "inference"
    BOOKS = "books"


class Process(StrEnum):
    WEB = "web"
    INFERENCE = "inference"
    BOOKS = "books"


@main.command()
def work(kind: Annotated[Worker, typer.Argument(help="Which worker to run.")]) -> None:
    """Run one worker in the foreground, as the Procfile does.

    Example: fleet work inference
    """
    os.execv(sys.executable, [sys.executable, "-m", "workers", kind])


@main.command()
def migrate(
    revision: Annotated[str, typer.Argument(help="Where to.")] = "head",
    down: Annotated[bool, typer.Option("--down", help="Go back to REVISION instead.")] = False,
) -> None:
    """Bring the database's schema to a revision, the newest by default.

    Uses MIGRATION_DATABASE_URL (a role that owns the schema), else DATABASE_URL.

    Example: MIGRATION_DATABASE_URL=postgresql://owner@db/ainfera fleet migrate
    """
    change = migrations.downgrade if down else migrations.upgrade
    with told():
        change(owner_url(), revision)
    say(f"The schema is at {revision}.")


@main.command()
def seed() -> None:
    """Write the reviewed catalogue of models into the database; safe to repeat.

    Uses MIGRATION_DATABASE_URL, else DATABASE_URL.
    """
    with told():
        seeded = asyncio.run(seed_catalog(owner_url()))
    say(f"The catalogue has {counted(len(seeded.candidates), 'model')}.")


@main.command()
def secrets(
    compose: Annotated[
        bool, typer.Option("--compose", help="Also the passwords that compose.yaml asks for.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="A new file for them, which only you can read.")
    ] = None,
) -> None:
    """Print fresh keys to put into the environment of every process.

    The master key seals what is stored encrypted: lose it, and that is lost.

    Example: fleet secrets --compose --write .env
    """
    values = new_secrets()
    if compose:
        values |= {name: token_urlsafe(24) for name in COMPOSE_PASSWORDS}
    lines = [f"{name}={value}\n" for name, value in values.items()]
    if write is None:
        sys.stdout.write("".join(lines))
        return
    try:  # never over a file that is there: it may hold the only copy of a master key
        with os.fdopen(os.open(write, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(lines)
    except OSError as error:
        fail(f"{write} was not written: {error.strerror}.")


@main.command()
def health(
    process: Annotated[Process, typer.Argument(help="Which process.")],
) -> None:
    """Exit 0 if a process is well, for a container's health check.

    The ingress is asked at /ready; a worker has to have said lately that it is there.

    Example: fleet health inference
    """
    with told():
        settings = fleet_settings()
        if process is Process.WEB:
            ask_ready(f"{settings.local_url}/ready")
        else:
            if not asyncio.run(spoke_lately(settings.redis_url, process)):
                fail(f"{process} is not well: no such worker has lately said that it is there.")


@main.command()
def signup(
    handle: Annotated[str, typer.Argument(help="The agent's handle.")],
    owner: Annotated[str | None, typer.Option(help="The owner's handle.")] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="AINFERA_BASE_URL", help="Where the fleet is; else by HOST and PORT."),
    ] = None,
    internal_key: Annotated[
        str, typer.Option(envvar="AINFERA_INTERNAL_KEY", help="Where signup is not open.")
    ] = "",
) -> None:
    """Sign an agent up and print the answer; its API key is shown this once.

    Example: fleet signup my-agent --owner me
    """
    with told():
        url = (url or fleet_settings().local_url).rstrip("/")
    body = {"agent_handle": handle} | ({"owner_handle": owner} if owner else {})
    headers = {"X-Ainfera-Internal-Key": internal_key} if internal_key else {}
    try:
        answer = httpx.post(f"{url}/v1/agents/signup", json=body, headers=headers)
    except httpx.TransportError as error:
        fail(f"No fleet answers at {url}: {error}")
    if answer.is_error:
        fail(f"Signup was refused: {answer.status_code} {answer.text}")
    say(json.dumps(answer.json(), indent=2))


def ask_ready(url: str) -> None:
    """Returns if the ingress at the address can take calls; exits with what it said if not."""
    try:
        answer = httpx.get(url, trust_env=False)
    except httpx.TransportError as error:
        fail(f"web is not well: {url} was asked: {error}")
    if not answer.is_success:
        fail(f"web is not well: {url} answered {answer.status_code} {answer.text}")


async def spoke_lately(redis_url: str, kind: str) -> bool:
    """Whether a worker of this kind on this host said lately that it is there.

    Raises `SettingsError` or `Unreachable`.
    """
    await check_valkey(redis_url)
    async with open_valkey(redis_url) as client:
        alive = await list_workers(client)
    return any(each.kind == kind and each.host == socket.gethostname() for each in alive)


def owner_url() -> str:
    """The database as the role that owns its schema, which answers.

    Raises `SettingsError` or `Unreachable`.
    """
    settings = read_settings()
    url = settings.migration_database_url or settings.database_url
    if not url:
        raise SettingsError(
            "Set MIGRATION_DATABASE_URL or DATABASE_URL. (`fleet up` sees to its own database.)"
        )
    name = "MIGRATION_DATABASE_URL" if settings.migration_database_url else "DATABASE_URL"
    asyncio.run(check_postgres(name, url))
    return url


@contextmanager
def told() -> Iterator[None]:
    """What keeps a command from its work is told in a line; the exit code is the error's."""
    try:
        yield
    except StartError as error:
        raise typer.Exit(refusal(error)) from None


if __name__ == "__main__":
    main()
