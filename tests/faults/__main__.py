"""`python -m tests.faults --minutes N --seed S`: a soak; `--guards`: each guard taken out."""

import argparse
import asyncio
import secrets
import sys

from tests.faults.chaos import chaos
from tests.faults.guards import run_guards, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.6, help="how long the load lasts")
    parser.add_argument("--seed", type=int, default=None, help="repeats the schedule of a run")
    parser.add_argument("--only", default="", help="only faults with this in their names")
    parser.add_argument("--clients", type=int, default=20, help="clients at once")
    parser.add_argument("--guards", nargs="?", const="", help="take out guards, by name")
    asked = parser.parse_args()
    if asked.guards is not None:
        verdicts = run_guards(asked.guards)
        sys.stdout.write("\n".join([*table(verdicts), ""]))
        return 0 if all(verdict.red for verdict in verdicts) else 1
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    sys.stderr.write(f"seed {seed}\n")
    run = chaos(seed, asked.minutes * 60, only=asked.only, clients=asked.clients)
    report = asyncio.run(run)
    sys.stdout.write(f"{report}\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
