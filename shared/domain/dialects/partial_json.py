"""JSON that was cut off, as a model's tool arguments are when it runs out of tokens."""

import json
from typing import Any

_CLOSING = {"{": "}", "[": "]"}


def parse_partial(text: str) -> Any:
    """The value of a JSON text, or of what is complete of it when it is only a prefix.

    A string, number or word that the end cuts is left out, and so is a key without its value.
    Raises ValueError where the text is no prefix of JSON at all.
    """
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(_completed(text))


def _completed(text: str) -> str:
    """The text up to the last point where a value was complete, with all brackets closed."""
    open_brackets: list[str] = []
    best = ""
    in_string = escaped = expecting_key = False
    is_key = False
    for at, char in enumerate(text):
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
                if not is_key:
                    best = text[: at + 1] + _closers(open_brackets)
            continue
        if char == '"':
            in_string, is_key = True, expecting_key
        elif char in _CLOSING:
            open_brackets.append(char)
            expecting_key = char == "{"
            best = text[: at + 1] + _closers(open_brackets)
        elif char in "}]":
            if open_brackets:
                open_brackets.pop()
            best = text[: at + 1] + _closers(open_brackets)
        elif char == ",":
            best = text[:at] + _closers(open_brackets)
            expecting_key = bool(open_brackets) and open_brackets[-1] == "{"
        elif char == ":":
            expecting_key = False
    return best


def _closers(open_brackets: list[str]) -> str:
    return "".join(_CLOSING[bracket] for bracket in reversed(open_brackets))
