"""`fleet audit`: what an auditor takes away, and what they check of it."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from shared.audit_log import verifier_key
from shared.domain.audit_findings import Fault, Finding, Kept, Report, moment
from shared.domain.audit_verifier import Verifier
from shared.domain.checkpoint import NoteInvalid, VerifierKey, parse_verifier_key
from shared.domain.counting import counted
from shared.log_key import check_signature
from workers.audit_bundle import NoLog, agents_of, bundle, lines
from workers.audit_reading import BundleReading, NoBundle
from workers.commands.terminal import AsJson, Stores, fail, run, say_json, stores
from workers.development import say
from workers.exports import read_exported

MOST_TOLD = 50
EXPORTED_BY_UP = "audit"

audit = typer.Typer(
    no_args_is_help=True, help="The audit log: its key, bundles for auditors, verification."
)

Checkpoints = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Exported checkpoints that you keep, to hold the log against.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="The log's key as you know it: name+hash+base64."),
]


@audit.command("key")
def key_command() -> None:
    """Print the key that checkpoints are verified with. Give it to auditors beforehand."""
    say(str(run(_key())))


@audit.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="Where to write it; - is standard output.")],
    agent: Annotated[UUID | None, typer.Option(help="Of this agent alone.")] = None,
    tenant: Annotated[UUID | None, typer.Option(help="Of all agents of this tenant.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of everybody.")] = False,
) -> None:
    """Write a bundle that can be verified offline: chains, checkpoints, proofs.

    It holds audit payloads (models, costs, tokens; no prompts), so it is its tenant's to see.

    Example: fleet audit export --agent 0189… agent.jsonl
    """
    if [agent is not None, tenant is not None, everything].count(True) != 1:
        raise typer.BadParameter("Say whose: --agent, --tenant or --all.")
    written = run(_export(file, agent, tenant))
    sys.stderr.write(f"{written} records were written.\n")


@audit.command("verify")
def verify_command(
    file: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, help="A bundle.")
    ] = None,
    checkpoints: Checkpoints = None,
    key: Key = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="The bundle was asked for after the newest of --checkpoints: it has to reach it.",
        ),
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="The database itself, with what it exported here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a bundle, offline, or the database. Exits with 1 if anything is wrong.

    Without --key the bundle's own key is believed; without --checkpoints nobody would notice
    that it was rewritten as a whole by who has that key. Checkpoints that are newer than the
    bundle say nothing against it, unless --strict. What is no bundle at all ends with 2.

    Example: fleet audit verify agent.jsonl --key "$KEY" --checkpoints ./checkpoints
    """
    if live == (file is not None):
        raise typer.BadParameter("Give a bundle's file, or --live.")
    if strict and checkpoints is None:
        raise typer.BadParameter("--strict needs --checkpoints.")
    known = _known_key(key)
    if file is not None:
        try:
            report = verify_file(file, known, checkpoints, strict=strict)
        except NoBundle as error:
            sys.stderr.write(f"{file} is no bundle: {error}.\n")
            raise typer.Exit(2) from None
    else:
        report = run(_verify_live(known, checkpoints))
    if checkpoints is not None and not report.exported:
        nothing = f"no exported checkpoints were found in {checkpoints}"
        report.findings.append(Finding(Fault.EXPORTED, nothing))
    _tell(report, key_was_known=known is not None, as_json=as_json)
    if not report.valid:
        raise typer.Exit(1)


def verify_file(
    file: Path, key: VerifierKey | None, checkpoints: Path | None, *, strict: bool = False
) -> Report:
    """Check a bundle; nothing but the file and the kept checkpoints is read. Raises `NoBundle`."""
    verifier, faults = _verifier(key, checkpoints, reach=strict)
    reading = BundleReading()
    with file.open("rb") as opened:
        for line in opened:
            reading.read(line, verifier)
    faults += reading.close()
    report = _closed(verifier, faults)
    report.whole = reading.has_end
    return report


async def verify_live(stores: Stores, key: VerifierKey | None, checkpoints: Path | None) -> Report:
    """Check all of the database's chains and its log. Raises `NoLog`."""
    # what was exported is read first: whatever is signed meanwhile is not missed then
    verifier, faults = _verifier(key, checkpoints, reach=True)
    async with aclosing(bundle(stores.db, None)) as records:
        async for record in records:
            verifier.take(record)
    return _closed(verifier, faults)


