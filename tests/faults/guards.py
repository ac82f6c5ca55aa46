"""Each guard taken out in turn, in a copy of the tree: something must turn red.

A guard that nobody misses is not tested. What must turn red is a test that is about it, or a run of
faults with a fixed seed; both are run in the copy, never here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults import guards_of_books, guards_of_ingress, guards_of_workers
from tests.faults.guard import ROOT, Guard
from tests.faults.promises import BROKEN

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".fleet", "*.egg-info"
)
PATIENCE_S = 240.0

GUARDS = (*guards_of_workers.GUARDS, *guards_of_ingress.GUARDS, *guards_of_books.GUARDS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`red`: whether its absence was noticed, and by what."""

    guard: Guard
    red: bool
    by: str
    seconds: float


def run_guards(names: str = "", at_once: int = 2) -> list[Verdict]:
    """Take out each guard whose name has `names` in it."""
    chosen = [guard for guard in GUARDS if names in guard.name]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(without, chosen))


def without(guard: Guard) -> Verdict:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fleet-guard-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        take_out(guard, copy / guard.file)
        red, by = missed(guard.red, copy)
    verdict = Verdict(guard, red, by, time.monotonic() - began)
    sys.stderr.write(f"{'red  ' if red else 'GREEN'} {guard.name}: {by}\n")
    return verdict


def take_out(guard: Guard, file: Path) -> None:
    text = file.read_text("utf-8")
    for old, new in guard.swaps:
        if text.count(old) != 1:
            raise ValueError(f"{guard.name}: {text.count(old)} places in {guard.file}: {old!r}")
        text = text.replace(old, new)
    file.write_text(text, "utf-8")


def missed(red: Sequence[str], tree: Path) -> tuple[bool, str]:
    """Whether the run in `tree` notices, and its line that says so."""
    module = ["tests.faults", *red[1:]] if red[0] == "chaos" else ["pytest", "-x", *red]
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=tree,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return False, f"no end within {PATIENCE_S:.0f} s"
    noticed = [line for line in done.stdout.splitlines() if is_notice(line)]
    by = "; ".join(noticed[:2]).replace("|", "").replace("  ", " ")
    return done.returncode == 1 and bool(noticed), by[:160]


def is_notice(line: str) -> bool:
    """A failed test, or a promise with violations."""
    return line.startswith(("FAILED ", BROKEN))


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield "| guard taken out | | noticed by | s |"
    yield "| --- | --- | --- | --- |"
    for each in verdicts:
        colour = "red" if each.red else "**green**"
        yield f"| {each.guard.name} | {colour} | {each.by} | {each.seconds:.0f} |"
    red = sum(each.red for each in verdicts)
    yield f"{red} of {len(verdicts)} guards are missed when they are gone"
