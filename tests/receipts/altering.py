"""A receipt with one thing altered, for every thing in it."""

import copy
from collections.abc import Iterator
from typing import Any

from tests.receipts.cases import Json

Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The place of every string, number, flag and null, and of every empty list and object."""
    if isinstance(value, dict) and value:
        for name in value:
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, list) and value:
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))
    else:
        yield path


def other(value: Any) -> Any:
    """A value of the same kind that is another, as like as can be."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return round(value + 0.01, 9) if value < 0.5 else round(value - 0.01, 9)
        case str() if value:
            return value[:-1] + ("x" if value[-1] != "x" else "y")
        case str():
            return "x"
        case None:
            return 0
        case dict():
            return {"x": 1}
        case _:
            return ["x"]


def altered(receipt: Json, path: Path) -> Json:
    """The receipt with the value at one place replaced by another."""
    made = copy.deepcopy(receipt)
    inner: Any = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = other(inner[path[-1]])
    return made


def field(path: Path) -> str:
    """A place without numbers of lists and names of models: `candidates[].rank`."""
    text = ""
    for before, step in zip((None, *path), path, strict=False):
        if isinstance(step, int):
            text += "[]"
        elif before in ("latencies", "empirical"):
            text += ".{slug}"
        else:
            text += f".{step}" if text else step
    return text


def other_bytes(text: bytes) -> Iterator[tuple[int, bytes]]:
    """The text with one byte altered, for every place in it."""
    for place, byte in enumerate(text):
        yield place, text[:place] + bytes([byte ^ 1]) + text[place + 1 :]
