"""What must never reach a log: secrets and clients' words, found by key and by shape.

By key: whatever stands under a name that holds one of `SECRET_WORDS`, at any depth, also in
text that was made from such a structure (a `repr` in a message or a traceback), where it is
taken to the end of the value or, without quotes, of the line. Measures stay: `input_tokens`
is no token and `content_type` no content.
By shape: anything that looks like a key of ours or a vendor's, a bearer token, a JWT, a
password in an address, or the input that a validation error or a failed statement repeats.
"""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import pairwise
from typing import Any

SCRUBBED = "[scrubbed]"
SECRET_WORDS = frozenset(
    """
    apikey authorization content contents cookie cookies messages passwd password passwords
    prompt prompts secret secrets token
    """.split()  # noqa: SIM905 - a list of words reads as one
)
# a key alone tells nothing, these pairs do
SECRET_PAIRS = frozenset(
    (kind, "key") for kind in ("api", "internal", "master", "private", "signing")
)
MEASURES = frozenset(("bytes", "count", "length", "tokens", "type"))

_DEEPEST = 16
_LONGEST_TEXT = 16_384

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# a secret may follow an escape (`\n`, `\x1b`, `%3D`) whose last letter belongs to the escape
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[abfnrtv])|(?<=\\x[0-9a-fA-F]{2})|(?<=%[0-9a-fA-F]{2}))"
_SHAPES = re.compile(
    "|".join(
        (
            r"ai_infera_[A-Za-z0-9_\-]+",
            r"ainfera_[A-Za-z0-9_\-]{8,}",
            _START + r"sk-[A-Za-z0-9_\-]{6,}",
            r"(?i:bearer)(?:\s|\\[nrt]|%20|\+)+[^\s\"',;)}\]\\]+",
            r"eyJ[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*)?",
            r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)",
            r"(?<=input_value=)(?s:.*?)(?=, input_type=|\Z)",
            r"(?<=\[parameters: )(?s:.*?)(?=\]\n|\]?\Z)",
        )
    )
)
# a text without any of these cannot match, and most have none
_SHAPE_MARKS = ("infera_", "sk-", "bearer", "eyj", "://", "input_value=", "[parameters: ")

_NAMES = "|".join((*sorted(SECRET_WORDS), *(f"{a}[_-]?{b}" for a, b in sorted(SECRET_PAIRS))))
_NAME_MARKS = (*sorted(SECRET_WORDS - {"apikey"}), "key")
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_PAIR = re.compile(
    rf"(?P<name>\b(?!\w*(?:{'|'.join(sorted(MEASURES))})\b)"
    rf"[\w-]*?(?:{_NAMES})(?![a-z])[\w-]*\\*[\"']?\s*[=:]\s*)"
    rf"(?:b?(?:{_QUOTED})|[\[({{]\s*\n(?s:.*)|[^\n]+)",
    re.IGNORECASE,
)


@lru_cache(4096)
def secret_name(name: str) -> bool:
    """Whether what stands under this name may not be logged."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in MEASURES:
        return False
    if not SECRET_WORDS.isdisjoint(words):
        return True
    return not SECRET_PAIRS.isdisjoint(pairwise(words))


def scrub(value: Any, depth: int = 0) -> Any:
    """The same value fit for a log: JSON types only, secrets replaced, depth and length bounded."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return scrub_text(value)
    if depth >= _DEEPEST:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {
            scrub_text(str(name)): SCRUBBED if secret_name(str(name)) else scrub(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | AbstractSet):
        return [scrub(item, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return scrub_text(bytes(value).decode(errors="replace"))
    return scrub_text(str(value))


def scrub_text(text: str) -> str:
    """Text without anything that has the shape of a secret, or that stands under its name."""
    if len(text) > _LONGEST_TEXT:
        # cut between words: half a secret would not be recognised
        kept = text[:_LONGEST_TEXT].rpartition(" ")[0]
        text = f"{kept} … ({len(text)} characters)"
    lowered = text.lower()
    if any(mark in lowered for mark in _SHAPE_MARKS):
        text = _SHAPES.sub(SCRUBBED, text)
    if ("=" in text or ":" in text) and any(mark in lowered for mark in _NAME_MARKS):
        text = _PAIR.sub(rf"\g<name>{SCRUBBED}", text)
    return text
