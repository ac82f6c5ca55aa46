"""`fleet dead-letters`: look at calls that could not be finished, run them again, or end them."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import Progress

from shared.dead_letters import (
    LetterFilter,
    close_letter,
    find_letters,
    read_letter,
    reveal_request,
)
from shared.domain.attempts import LetterState
from shared.domain.counting import counted
from shared.kept import KeptCalls
from shared.keys import SealBroken, request_sealer
from shared.operators import this_operator
from shared.queue import InferenceQueue
from shared.replays import ReplayRefusal, enqueue_replay, order_replay
from workers.commands.terminal import (
    AsJson,
    Stores,
    Yes,
    ask_first,
    fail,
    moment_ago,
    run,
    say_json,
    show_rows,
    stores,
)
from workers.development import say

dead_letters = typer.Typer(
    no_args_is_help=True,
    help="Calls that could not be finished: look at them, run them again, or end them.",
)

Ids = Annotated[list[UUID] | None, typer.Argument(help="Ids of inferences.")]
All = Annotated[bool, typer.Option("--all", help="Every letter that waits.")]
Tenant = Annotated[UUID | None, typer.Option(help="Only this tenant's.")]
Since = Annotated[
    datetime | None,
    typer.Option(parser=moment_ago, metavar="MOMENT", help="Dead since: 2h, 7d, or a date."),
]
Code = Annotated[str | None, typer.Option(help="Only with this error code.")]
Model = Annotated[str | None, typer.Option(help="Only for this model or routing target.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many, the oldest first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say which.")]

SHOWN_AT_MOST = 50
NOT_QUEUED = "ordered; not queued yet"
PAST = {"discard": "discarded", "replay": "replayed"}
WHY_NOT: Mapping[str, str] = {
    ReplayRefusal.UNKNOWN: "there is no such dead letter",
    ReplayRefusal.NOT_DEAD: "it does not wait any more",
    ReplayRefusal.UNREADABLE: "its request cannot be read",
    ReplayRefusal.WORN_OUT: "it was tried too often already",
}

Act = Callable[[Stores, UUID], Awaitable[str | None]]


@dataclass(slots=True)
class Report:
    """What became of each letter; `not_done` says why not."""

    matched: int
    done: list[str] = field(default_factory=list)
    not_done: dict[str, str] = field(default_factory=dict)


@dead_letters.command("list")
def list_command(
    tenant: Tenant = None,
    since: Since = None,
    code: Code = None,
    model: Model = None,
    state: Annotated[LetterState, typer.Option(help="What has become of them.")] = LetterState.DEAD,
    limit: Limit = SHOWN_AT_MOST,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the oldest first; never what they carry.

    Example: fleet dead-letters list --since 24h --code worker_lost
    """
    found = run(matching(LetterFilter(state, tenant, since, code, model), limit))
    if as_json:
        say_json(found)
    else:
        show_table(found)


