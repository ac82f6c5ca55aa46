"""How well task types are told, judged on prompts that were not learned from."""

import argparse
import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from shared.domain import task_words
from shared.domain.task_type import TOLD_BY_WORDS, classify_text
from tests.bench.fitting import (
    Labelled,
    Weights,
    fitted,
    hand_set,
    known_to,
    labelled,
    verdict,
    written,
)
from tests.bench.report import aligned

ABOUT = """\
How well the classifier tells what a prompt asks for, whether it keeps its answer when the prompt
is rephrased, and what it costs.

FILE has one JSON object a line with at least {"prompt": …, "task_type": …}; task types other than
code, reasoning, general, chat and extraction are passed over, since structure tells them.

  cross-validated   The prompts are dealt into folds, every type evenly, by the hash of their text.
                    Each fold is judged by weights learned from the others. A term of the hand-set
                    vocabulary that stands in no prompt learned from weighs nothing, so that no
                    fold gains from words written down for its sake. Less than what is shipped.
  as shipped        The table in use, which learned from all of the development prompts: what it
                    says of those is no proof; of prompts kept apart it is.
  flips             Answers of the table in use that change with case, spacing or punctuation.
  us                Lowest processor time of many runs, for one prompt of each kind.

Balanced accuracy is the mean over code, reasoning, general and chat of the share told right.
Rows of a matrix are what was asked, columns what it was taken for.
"""

EXAMPLES = """\
examples:
  python -m tests.bench.classifying prompts.jsonl
  python -m tests.bench.classifying kept_apart.jsonl --no-folds    judge the table in use only
  python -m tests.bench.classifying prompts.jsonl --fit            learn the table anew
"""
BALANCED_OVER = TOLD_BY_WORDS[:4]
WORDS_FILE = Path(task_words.__file__)

Matrix = list[list[int]]

_WORD = "What did the auditors find in the ledger of the second quarter, and why? "
_CODE = "def total(rows: list[int]) -> int:\n    return sum(row['n'] for row in rows if row)\n"
KINDS = {
    "English": _WORD,
    "code": _CODE,
    "fenced code": "```python\n" + _CODE,
    "one long word": "a",
    "punctuation": "?!-.;",
    "spaces": " ",
    "numbers": "12, 7.5 ",
    "backticks": "`",
    "accents and quotes": "\u201cDéjà vu\u201d \u2013 ",
    "Chinese": "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "terms only": "calculatetheprobability",
}
REPHRASINGS: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "title case": str.title,
    "spacing doubled": lambda text: re.sub(r"\s+", " \n ", text),
    "spacing removed": lambda text: re.sub(r"\s+", "", text),
    "punctuation to space": lambda text: re.sub(r"[^\w\s]|_", " ", text),
    "punctuation removed": lambda text: re.sub(r"[^\w\s]|_", "", text),
    "hyphen to space": lambda text: text.replace("-", " "),
}


