"""`python -m tests.faults --minutes N --seed S`: a soak; `--guards`: each guard taken out."""

import argparse
import asyncio
import secrets
import sys
from pathlib import Path

from tests.faults.chaos import CLIENTS, ROUND_S, Plan, chaos
from tests.faults.guards import run_guards, table
from tests.faults.small_disk import with_own_mounts

RUNS = Path(__file__).with_name("runs")
# a run of so many minutes is one to report: its log is written where it can be committed
REPORTED_MINUTES = 10.0


def main() -> int:
    asked = arguments().parse_args()
    if asked.guards is not None:
        verdicts = run_guards(asked.guards, asked.at_once)
        sys.stdout.write("\n".join([*table(verdicts), ""]))
        return 0 if all(verdict.red for verdict in verdicts) else 1
    with_own_mounts("tests.faults", sys.argv[1:])
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    log = asked.log
    if log is None and asked.minutes >= REPORTED_MINUTES:
        RUNS.mkdir(exist_ok=True)
        log = RUNS / f"seed-{seed}-{asked.minutes:g}-minutes.md"
    if log is not None:
        log.write_text(f"`python -m tests.faults --minutes {asked.minutes:g} --seed {seed}`\n\n")
    sys.stderr.write(f"seed {seed}\n")
    plan = Plan(
        asked.minutes * 60,
        asked.only,
        asked.clients,
        round_s=asked.round,
        measured=not asked.only or asked.measure,
    )
    report = asyncio.run(chaos(seed, plan, log))
    if log is not None:
        with log.open("a") as end:
            end.write(f"\n{report}\n")
    sys.stdout.write(f"{report}\n")
    return 1 if report.violations else 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.75, help="how long the load lasts")
    parser.add_argument("--seed", type=int, default=None, help="repeats the schedule of a run")
    parser.add_argument("--only", default="", help="only faults with this in their names")
    parser.add_argument("--measure", action="store_true", help="times too, in spite of --only")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients at once")
    parser.add_argument("--round", type=float, default=ROUND_S, help="seconds between two checks")
    parser.add_argument("--log", type=Path, default=None, help="what is said, and the table")
    parser.add_argument("--guards", nargs="?", const="", help="take out guards, by name")
    parser.add_argument("--at-once", type=int, default=2, help="guards taken out side by side")
    return parser


if __name__ == "__main__":
    sys.exit(main())
