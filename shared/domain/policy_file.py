"""A policy version as an operator writes it, in TOML, and what is wrong with it, line by line.

version = "careful-1"
description = "Code is never left to the cheapest."
default_output_tokens = 2048     # reserved where a request says nothing; default 1024
q_source = "prior"               # or "empirical"
exploration_share = "0.05"       # 0 to 0.2; default 0

[floors]                         # 0 to 1, or good, strong, frontier
code = 0.85
"""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from shared.domain.candidate import decimal_text
from shared.domain.evidence import QSource
from shared.domain.policy_version import (
    DEFAULT_OUTPUT_TOKENS,
    GENERAL_FLOOR,
    NO_EXPLORATION,
    PolicyVersion,
)
from shared.domain.routing_policy import TIERS
from shared.domain.task_type import TASK_TYPES
from shared.domain.toml_document import TomlFault, read_toml

LONGEST_NAME = 64
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
MOST_OUTPUT_TOKENS = 1_000_000
MOST_EXPLORATION = Decimal("0.2")

_TABLE = re.compile(r"^\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")
_DECIMAL = re.compile(r"Decimal\('([^']*)'\)")
_PLAIN = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)


class PolicyError(ValueError):
    """The document is no policy version; `problems` are lines of the form `line 7: field: why`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _tier(value: Any) -> Any:
    """A tier as its number. Raises `ValueError` for what is no number either."""
    if isinstance(value, str) and value in TIERS:
        return TIERS[value]
    odd = isinstance(value, str) and not _PLAIN.fullmatch(value)
    if odd or isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError(f"must be a number from 0 to 1, or {', '.join(TIERS)}")
    return value


def floor_text(value: Any) -> str | None:
    """A floor as a tenant's policy keeps it: a tier by its name, else plain digits; None is none.

    Raises `ValueError` for what is neither.
    """
    if value is None or (isinstance(value, str) and value in TIERS):
        return value
    words = f"must be a number from 0 to 1 with at most nine places, or {', '.join(TIERS)}"
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(words)
    try:
        floor = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(words) from None
    if isinstance(value, str) and not _PLAIN.fullmatch(value):
        raise ValueError(words)  # other alphabets' digits, and underscores, are numbers to Python
    if not floor.is_finite() or not 0 <= floor <= 1 or floor != round(floor, 9):
        raise ValueError(words)
    return decimal_text(abs(floor))  # 0, not -0


def _task_type(value: str) -> str:
    if value not in TASK_TYPES:
        raise ValueError(f"is no task type; they are {', '.join(TASK_TYPES)}")
    return value


def _general_floor(value: Decimal) -> Decimal:
    if value != GENERAL_FLOOR:
        told = decimal_text(GENERAL_FLOOR)
        raise ValueError(f"is {told} in every version; give each task type a floor instead")
    return value


Floor = Annotated[Decimal, BeforeValidator(_tier), Field(ge=0, le=1, decimal_places=9)]


class _Document(BaseModel):
    """The document as a file has it."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)]
    description: Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")] = ""
    default_floor: Annotated[Decimal, BeforeValidator(_general_floor)] = GENERAL_FLOOR
    floors: dict[Annotated[str, BeforeValidator(_task_type)], Floor] = {}
    default_output_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_OUTPUT_TOKENS)] = (
        DEFAULT_OUTPUT_TOKENS
    )
    q_source: QSource = "prior"
    exploration_share: Annotated[
        Decimal, BeforeValidator(_tier), Field(ge=0, le=MOST_EXPLORATION, decimal_places=9)
    ] = NO_EXPLORATION


def parse_policy(source: str) -> PolicyVersion:
    """The version that a TOML document describes. Raises `PolicyError` with all that is wrong."""
    try:
        data = read_toml(source)
    except TomlFault as fault:
        raise PolicyError([str(fault)]) from fault
    try:
        checked = _Document.model_validate(data)
    except ValidationError as error:
        lines = _lines(source)
        raise PolicyError([_problem(dict(each), lines) for each in error.errors()]) from error
    return PolicyVersion(**checked.model_dump(exclude={"default_floor"}))


def write_policy(version: PolicyVersion) -> str:
    """The document of a version; `parse_policy` reads it back."""
    text = version.description.replace("\\", "\\\\").replace('"', '\\"')
    text = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    lines = [
        f'version = "{version.version}"',
        f'description = "{text}"',
        f"default_floor = {GENERAL_FLOOR}",
        f"default_output_tokens = {version.default_output_tokens}",
        f'q_source = "{version.q_source}"',
        f'exploration_share = "{decimal_text(version.exploration_share)}"',
        "",
        "[floors]",
        *(f"{task} = {decimal_text(floor)}" for task, floor in sorted(version.floors.items())),
    ]
    return "\n".join(lines) + "\n"


def _lines(source: str) -> Mapping[str, int]:
    """On which line a field is given: `version`, `floors`, `floors.code`."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(source.splitlines(), 1):
        if heading := _TABLE.match(line):
            table = f"{heading[1]}."
            found.setdefault(heading[1], number)
        elif key := _KEY.match(line):
            found.setdefault(f"{table}{key[1]}", number)
    return found


def _problem(error: Mapping[str, Any], lines: Mapping[str, int]) -> str:
    """`line 7: floors.code: why`; what is missing has no line."""
    field = ".".join(str(part) for part in error["loc"] if part != "[key]")
    why = _DECIMAL.sub(r"\1", str(error["msg"]).removeprefix("Value error, "))
    if error["type"] == "extra_forbidden":
        why = f"is no field; they are {', '.join(_Document.model_fields)}"
    line = lines.get(field)
    return f"{field}: {why}" if line is None else f"line {line}: {field}: {why}"
