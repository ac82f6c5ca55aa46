"""`python -m tests.faults --minutes N --seed S`: a soak; `--guards`: each guard taken out."""

import argparse
import asyncio
import secrets
import sys

from tests.faults.chaos import chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.6, help="how long the load lasts")
    parser.add_argument("--seed", type=int, default=None, help="repeats the schedule of a run")
    parser.add_argument("--only", default="", help="only faults with this in their names")
    parser.add_argument("--clients", type=int, default=20, help="clients at once")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    sys.stderr.write(f"seed {seed}\n")
    run = chaos(seed, asked.minutes * 60, only=asked.only, clients=asked.clients)
    report = asyncio.run(run)
    sys.stdout.write(f"{report}\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
