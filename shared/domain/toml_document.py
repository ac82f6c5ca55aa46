"""A TOML document of ours, read with decimal numbers; whatever is wrong with it has a line."""

import re
import tomllib
from decimal import Decimal
from typing import Any

MOST_CHARACTERS = 5_000_000
LONGEST_LINE = 10_000
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class TomlFault(ValueError):
    """`line` and `why` of a document that cannot be read."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line = line
        self.why = why


def read_toml(source: str) -> dict[str, Any]:
    """The tables of a document, with `Decimal` for its fractions. Raises `TomlFault`."""
    if len(source) > MOST_CHARACTERS:
        raise TomlFault(1, f"the document is longer than {MOST_CHARACTERS:,} characters")
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) > LONGEST_LINE:
            raise TomlFault(number, f"the line is longer than {LONGEST_LINE:,} characters")
    try:
        return tomllib.loads(source, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        line_of = int(place[1]) if place and place[1] else source.count("\n") + 1
        raise TomlFault(line_of, _PLACE.sub("", str(error))) from error
    except RecursionError:
        raise TomlFault(1, "it is nested too deeply") from None
    except (ValueError, ArithmeticError):  # an integer or an exponent of thousands of digits
        raise TomlFault(1, "a number in it is too long to be read") from None
