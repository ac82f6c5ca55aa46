"""`fleet receipt`: decision receipts checked offline, and the program that does it anywhere."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import getsource
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import track

import shared.receipt_verifier as verifier
from shared.domain.audit_findings import Report
from shared.domain.audit_verifier import Verifier
from shared.domain.capture import columns
from shared.domain.routing import RULESET_HASH, replay
from shared.log_key import check_signature
from shared.receipt_verifier import Check, Json
from workers.audit_reading import BundleReading, NoBundle
from workers.commands.terminal import AsJson, fail

receipt = typer.Typer(
    no_args_is_help=True, help="Decision receipts: verification, and the verifier to give away."
)

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="A receipt, or one a line (JSONL); - is stdin."),
]
Jwks = Annotated[
    str | None,
    typer.Option(metavar="FILE|URL", help="The key set: a file, or /.well-known/jwks.json."),
]
Bundle = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="A bundle of `fleet audit export`, to find the events in."
    ),
]


@receipt.command("verifier")
def verifier_command() -> None:
    """Print the verifier: one Python file without dependencies, for clients to keep.

    Example: fleet receipt verifier > receipt_verifier.py
    """
    sys.stdout.write(getsource(verifier))


@receipt.command("verify")
def verify_command(
    files: Files, jwks: Jwks = None, audit: Bundle = None, as_json: AsJson = False
) -> None:
    """Check decision receipts: signature, catalogue, rule, audit event, audit log.

    The rule is run again twice, by this fleet's own code and by the verifier's; both must say
    what the receipt says. Without --jwks a receipt is "consistent" at best, for anybody can write
    one that is. Exit code: 0 all are valid, 1 a mismatch, 2 something that is no decision receipt
    or cannot be read, 3 no mismatch, but not all are valid.

    Example: fleet receipt verify receipts.jsonl --jwks https://api.example.com/.well-known/jwks.json
    """
    try:
        keys = None if jwks is None else verifier.read_keys(_key_set(jwks))
    except (OSError, httpx.HTTPError) as error:
        sys.stderr.write(f"The key set {jwks} cannot be read: {error}\n")
        raise typer.Exit(2) from None
    except verifier.UNREADABLE:
        sys.stderr.write(f"{jwks} is no key set, as /.well-known/jwks.json answers it.\n")
        raise typer.Exit(2) from None
    chains = None if audit is None else read_bundle(audit, keys)

    def checked(found: Json) -> list[Check]:
        checks = verifier.check(found, keys, check_signature)
        checks.append(verifier.attempt("own rule", lambda: own_rule(found)))
        if chains is not None:
            checks.append(verifier.attempt("bundle", lambda: chains.find(found)))
        return checks

    try:
        results = verifier.check_all(_shown(_receipts(files)), checked)
        code = verifier.report(results, as_json, sys.stdout.write, lambda _: None)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"A receipt cannot be read: {type(error).__name__}: {error}\n")
        raise typer.Exit(2) from None
    raise typer.Exit(code)


def _key_set(where: str) -> Any:
    if where.startswith(("https://", "http://")):
        return httpx.get(where, follow_redirects=True).raise_for_status().json()
    return json.loads(Path(where).read_text())


def _receipts(files: Iterable[str]) -> Iterator[Json]:
    for name in files:
        with verifier.opened(name) as lines:
            yield from verifier.read_receipts(lines)


def _shown(receipts: Iterator[Json]) -> Iterable[Json]:
    """With a count on standard error where somebody looks at it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return receipts
    return track(receipts, "Checking receipts", console=console, transient=True)


def own_rule(found: Json) -> tuple[bool | None, str]:
    """The fleet's own code on the receipt's inputs: a second implementation, the first of all."""
    inputs = found["inputs"]
    if inputs is None:
        return None, "there are no inputs to run it on"
    if inputs["ruleset_hash"] != RULESET_HASH:
        return None, f"this fleet's ruleset is another, {RULESET_HASH}"
    decision = replay(inputs)
    told = columns(decision)
    said = {field: found.get(field) for field in ("cell", "decision_rule", "chosen_model_slug")}
    fates = [(o.candidate.slug, o.m_allowed, o.drop_reason, o.rank) for o in decision.outcomes]
    shown = [
        (c["model_slug"], c["m_allowed"], c["drop_reason"], c["rank"]) for c in found["candidates"]
    ]
    if fates != shown or said != {field: told[field] for field in said}:
        return False, "this fleet's own rule decides otherwise"
    return True, "this fleet's own rule decides the same"


@dataclass(frozen=True, slots=True)
class Chains:
    """The events of a bundle by agent and number, and whether the bundle holds.

    `is_ours` is whether a key of the key set signs its log: anybody can make a log of their own.
    """

    report: Report
    hashes: Mapping[tuple[str, int], str]
    is_logged: Callable[[str, int], bool]
    is_ours: bool

    def find(self, found: Json) -> tuple[bool | None, str]:
        """Whether the receipt's event is in the bundle, and the bundle in order."""
        if not self.report.valid:
            return False, f"the bundle does not hold: {self.report.findings[0].what}"
        event = found["audit_event"]
        if event is None:
            return None, "the receipt names no audit event"
        known = self.hashes.get((event["agent_id"], event["seq"]))
        if known is None:
            return None, "the bundle has no such event"
        if known != event["event_hash"]:
            return False, f"the chain has another event {event['seq']}"
        if not self.is_logged(event["agent_id"], event["seq"]):
            return None, f"the bundle has event {event['seq']} under no checkpoint"
        if not self.is_ours:
            return None, "the bundle has this event, in a log whose key is not of the key set"
        return True, f"the chain has exactly this event {event['seq']}"


def read_bundle(file: Path, keys: Mapping[str, bytes] | None) -> Chains:
    """A bundle's events, once it was checked as a whole; exits where it is none."""
    bundle, reading = Verifier(check_signature), BundleReading()
    with file.open("rb") as lines:
        for line in lines:
            reading.read(line, bundle)
    try:
        faults = reading.close()
    except NoBundle as error:
        fail(f"{file} is no bundle: {error}.")
    report = bundle.close()
    report.findings[:0] = faults
    log_key = bundle.log_key
    is_ours = log_key is not None and log_key.public in (keys or {}).values()
    return Chains(report, reading.hashes, bundle.is_logged, is_ours)
