"""What kind of work a request asks for, from its structure first and its words second.

Structure decides alone where it can: tools offered, a tool's answer, an embedding's fields.
Otherwise a wanted JSON schema, a code fence and an attached image or document give their type a
lead, and the words of the last user message the rest: whole numbers, learned by
`python -m tests.bench.classifying --fit`, which also shows how well they do.

**Rephrasing.** Words are read as the row of ASCII letters and digits that is left when case,
spacing and punctuation are gone: `Step by step`, `step-by-step` and `STEPBYSTEP!` are the same.
So no change of these three changes what the words say, as long as the text's ends (`HEAD_READ`
and `TAIL_READ` characters, looked at so that a text of any size costs the same) still hold the
letters that count, or the whole text. A code fence is not punctuation but structure: to take the
three backticks away is to ask something else.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from shared.domain.inference import Block, Capability, InferenceRequest
from shared.domain.task_words import WEIGHTS

TASK_TYPES = ("reasoning", "code", "extraction", "chat", "tool_use", "embed", "general")
TOLD_BY_WORDS = ("code", "reasoning", "general", "chat", "extraction")  # the order of WEIGHTS

# Letters past these say nothing new of what is wanted: an instruction stands first or last.
HEAD_LETTERS, TAIL_LETTERS = 450, 200
HEAD_READ, TAIL_READ = 1_500, 750
FENCE_WITHIN, FENCED_READ = 10_000, 1_000
BLOCKS_READ = 50

SHORTEST = 4  # letters of a term
BRIEF_LETTERS = 10
MANY_NUMBERS = 6

WANTED_SCHEMA = 40  # tenths, as the weights are
CODE_FENCE = 60
SEEN_IMAGE = 30
READ_DOCUMENT = 15

_TOOL_BLOCKS = frozenset({"tool_use", "tool_result"})
_EMBEDDING_FIELDS = frozenset({"encoding_format", "dimensions"})
_DATA_FENCES = frozenset(
    {
        *("text", "txt", "plain", "plaintext", "md", "markdown", "email", "quote", "output"),
        *("json", "jsonl", "csv", "tsv", "yaml", "yml", "xml", "toml", "ini", "log", "logs"),
        *("latex", "tex", "math"),
    }
)
_LANGUAGE = re.compile(r"```([\w+#-]{1,20})\s")
_PROGRAM_MARKS = ("=", "{", ";", "->", "</")
_DIGITS = re.compile(r"[0-9]+")
_LOWER = bytes(range(256)).lower()
_NEITHER_LETTER_NOR_DIGIT = bytes(n for n in range(128) if not chr(n).isalnum())

_Scores = list[int]


def _start(term: str) -> int:
    return memoryview(term[:SHORTEST].encode("ascii")).cast("I")[0]


def _by_start(terms: Iterable[str]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for term in sorted(terms):
        found[_start(term)] = (*found.get(_start(term), ()), term)
    return found


# Four letters are one machine word: so a text is compared with the starts of all terms at once.
_INSIDE = _by_start(term for term in WEIGHTS if term.isalnum())
_STARTS = frozenset(_INSIDE)
_OPENINGS = tuple(sorted(term[1:] for term in WEIGHTS if term[0] == "^"))
_OPENING_STARTS = tuple(sorted({opening[:SHORTEST] for opening in _OPENINGS}))


def classify(request: InferenceRequest) -> str:
    """One of `TASK_TYPES`."""
    if request.hint.task_type in TASK_TYPES:
        return request.hint.task_type
    return _by_structure(request) or _by_lead_and_words(request)


def _by_structure(request: InferenceRequest) -> str | None:
    tools_offered = bool(request.tools) or Capability.TOOLS in request.capabilities
    if tools_offered and (request.tool_choice is None or request.tool_choice.mode != "none"):
        return "tool_use"
    if request.messages and _has_tool_block(request.messages[-1].content):
        return "tool_use"
    if not _EMBEDDING_FIELDS.isdisjoint(request.body):
        return "embed"
    return None


def _has_tool_block(blocks: Iterable[Mapping[str, Any]]) -> bool:
    return any(block.get("type") in _TOOL_BLOCKS for block in blocks)


def _by_lead_and_words(request: InferenceRequest) -> str:
    blocks = _asked(request)
    lead = [0] * len(TOLD_BY_WORDS)
    if Capability.JSON_SCHEMA in request.capabilities:
        lead[TOLD_BY_WORDS.index("extraction")] += WANTED_SCHEMA
    kinds = {block.get("type") for block in islice(blocks, BLOCKS_READ)}
    if "image" in kinds:  # it is asked about: small talk brings no pictures
        lead[TOLD_BY_WORDS.index("general")] += SEEN_IMAGE
    if "document" in kinds:  # it is there to be read
        lead[TOLD_BY_WORDS.index("extraction")] += READ_DOCUMENT
    return classify_text(_text_of(blocks), lead)


def _asked(request: InferenceRequest) -> tuple[Block, ...]:
    """The last user message."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.content
    return ()


