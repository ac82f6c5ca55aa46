"""JSON that was cut off, as a model's tool arguments are when it runs out of tokens."""

import json
import re
from typing import Any

_CLOSING = {"{": "}", "[": "]"}
# what may follow the last complete value of a prefix: a comma, a key, the start of a value
_VALUE_START = r'(?:"(?:[^"\\]|\\.)*\\?|-|-?[0-9][0-9.eE+-]*|tr?u?|fa?l?s?|nu?l?)'
_CUT_TAIL = re.compile(
    rf"""\s*,?\s*(?:"(?:[^"\\]|\\.)*"\s*(?::\s*{_VALUE_START}?)?|{_VALUE_START})?""", re.DOTALL
)


def parse_partial(text: str) -> Any:
    """The value of a JSON text, or of what is complete of it when it is only a prefix.

    A string or word that the end cuts is left out, and so is a key without its value.
    Raises ValueError where the text is no prefix of JSON at all.
    """
    try:
        return json.loads(text)
    except ValueError:
        end, brackets, all_brackets = _last_complete(text)
    try:
        return json.loads(text + _closers(all_brackets))
    except ValueError:
        if not _CUT_TAIL.fullmatch(text, end):
            raise
        return json.loads(text[:end] + _closers(brackets))


def _last_complete(text: str) -> tuple[int, str, str]:
    """`(where the last complete value ends, brackets open there, brackets open at the end)`."""
    brackets, found = "", (0, "")
    at = 0
    while at < len(text):
        char = text[at]
        if char == '"':
            closing = _string_end(text, at)
            if closing < 0:
                break
            if not _is_key(text, at, brackets):
                found = (closing + 1, brackets)
            at = closing
        elif char in _CLOSING:
            brackets += char
            found = (at + 1, brackets)
        elif char in "}]":
            brackets = brackets[:-1]
            found = (at + 1, brackets)
        elif char == ",":
            found = (at, brackets)
        at += 1
    return (*found, brackets)


def _string_end(text: str, start: int) -> int:
    """Where the quote is that ends the string begun at `start`, or -1."""
    at = start + 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == '"':
            return at
        at += 1
    return -1


def _is_key(text: str, start: int, brackets: str) -> bool:
    """Whether the string begun at `start` is a key: in an object, and not after a colon."""
    before = start - 1
    while before >= 0 and text[before].isspace():
        before -= 1
    return brackets.endswith("{") and text[before : before + 1] != ":"


def _closers(brackets: str) -> str:
    return "".join(_CLOSING[bracket] for bracket in reversed(brackets))
