"""The weights of the task types, learned from labelled prompts: what `classifying --fit` runs.

A multinomial logistic regression that is pulled towards the hand-set weights of
`task_vocabulary.py` instead of towards nought, by gradient descent with momentum from a fixed
start in a fixed order; types count alike, however rare they are. The weights are rounded to whole
tenths at the end: floats are for learning, routing has none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.domain.task_type import TOLD_BY_WORDS, fence, letters, signs
from tests.bench.task_vocabulary import SIGNS, TABLES

TENTHS_PER_NAT = 20  # a hand-set weight of 20 makes a type e times as likely
PULL = 2.0  # towards the hand-set weights
STEPS = 120
RATE = 0.005
MOMENTUM = 0.9
RARITY = 0.7  # 1: every type counts alike; 0: every prompt does
BIAS_RATE = 0.2  # the sign that every prompt bears moves more slowly

Weights = Mapping[str, tuple[int, ...]]
Signs = Sequence[tuple[str, int]]
TYPES = range(len(TOLD_BY_WORDS))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt, what it asks for, and what speaks for that."""

    prompt: str
    task: int  # of TOLD_BY_WORDS
    signs: Signs


def hand_set() -> dict[str, tuple[int, ...]]:
    """Every term and sign with its hand-set tenths, in the order of TOLD_BY_WORDS."""
    terms = sorted({term for table in TABLES.values() for term in table})
    worded = {term: tuple(TABLES[t].get(term, 0) for t in TOLD_BY_WORDS) for term in terms}
    return {**SIGNS, **worded}


def labelled(prompt: str, task: str, vocabulary: Iterable[str]) -> Labelled:
    """`vocabulary` may hold terms that the table in use does not have yet."""
    squeezed = letters(prompt)
    found = [(sign, times) for sign, times in signs(squeezed) if sign[0] == "*"]
    for term in vocabulary:
        inside = squeezed.startswith(term[1:]) if term[0] == "^" else term in squeezed
        if term[0] != "*" and inside:
            found.append((term, 1))
    return Labelled(prompt, TOLD_BY_WORDS.index(task), tuple(found))


def fitted(prompts: Sequence[Labelled], start: Weights, steps: int = STEPS) -> Weights:
    """The weights that tell these prompts, no further from `start` than they have reason for."""
    moved: dict[str, list[float]] = {
        sign: [0.0] * len(TYPES) for each in prompts for sign, _ in each.signs
    }
    speed = {sign: [0.0] * len(TYPES) for sign in moved}
    often = [max(1, sum(each.task == task for each in prompts)) for task in TYPES]
    raw = [(len(prompts) / len(TYPES) / often[each.task]) ** RARITY for each in prompts]
    mean = sum(raw) / len(raw)
    for _ in range(steps):
        slope = {sign: [PULL * at for at in of_types] for sign, of_types in moved.items()}
        for each, counts in zip(prompts, raw, strict=True):
            off = _error(each, start, moved)
            for sign, times in each.signs:
                row = slope[sign]
                for at in TYPES:
                    row[at] += off[at] * times * counts / mean
        for sign, row in slope.items():
            rate = RATE * (BIAS_RATE if sign == "*always" else 1.0)
            for at in TYPES:
                speed[sign][at] = MOMENTUM * speed[sign][at] - rate * row[at]
                moved[sign][at] += speed[sign][at]
    return {sign: _rounded(weights, moved.get(sign)) for sign, weights in start.items()}


def _error(each: Labelled, start: Weights, moved: Mapping[str, list[float]]) -> list[float]:
    """How much more likely each type is held to be than it is."""
    heights = [0.0] * len(TYPES)
    for sign, times in each.signs:
        for at, (hand, learned) in enumerate(zip(start[sign], moved[sign], strict=True)):
            heights[at] += (hand / TENTHS_PER_NAT + learned) * times
    top = max(heights)
    powers = [math.exp(height - top) for height in heights]
    whole = sum(powers)
    return [power / whole - (at == each.task) for at, power in enumerate(powers)]


def _rounded(hand: Sequence[int], learned: Sequence[float] | None) -> tuple[int, ...]:
    if learned is None:
        return tuple(hand)
    return tuple(h + round(TENTHS_PER_NAT * m) for h, m in zip(hand, learned, strict=True))


def known_to(prompts: Sequence[Labelled], start: Weights) -> dict[str, tuple[int, ...]]:
    """The hand-set weights without those of terms that stand in none of these prompts.

    The vocabulary was written with the prompts at hand; so a fold that is judged must not gain
    from a term that was only written down for its sake.
    """
    seen = {sign for each in prompts for sign, _ in each.signs}
    nothing = (0,) * len(TYPES)
    return {sign: weights if sign in seen else nothing for sign, weights in start.items()}


def verdict(each: Labelled, weights: Weights) -> int:
    """As `task_type.classify_text` does it."""
    found = [0] * len(TYPES)
    found[TOLD_BY_WORDS.index("code")] += fence(each.prompt)
    for sign, times in each.signs:
        for at, weight in enumerate(weights[sign]):
            found[at] += weight * times
    return found.index(max(found))


def written(weights: Weights, path: Path) -> None:
    """The table as the module that routing reads."""
    cells = [f"{sign}={','.join(map(str, row))}" for sign, row in sorted(weights.items())]
    cells = [cell.replace(" ", "_") for cell in cells if set(weights[cell.split("=")[0]]) != {0}]
    lines, line = [], ""
    for cell in cells:
        if len(line) + len(cell) + 1 > 98:
            lines.append(line)
            line = ""
        line = f"{line} {cell}".strip()
    body = "\n".join([*lines, line])
    path.write_text(f'{_HEAD}_TABLE = """\\\n{body}\n"""\n{_FOOT}')


_HEAD = '''"""The weights by which `task_type.py` tells what a prompt wants. Written, not edited.

`python -m tests.bench.classifying --fit FILE` learned it from the hand-set weights of
`tests/bench/task_vocabulary.py` and labelled public prompts. A term and its tenths for code,
reasoning, general, chat and extraction. `^` marks how a text begins; `*` is no word but a sign,
see `task_type.signs`.
"""

from collections.abc import Mapping

'''
_FOOT = """

def _read(table: str) -> dict[str, tuple[int, ...]]:
    cells = (cell.split("=") for cell in table.split())
    return {term.replace("_", " "): tuple(map(int, row.split(","))) for term, row in cells}


WEIGHTS: Mapping[str, tuple[int, ...]] = _read(_TABLE)
"""
