"""`fleet policy`: versions of the routing policy, which of them is active, and the way back."""

from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.domain.candidate import decimal_text
from shared.domain.policy_file import PolicyError, parse_policy, write_policy
from shared.domain.policy_version import PolicyVersion
from shared.operators import this_operator
from shared.policies import (
    PolicyPublicationRow,
    PolicyRefused,
    PolicyVersionRow,
    Published,
    known_versions,
    publications,
    publish,
    rollback,
    store_version,
    tell_policies_changed,
)
from workers.commands.policy_compare import (
    Csv,
    Limit,
    Since,
    compare_command,
    say_comparison,
    trial,
)
from workers.commands.policy_preference import preference
from workers.commands.terminal import (
    AsJson,
    Reason,
    Yes,
    ask_first,
    fail,
    run,
    say_json,
    stores,
    tell,
)
from workers.development import say
from workers.policy_source import read_file, wanted_version

policy = typer.Typer(no_args_is_help=True, help="The routing policy: versions, publication, trial.")
policy.add_typer(preference, name="preference")
policy.command("compare")(compare_command)

_NAMED = text(
    "SELECT policy ->> 'policy_version' AS version, count(*) AS tenants FROM tenants GROUP BY 1"
)

File = Annotated[Path, typer.Argument(help="A version as a TOML document.")]


@policy.command("list")
def list_command(as_json: AsJson = False) -> None:
    """Say which versions there are, which one is active, and the history of that."""
    found = run(listed())
    if as_json:
        say_json(found)
        return
    for each in found["versions"]:
        mark = "*" if each["active"] else " "
        floors = ", ".join(f"{task} {floor}" for task, floor in each["floors"].items())
        say(f"{mark} {each['version']}: {each['description']} Floors: {floors or 'none'}.")
        say(f"    {each['tenants']} tenants name it; {each['created_at']} by {each['created_by']}")
    for turn in found["publications"]:
        say(_told_turn(turn))


@policy.command("show")
def show_command(
    version: Annotated[str | None, typer.Argument(help="Which one; else the active one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a version as a document that can be changed, named anew and published."""
    found = run(shown(version))
    if as_json:
        say_json(found)
        return
    say(write_policy(PolicyVersion.from_json(found["document"])).rstrip())
    for turn in found["publications"]:
        say(f"# {_told_turn(turn)}")


@policy.command("validate")
def validate_command(file: File, as_json: AsJson = False) -> None:
    """Check a document; what is wrong is told with its line and field. Asks no store."""
    problems: list[str] = []
    try:
        checked = parse_policy(read_file(file))
    except PolicyError as error:
        problems = error.problems
    if as_json:
        say_json({"valid": not problems, "problems": problems})
    for problem in [] if as_json else problems:
        say(f"{file}: {problem}")
    if problems:
        raise typer.Exit(1)
    if not as_json:
        say(f"{checked.version} can be published; its hash is {checked.hash}.")


@policy.command("publish")
def publish_command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A document, or a known version.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say which decisions would change.")
    ] = False,
    since: Since = "7d",
    limit: Limit = 10_000,
    csv: Csv = None,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the default of all tenants that name none; every process hears it at once.

    With --dry-run the rule is run again on recorded calls of those tenants.

    Example: fleet policy publish careful.toml --dry-run --since 7d
    """
    if dry_run:
        say_comparison(run(trial(source, since, limit, csv)), as_json)
        return
    version = run(wanted_version(source))
    ask_first(_question(version), yes)
    done = run(published(version, reason))
    _say_done(done, as_json)


@policy.command("rollback")
def rollback_command(
    version: Annotated[
        str | None, typer.Argument(help="One that was active; else the one before.")
    ] = None,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version the default again. It is written down like a publication.

    Without VERSION it takes the newest one off; done again, the one under it.

    Example: fleet policy rollback --reason "too dear"
    """
    ask_first(f"Go back to {version or 'the version before'}?", yes)
    _say_done(run(rolled_back(version, reason)), as_json)


async def listed() -> dict[str, Any]:
    async with stores() as opened, opened.db.everyone() as session:
        known, history = await known_versions(session), await publications(session)
        rows = [await session.get_one(PolicyVersionRow, name) for name in known]
        named = {row.version: row.tenants for row in await session.execute(_NAMED)}
    active = history[-1].version
    return {
        "active": active,
        "versions": [
            {
                **row.document,
                "active": row.version == active,
                "hash": row.document_hash,
                "tenants": named.get(row.version, 0),
                "created_at": row.created_at.isoformat(),
                "created_by": row.created_by,
            }
            for row in rows
        ],
        "publications": [_turn(row) for row in history],
    }


async def shown(version: str | None) -> dict[str, Any]:
    async with stores() as opened, opened.db.everyone() as session:
        history = await publications(session)
        name = version or history[-1].version
        row = await session.get(PolicyVersionRow, name)
    if row is None:
        fail(f"There is no version {name}; `fleet policy list` has them.")
    turns = [_turn(each) for each in history if each.version == name]
    active = history[-1].version == name
    return {"active": active, "document": row.document, "publications": turns}


async def published(version: PolicyVersion, reason: str) -> Published:
    async def act(session: AsyncSession) -> Published:
        await store_version(session, version, this_operator())
        return await publish(session, version.version, reason, this_operator())

    return await _changed(act)


async def rolled_back(version: str | None, reason: str) -> Published:
    return await _changed(lambda session: rollback(session, version, reason, this_operator()))


async def _changed(act: Any) -> Published:
    """Write it down, then tell every process."""
    async with stores() as opened:
        async with opened.db.everyone() as session:
            try:
                done: Published = await act(session)
            except PolicyRefused as error:
                fail(str(error))
            await session.commit()
        # told even if nothing changed: somebody may not have heard it the first time
        await tell(tell_policies_changed(opened.redis))
        return done


def _question(version: PolicyVersion) -> str:
    news = []
    if version.q_source != "prior":
        news.append(f"qualities are {version.q_source}")
    if version.exploration_share:
        news.append(f"{decimal_text(version.exploration_share)} of the calls explore")
    more = f" ({'; '.join(news)})" if news else ""
    return f"Make {version.version}{more} the default of all tenants that name no version?"


def _say_done(done: Published, as_json: bool) -> None:
    if as_json:
        say_json({"version": done.version, "before": done.before, "changed": done.changed})
    elif done.changed:
        say(f"{done.version} is active; {done.before} was.")
        say(f"Back: fleet policy rollback {done.before}")
    else:
        say(f"{done.version} was active already.")


def _turn(row: PolicyPublicationRow) -> dict[str, Any]:
    return {**row.model_dump(exclude={"at"}), "at": row.at.isoformat()}


def _told_turn(turn: dict[str, Any]) -> str:
    after = f" after {turn['before']}" if turn["before"] else ""
    why = f": {turn['reason']}" if turn["reason"] else ""
    return f"{turn['at']} {turn['act']} of {turn['version']}{after} by {turn['actor']}{why}"