def _text_of(blocks: tuple[Block, ...]) -> str:
    """The text of the message, or of the first and the last blocks of a great many."""
    if len(blocks) > BLOCKS_READ:
        blocks = blocks[: BLOCKS_READ // 2] + blocks[-BLOCKS_READ // 2 :]
    texts = [block["text"] for block in blocks if block.get("type") == "text"]
    if len(texts) > 1:  # enough of each that the ends of the whole are among them
        texts = [_ends(text) for text in texts]
    return "\n".join(texts)


def _ends(text: str) -> str:
    if len(text) <= HEAD_READ + TAIL_READ:
        return text
    return f"{text[:HEAD_READ]}\n{text[-TAIL_READ:]}"


def classify_text(text: str, lead: Iterable[int] = ()) -> str:
    """The task type that `text` speaks for, its code fence and the `lead` of each type included."""
    found = [*lead] or [0] * len(TOLD_BY_WORDS)
    found[TOLD_BY_WORDS.index("code")] += fence(text)
    for sign, times in signs(letters(text)):
        for at, weight in enumerate(WEIGHTS.get(sign, ())):
            found[at] += weight * times
    return TOLD_BY_WORDS[found.index(max(found))]


def fence(text: str) -> int:
    """How much the first fence speaks for code: by its language, else by what it holds."""
    at = text.find("```", 0, FENCE_WITHIN)
    if at < 0:
        return 0
    opened = _LANGUAGE.match(text, at)
    if opened is None:
        return CODE_FENCE if _is_program(text[at : at + FENCED_READ]) else 0
    return 0 if opened[1].casefold() in _DATA_FENCES else CODE_FENCE


def _is_program(text: str) -> bool:
    """Whether it has what prose has not: a call's bracket stands right behind its name."""
    return any(mark in text for mark in _PROGRAM_MARKS) or "(" in text.replace(" (", "")


def letters(text: str) -> str:
    """The letters and digits of the text, in small letters; the middle of a long text is a space.

    Only ASCII counts, since the terms are English. Other letters are folded first, by `upper`
    and then `casefold`, so that `ß`, `SS` and `ss` are alike.
    """
    if len(text) <= HEAD_READ + TAIL_READ:
        found = _squeezed(text)
        if len(found) <= HEAD_LETTERS + TAIL_LETTERS:
            return found
        return f"{found[:HEAD_LETTERS]} {found[-TAIL_LETTERS:]}"
    head = _squeezed(text[:HEAD_READ])[:HEAD_LETTERS]
    return f"{head} {_squeezed(text[-TAIL_READ:])[-TAIL_LETTERS:]}"


def _squeezed(text: str) -> str:
    if not text.isascii():
        text = text.upper().casefold()
    kept = text.encode("ascii", "ignore").translate(_LOWER, _NEITHER_LETTER_NOR_DIGIT)
    return kept.decode("ascii")


def signs(squeezed: str) -> Iterator[tuple[str, int]]:
    """What speaks for a type, and how often: each term once, numbers up to `MANY_NUMBERS`."""
    yield "*always", 1
    numbers = min(len(_DIGITS.findall(squeezed)), MANY_NUMBERS)
    yield "*number", numbers
    if squeezed.endswith("answer"):
        yield "*quiz", 1
        yield "*quiz number", numbers
    if " " in squeezed:
        yield "*long", 1
    elif 0 < len(squeezed) <= BRIEF_LETTERS and not numbers:
        yield "*brief", 1
    if squeezed.startswith(_OPENING_STARTS):
        yield from ((f"^{words}", 1) for words in _OPENINGS if squeezed.startswith(words))
    yield from ((term, 1) for term in _terms(squeezed))


def _terms(squeezed: str) -> Iterable[str]:
    """The terms that stand in it, by their starts, which are looked for at every letter."""
    found: set[int] = set()
    whole = memoryview(squeezed.encode("ascii"))
    for first in range(min(SHORTEST, len(whole))):
        words = (len(whole) - first) // SHORTEST
        found |= _STARTS.intersection(whole[first : first + words * SHORTEST].cast("I"))
    return (term for start in sorted(found) for term in _INSIDE[start] if term in squeezed)
