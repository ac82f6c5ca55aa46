"""What is wrong with a request's fields, in our own words: the field's path, then what it must be.

Bodies and queries of our own routes are checked by pydantic, whose sentences are for programmers
of Python. What is said here repeats nothing that the client sent.
"""

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError

from shared.domain.counting import counted, listed
from shared.errors import InvalidBody

# where a field is, and not its name
PLACES = ("body", "query", "path", "header")
UNKNOWN = "extra_forbidden"

_PLAIN = {
    UNKNOWN: "There is no such field.",
    "missing": "is needed.",
    "json_invalid": "is not JSON.",
    "timezone_aware": "must say its time zone, as in 2030-01-01T00:00:00Z.",
    "decimal_max_places": "must have at most {decimal_places} decimal places.",
    "greater_than": "must be more than {gt}.",
    "greater_than_equal": "must be at least {ge}.",
    "less_than": "must be less than {lt}.",
    "less_than_equal": "must be at most {le}.",
    "string_pattern_mismatch": "must match {pattern}.",
}
_KINDS = {
    "string": "a string",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "datetime": "a moment in ISO 8601",
    "uuid": "a UUID",
}


def invalid_fields(error: RequestValidationError) -> InvalidBody:
    """The first field at fault. One that nobody knows goes before one that is missing: it is most
    often the same one, mistyped."""
    fault = min(error.errors(), key=lambda each: each["type"] != UNKNOWN)
    places = () if fault["type"] == "json_invalid" else fault["loc"]
    where = ".".join(str(part) for part in places if part not in PLACES)
    return InvalidBody(f"{where or 'body'}: {in_words(fault)}", param=where or None)


def in_words(fault: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a sentence; pydantic's own where there is no plainer one."""
    kind, about = fault["type"], fault.get("ctx") or {}
    if kind in _PLAIN:
        return _PLAIN[kind].format(**about)
    if kind in ("enum", "literal_error"):
        return f"must be one of {_choices(about['expected'])}."
    if kind == "too_short":
        return f"must hold at least {counted(about['min_length'], 'item')}."
    if kind == "too_long":
        return f"must hold at most {counted(about['max_length'], 'item')}."
    if kind == "string_too_short":
        return f"must have at least {counted(about['min_length'], 'character')}."
    if kind == "string_too_long":
        return f"must have at most {counted(about['max_length'], 'character')}."
    if kind == "value_error":
        return f"{about['error']}."
    if (name := kind.partition("_")[0]) in _KINDS:
        return f"must be {_KINDS[name]}."
    return str(fault["msg"])


def _choices(expected: str) -> str:
    """`'a', 'b' or 'c'`, as pydantic lists them, without the quotes."""
    names = expected.replace(" or ", ", ").replace("'", "").split(", ")
    return listed(names, "or") if len(names) == 2 else ", ".join(names)