def _verifier(
    key: VerifierKey | None, checkpoints: Path | None, *, reach: bool
) -> tuple[Verifier, list[Finding]]:
    exported = list(read_exported(checkpoints)) if checkpoints is not None else []
    faults = [
        Finding(Fault.EXPORTED, f"{each.where} {each.fault}")
        for each in exported
        if each.fault is not None
    ]
    kept = [Kept(each.where, each.note, moment(each.at)) for each in exported]
    return Verifier(check_signature, key, kept, reach=reach), faults


def _closed(verifier: Verifier, faults: Sequence[Finding]) -> Report:
    report = verifier.close()
    report.findings[:0] = faults
    return report


async def _key() -> VerifierKey:
    async with stores() as opened, opened.db.everyone() as s:
        key = await verifier_key(s)
    if key is None:
        fail("No checkpoint was signed yet; the books worker signs them.")
    return key


async def _export(file: Path, agent: UUID | None, tenant: UUID | None) -> int:
    written = 0
    async with stores() as opened:
        agents = [agent] if agent is not None else None
        if tenant is not None:
            agents = await agents_of(opened.db, tenant)
        out = sys.stdout.buffer if str(file) == "-" else file.open("wb")
        try:
            async with aclosing(bundle(opened.db, agents)) as records:
                async for line in lines(records):
                    out.write(line)
                    written += 1
        except NoLog as error:
            fail(str(error))
        finally:
            out.flush()
            if out is not sys.stdout.buffer:
                out.close()
    return written


async def _verify_live(key: VerifierKey | None, checkpoints: Path | None) -> Report:
    async with stores() as opened:
        folder = checkpoints or opened.settings.audit_export_dir
        if folder is None:
            folder = opened.settings.fleet_home / EXPORTED_BY_UP
        there = await asyncio.to_thread(folder.is_dir)
        try:
            return await verify_live(opened, key, folder if there else None)
        except NoLog as error:
            fail(str(error))


def _known_key(text: str | None) -> VerifierKey | None:
    if text is None:
        return None
    try:
        return parse_verifier_key(text)
    except NoteInvalid as error:
        raise typer.BadParameter(f"--key: {error}") from None


def _tell(report: Report, *, key_was_known: bool, as_json: bool) -> None:
    if as_json:
        say_json(report_json(report))
        return
    say(
        f"{counted(report.events, 'event')} of {counted(report.agents, 'agent')}, {report.leaves}"
        f" of them in the log; {counted(report.checkpoints, 'checkpoint')},"
        f" {report.exported} exported."
    )
    for line in _remarks(report, key_was_known=key_was_known):
        say(line)
    for finding in report.findings[:MOST_TOLD]:
        say(f"WRONG ({finding.fault}): {finding.what}")
    if len(report.findings) > MOST_TOLD:
        say(f"... and {len(report.findings) - MOST_TOLD} more.")
    holds = "All of it holds." if report.whole else "What is in it holds."
    say(holds if report.valid else "It does not hold.")


def _remarks(report: Report, *, key_was_known: bool) -> Iterator[str]:
    """What to know of a verification besides what is wrong."""
    if report.made_at is not None:
        yield f"Made at {report.made_at}; it reaches the checkpoint of {report.size} leaves."
    if not report.whole:
        yield (
            "It has no end record, so it cannot be told whether its end is missing: bundles of"
            " older versions have none; export again."
        )
    if report.unsigned:
        are = "is" if report.unsigned == 1 else "are"
        yield f"{counted(report.unsigned, 'event')} {are} not yet under a checkpoint."
    if report.newer:
        one = report.newer == 1
        yield (
            f"{counted(report.newer, 'exported checkpoint')} {'is' if one else 'are'} newer than"
            f" this bundle: export again to have {'it' if one else 'them'} looked at."
        )
    if not key_was_known:
        yield "The log's key was taken on trust: give --key to know whose log this is."
    if not report.exported:
        yield "No exported checkpoints were looked at: give --checkpoints to know what was signed."


def report_json(report: Report) -> dict[str, Any]:
    """The report of a verification, as `--json` prints it."""
    counts = ("agents", "events", "leaves", "checkpoints", "exported", "unsigned", "newer")
    told = ("made_at", "size", "whole")
    return {
        "valid": report.valid,
        **{name: getattr(report, name) for name in (*counts, *told)},
        "findings": [{"found_by": each.fault, "what": each.what} for each in report.findings],
    }
