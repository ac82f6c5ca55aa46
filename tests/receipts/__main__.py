"""Ten thousand random receipts checked by the verifier alone; then each thing in some, altered.

    python -m tests.receipts [--count 10000] [--seed 1] [--samples 12]

Prints what was decided, what was proved, and a table: which check finds an alteration of which
field, with the gateway's key and without it.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.receipts.altering import altered, field, leaves, other_bytes
from tests.receipts.cases import Json, receipts, written
from tests.receipts.verifying import Answer, run_alone, verify_alone

PASSED = ("valid", "consistent", "not replayable")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def found_by(told: Json) -> tuple[str, ...]:
    """The checks that tell of a mismatch."""
    return tuple(each["name"] for each in told["checks"] if each["proved"] is False)


def sampled(made: list[Json], count: int) -> list[Json]:
    """Receipts of as many kinds of decisions and outcomes as there are."""
    kinds: dict[tuple[str, str], list[Json]] = defaultdict(list)
    for receipt in made:
        kinds[receipt["decision_rule"], receipt["outcome_status"]].append(receipt)
    turns = max(map(len, kinds.values()))
    return [kind[turn] for turn in range(turns) for kind in kinds.values() if turn < len(kind)][
        :count
    ]


def all_verify(made: list[Json], folder: Path) -> bool:
    """Every receipt as it was made."""
    begun = time.monotonic()
    answer = verify_alone(folder, made)
    took = time.monotonic() - begun
    say(answer.out.strip().splitlines()[-1])
    say(f"exit code {answer.code}; {took:.1f} s, {1000 * took / len(made):.1f} ms a receipt\n")
    return answer.code == 0


def table(samples: list[Json], folder: Path) -> int:
    """Every value of every sample altered, one at a time. Returns how many were not found."""
    places = [(receipt, path) for receipt in samples for path in leaves(receipt)]
    made = [altered(receipt, path) for receipt, path in places]
    with_key, without = verify_alone(folder, made, "--json"), None
    without = verify_alone(folder, made, "--json", jwks=None)
    rows: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = defaultdict(list)
    for (_, path), known, unknown in zip(places, with_key.told, without.told, strict=True):
        rows[field(path)].append((found_by(known), found_by(unknown)))
    say(f"{'field':<42} {'altered':>7} {'found':>6}  {'by, with the key':<40} found without it, by")
    for name, pairs in rows.items():
        keyed, bare = ([pair[side] for pair in pairs] for side in (0, 1))
        say(
            f"{name:<42} {len(pairs):>7} {sum(map(bool, keyed)):>6}  {names(keyed):<40}"
            f" {sum(map(bool, bare)):>5} {names(bare)}"
        )
    missed = [name for name, pairs in rows.items() if not all(pair[0] for pair in pairs)]
    say(f"\n{len(made)} values altered; not found with the key: {missed or 'none'}\n")
    return len(missed)


def names(found: Iterable[tuple[str, ...]]) -> str:
    return " ".join(sorted({name for each in found for name in each})) or "-"


def bytes_altered(receipt: Json, folder: Path) -> Answer:
    """Every byte of one receipt altered, one at a time: a line each."""
    text = written([receipt]).rstrip("\n").encode()
    lines = (made.decode("utf-8", "surrogateescape") for _, made in other_bytes(text))
    return run_alone(folder, "\n".join(lines) + "\n", "--json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=12)
    asked = parser.parse_args()
    say(f"Making, verifying and altering {asked.count} receipts: some 30 ms each, on one core.")
    made = receipts(asked.count, asked.seed)
    say(f"{len(made)} receipts of seed {asked.seed}: ")
    for kind in ("decision_rule", "outcome_status", "floor_source"):
        counted = Counter(receipt[kind] for receipt in made).most_common()
        say(f"  {kind}: " + ", ".join(f"{name} {count}" for name, count in counted))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right = all_verify(made, folder)
        missed = table(sampled(made, asked.samples), folder)
        smallest = min(made, key=lambda receipt: len(receipt["candidates"]) or 99)
        answer = bytes_altered(smallest, folder)
    unfound = [told for told in answer.told if told["verdict"] in PASSED]
    say(f"{len(answer.told)} bytes altered of one receipt; not found: {len(unfound)}")
    return 0 if right and not missed and not unfound else 1


if __name__ == "__main__":
    sys.exit(main())