@dead_letters.command("show")
def show_command(
    inference_id: UUID,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Print the client's request; that is written down.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its error, its attempts, what became of it.

    Example: fleet dead-letters show 0199…
    """
    if reveal:
        ask_first("Print what the client sent? It is written down that you did.", yes)
        sys.stdout.buffer.write(run(revealed(inference_id)) + b"\n")
        return
    letter = run(one_letter(inference_id))
    if as_json:
        say_json(letter)
        return
    for name, value in letter.items():
        say(f"{name:14} {value}")


@dead_letters.command("replay")
def replay_command(
    ids: Ids = None,
    everything: All = False,
    tenant: Tenant = None,
    since: Since = None,
    code: Code = None,
    model: Model = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Run calls again, each under its own id and with one charge at most.

    Example: fleet dead-letters replay --since 24h --code worker_lost --dry-run
    """
    wanted = LetterFilter(LetterState.DEAD, tenant, since, code, model)
    meant = run(chosen(ids or [], everything, wanted, limit))
    in_bulk("replay", replay, meant, dry_run, yes, as_json)


@dead_letters.command("discard")
def discard_command(
    ids: Ids = None,
    everything: All = False,
    tenant: Tenant = None,
    since: Since = None,
    code: Code = None,
    model: Model = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """End calls for good: nothing is charged, and what they carried is deleted.

    Example: fleet dead-letters discard 0199… --yes
    """
    wanted = LetterFilter(LetterState.DEAD, tenant, since, code, model)
    meant = run(chosen(ids or [], everything, wanted, limit))
    in_bulk("discard", discard, meant, dry_run, yes, as_json)


async def matching(wanted: LetterFilter, limit: int | None) -> list[dict[str, Any]]:
    async with stores() as opened, opened.db.everyone() as session:
        return await find_letters(session, wanted, limit)


async def one_letter(inference_id: UUID) -> dict[str, Any]:
    async with stores() as opened, opened.db.everyone() as session:
        letter = await read_letter(session, inference_id)
    return letter if letter is not None else fail(f"There is no dead letter {inference_id}.")


async def revealed(inference_id: UUID) -> bytes:
    """The client's request. Exits where it is gone or cannot be opened."""
    async with stores() as opened, opened.db.everyone() as session:
        sealer = request_sealer(opened.settings.master_key.get_secret_value())
        try:
            body = await reveal_request(session, sealer, inference_id, this_operator())
        except (SealBroken, ValueError) as error:
            fail(f"The request cannot be read: {error}.")
        await session.commit()
    return body if body is not None else fail(f"There is no request left of {inference_id}.")


async def chosen(
    ids: Sequence[UUID], everything: bool, wanted: LetterFilter, limit: int | None
) -> list[str]:
    """The ids that are meant; exits where nobody can be sure what is."""
    filtered = wanted != LetterFilter() or limit is not None
    if ids and (filtered or everything):
        fail("Give ids, or filters, not both.")
    if not ids and not filtered and not everything:
        fail("Give ids, filters, or --all.")
    if ids:
        return [str(each) for each in ids]
    return [letter["inference_id"] for letter in await matching(wanted, limit)]


def in_bulk(name: str, act: Act, meant: list[str], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Do it to each letter, in a transaction of its own; the exit code is 1 if some were not."""
    report = Report(len(meant))
    if not dry_run and meant:
        ask_first(f"{name} {counted(len(meant), 'dead letter')}?", yes)
        run(do_all(name, act, meant, report, quiet=as_json))
    if as_json:
        done = {"act": name, "dry_run": dry_run, "matched": report.matched, "ids": meant}
        say_json({**done, "done": report.done, "not_done": report.not_done})
    elif dry_run:
        for each in meant:
            say(each)
        say(f"{counted(len(meant), 'dead letter')} would be affected ({name}).")
    elif len(meant) == 1 and report.not_done:
        fail(_not_done(name, *report.not_done.popitem()))
    else:
        for each, reason in report.not_done.items():
            say(_not_done(name, each, reason))
        say(f"{name}: {len(report.done)} of {report.matched} done.")
    if report.not_done:
        raise typer.Exit(1)


def _not_done(name: str, inference_id: str, reason: str) -> str:
    return f"{inference_id} was not {PAST[name]}: {WHY_NOT.get(reason, reason)}."


async def do_all(name: str, act: Act, meant: list[str], report: Report, *, quiet: bool) -> None:
    with Progress(console=Console(stderr=True), disable=quiet or len(meant) == 1) as progress:
        async with stores() as opened:
            for each in progress.track(meant, description=name):
                reason = await act(opened, UUID(each))
                if reason is None:
                    report.done.append(each)
                else:
                    report.not_done[each] = reason


async def replay(opened: Stores, inference_id: UUID) -> str | None:
    """Order a replay, then queue it; why not, if not."""
    sealer = request_sealer(opened.settings.master_key.get_secret_value())
    async with opened.db.everyone() as session:
        ordered = await order_replay(session, sealer, inference_id, this_operator())
        if isinstance(ordered, ReplayRefusal):
            return ordered.value
        await session.commit()
    try:
        await enqueue_replay(InferenceQueue(opened.redis), ordered)
    except (RedisError, OSError):
        return NOT_QUEUED
    return None


async def discard(opened: Stores, inference_id: UUID) -> str | None:
    """End one call; why not, if not."""
    async with opened.db.everyone() as session:
        kept = KeptCalls(opened.db, opened.settings)
        closed = await close_letter(
            session, kept, inference_id, LetterState.DISCARDED, this_operator()
        )
        await session.commit()
        if closed:
            return None
        there = await read_letter(session, inference_id)
    return (ReplayRefusal.NOT_DEAD if there is not None else ReplayRefusal.UNKNOWN).value


def show_table(found: list[dict[str, Any]]) -> None:
    headings = ("inference", "tenant", "model", "error", "attempts", "state", "died", "expires")
    rows = [
        (
            letter["inference_id"],
            letter["tenant_id"] or "unknown",
            letter["model"],
            letter["error_code"],
            str(letter["attempts"]),
            letter["state"],
            letter["died_at"][:19],
            letter["expires_at"][:19],
        )
        for letter in found
    ]
    show_rows(headings, rows)
    say(f"{counted(len(found), 'dead letter')}.")
