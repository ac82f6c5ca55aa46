"""A guard: a line or two of the product without which a promise does not hold."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Guard:
    """`swaps` take it out of `file`; `red` are pytest's arguments, or a run's after `chaos`."""

    name: str
    file: str
    swaps: tuple[tuple[str, str], ...]
    red: tuple[str, ...]
