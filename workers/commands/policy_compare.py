"""`fleet policy compare` and the dry run of a publication: what would change, and at what cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from shared.domain.policy_change import Change
from shared.domain.policy_version import PolicyVersion
from shared.domain.spreadsheet import csv_line
from shared.policies import active_version, known_versions
from workers.commands.terminal import AsJson, fail, moment_ago, run, say_json, stores
from workers.development import say
from workers.policy_source import find_version
from workers.policy_traffic import Compared, Traffic, compare

Since = Annotated[str, typer.Option(help="Calls begun since: 24h, 7d, or a moment (UTC).")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many, the newest.")]
Csv = Annotated[Path | None, typer.Option(help="A new file for each call that would change.")]

CSV_HEADER = (
    *("inference_id", "task_type", "from", "to", "floor_before", "floor_after"),
    *("projected_usd_before", "projected_usd_after"),
)


def compare_command(
    before: Annotated[str, typer.Argument(metavar="A", help="A known version, or a document.")],
    after: Annotated[str, typer.Argument(metavar="B", help="A known version, or a document.")],
    since: Since = "7d",
    limit: Limit = 10_000,
    tenant: Annotated[UUID | None, typer.Option(help="The calls of one tenant only.")] = None,
    csv: Csv = None,
    as_json: AsJson = False,
) -> None:
    """Run the rule again on recorded calls under A and under B, and say what differs.

    All routed calls count, whatever version their tenants name. Costs are projected, not billed.

    Example: fleet policy compare flat-1 task-floors-1 --since 24h --csv changes.csv
    """
    traffic = Traffic(moment_ago(since), limit, tenant)
    say_comparison(run(compared(before, after, traffic, csv)), as_json)


async def compared(before: str, after: str, traffic: Traffic, csv: Path | None) -> dict[str, Any]:
    async with stores() as opened:
        async with opened.db.everyone() as session:
            first = await find_version(session, before)
            second = await find_version(session, after)
        with rows_of(csv) as each:
            found = await compare(opened.db, first, second, traffic, each)
    return _report(first, second, traffic.since, found)


async def trial(source: str, since: str, limit: int, csv: Path | None) -> dict[str, Any]:
    """What publishing `source` would change, for the tenants that follow the active version."""
    async with stores() as opened:
        async with opened.db.everyone() as session:
            known = await known_versions(session)
            first = known[await active_version(session)]
            second = await find_version(session, source)
        traffic = Traffic(moment_ago(since), limit, following=frozenset(known))
        with rows_of(csv) as each:
            found = await compare(opened.db, first, second, traffic, each)
    return _report(first, second, traffic.since, found)


@contextmanager
def rows_of(path: Path | None) -> Iterator[Callable[[Change], None]]:
    """Writes each change as a line of a new file, if one is wanted; none that is there is lost."""
    if path is None:
        yield lambda change: None
        return
    try:
        file = path.open("x", encoding="utf-8", newline="")
    except OSError as error:
        fail(f"{path} was not written: {error.strerror}.")
    with file:
        file.write(csv_line(CSV_HEADER))
        yield lambda change: _write(file, change)


def _write(file: Any, change: Change) -> None:
    told = change.to_json()
    file.write(csv_line([told[name] for name in CSV_HEADER]))


def _report(
    before: PolicyVersion, after: PolicyVersion, since: datetime, found: Compared
) -> dict[str, Any]:
    versions = {"before": before.version, "after": after.version, "since": since.isoformat()}
    notes = []
    if found.snapshot:
        notes.append(
            f"{found.filled} calls had no learnt qualities recorded; theirs are those of snapshot"
            f" {found.snapshot}, the newest"
        )
    elif found.snapshot is not None:
        notes.append("nothing has been learnt of qualities yet, so the catalogue's count")
    if after.exploration_share:
        notes.append(
            "exploration is drawn from the calls' seeds; caps and funds of agents, which may put"
            " the rule's own choice in its place, are not looked at"
        )
    if found.other_ruleset:
        notes.append(
            "some calls were decided by another ruleset; both versions were run on today's"
        )
    return {**versions, **found.to_json(), "notes": notes}


def say_comparison(found: dict[str, Any], as_json: bool) -> None:
    """The report as JSON, or in words."""
    if as_json:
        say_json(found)
        return
    left = found["left_out"]
    say(f"{found['before']} → {found['after']}, calls since {found['since']}")
    say(_told_tally(found))
    for task, tally in found["by_task_type"].items():
        say(f"  {task}: {_told_tally(tally)}")
    for move in found["moves"]:
        say(f"  {move['from']} → {move['to']}: {move['calls']}")
    for each in found["examples"]:
        floors = f"floor {each['floor_before']} → {each['floor_after']}"
        say(f"  e.g. {each['inference_id']} {each['from']} → {each['to']}, {floors}")
    if any(left.values()):
        own, undocumented = left["own_version"], left["undocumented"]
        say(f"Left out: {own} of tenants with a version of their own, {undocumented} undocumented.")
    for note in found["notes"]:
        say(f"Note: {note}.")


def _told_tally(tally: dict[str, Any]) -> str:
    usd = tally["projected_usd"]
    percent = "" if usd["percent"] is None else f" ({usd['percent']} %)"
    return (
        f"{tally['changed']} of {tally['calls']} decisions change,"
        f" {tally['refused']} would be refused, {tally['answered']} no longer;"
        f" projected {usd['before']} → {usd['after']} USD{percent}"
    )