def read(path: Path, start: Weights) -> list[Labelled]:
    """Raises ValueError with the line that is not as ABOUT says."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            if row["task_type"] in TOLD_BY_WORDS:
                found.append(labelled(str(row["prompt"]), row["task_type"], start))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}") from error
    return found


def dealt(prompts: Sequence[Labelled], folds: int) -> list[list[Labelled]]:
    """Every type evenly over the folds, in an order that is always the same."""
    hands: list[list[Labelled]] = [[] for _ in range(folds)]
    for task in range(len(TOLD_BY_WORDS)):
        of_task = [each for each in prompts if each.task == task]
        of_task.sort(key=lambda each: hashlib.sha256(each.prompt.encode()).digest())
        for at, each in enumerate(of_task):
            hands[at % folds].append(each)
    return hands


def judged(prompts: Sequence[Labelled], verdict_of: Callable[[Labelled], int]) -> Matrix:
    matrix = [[0] * len(TOLD_BY_WORDS) for _ in TOLD_BY_WORDS]
    for each in prompts:
        matrix[each.task][verdict_of(each)] += 1
    return matrix


def balanced(matrix: Matrix) -> float:
    """Over those of BALANCED_OVER that are there at all."""
    asked = matrix[: len(BALANCED_OVER)]
    shares = [row[at] / sum(row) for at, row in enumerate(asked) if sum(row)]
    return sum(shares) / len(shares) if shares else 0.0


def cross_validated(prompts: Sequence[Labelled], folds: int, start: Weights) -> Iterator[Matrix]:
    """One confusion matrix for each fold."""
    hands = dealt(prompts, folds)
    for at, held_out in enumerate(hands):
        others = [each for n, hand in enumerate(hands) if n != at for each in hand]
        weights = fitted(others, known_to(others, start))
        yield judged(held_out, partial(verdict, weights=weights))


def as_shipped(each: Labelled) -> int:
    return TOLD_BY_WORDS.index(classify_text(each.prompt))


def flips(prompts: Sequence[Labelled]) -> dict[str, int]:
    """How many answers each rephrasing changes."""
    return {
        name: sum(classify_text(way(p.prompt)) != classify_text(p.prompt) for p in prompts)
        for name, way in REPHRASINGS.items()
    }


def lowest_us(text: str, runs: int) -> float:
    """Processor time of this thread for one classification, the lowest of so many."""
    lowest = float("inf")
    for _ in range(runs):
        begun = time.thread_time_ns()
        classify_text(text)
        lowest = min(lowest, (time.thread_time_ns() - begun) / 1000)
    return lowest


def costs(runs: int) -> list[list[str]]:
    """Rows of a table: each kind of prompt, of ten thousand and of a million characters."""
    rows = [["us", "10 kB", "1 MB"]]
    for kind, piece in KINDS.items():
        sizes = [(piece * (size // len(piece) + 1))[:size] for size in (10_000, 1_000_000)]
        rows.append([f"  {kind}", *(f"{lowest_us(text, runs):.0f}" for text in sizes)])
    return rows


def matrix_table(title: str, matrix: Matrix) -> str:
    rows = [[title, *TOLD_BY_WORDS, "right"]]
    for name, row in zip(TOLD_BY_WORDS, matrix, strict=True):
        share = f"{row[TOLD_BY_WORDS.index(name)] / sum(row):.1%}" if sum(row) else "-"
        rows.append([f"  {name}", *map(str, row), share])
    return f"{aligned(rows)}\nbalanced accuracy {balanced(matrix):.3f}\n"


def tell(prompts: Sequence[Labelled], folds: int, runs: int, start: Weights) -> None:
    """Print all of it."""
    say = sys.stdout.write
    if folds:
        pooled = judged((), as_shipped)
        for number, matrix in enumerate(cross_validated(prompts, folds, start), 1):
            say(matrix_table(f"fold {number} of {folds}", matrix) + "\n")
            pooled = [
                [a + b for a, b in zip(*rows, strict=True)]
                for rows in zip(pooled, matrix, strict=True)
            ]
        say(matrix_table("cross-validated", pooled) + "\n")
    say(matrix_table("as shipped", judged(prompts, as_shipped)) + "\n")
    changed = [[f"  {name}", str(count)] for name, count in flips(prompts).items()]
    say(aligned([["flips", f"of {len(prompts)}"], *changed]) + "\n\n")
    say(aligned(costs(runs)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.bench.classifying",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="labelled prompts, JSON lines")
    parser.add_argument("--fit", action="store_true", help=f"write {WORDS_FILE.name} anew, only")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (default 5)")
    parser.add_argument("--no-folds", action="store_true", help="judge the table in use only")
    parser.add_argument("--runs", type=int, default=200, help="of each timing (default 200)")
    options = parser.parse_args()
    if options.folds < 2:
        parser.error("--folds: at least two")
    start = hand_set()
    try:
        prompts = read(options.file, start)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if options.fit:
        written(fitted(prompts, start), WORDS_FILE)
        sys.stdout.write(f"{len(prompts)} prompts learned; {WORDS_FILE} written.\n")
        return 0
    tell(prompts, 0 if options.no_folds else options.folds, options.runs, start)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
