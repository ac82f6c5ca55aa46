"""What kind of work a request asks for, from its structure first and its words second.

Deterministic, and blind to case, spacing and punctuation. The caller's own word wins. The
scores are sums of weights over the distinct words and short phrases of the last user
message; the weights (`task_words.py`) were set by hand.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shared.domain.inference import Capability, InferenceRequest
from shared.domain.task_words import CHAT, PHRASE_STARTS, TABLES, WEIGHTS

TASK_TYPES = ("reasoning", "code", "extraction", "chat", "tool_use", "embed", "general")

# Words past these say nothing new of what is wanted: an instruction stands first or last.
HEAD_WORDS, TAIL_WORDS = 250, 100

_TOOL_BLOCKS = frozenset({"tool_use", "tool_result"})
_EMBEDDING_FIELDS = frozenset({"encoding_format", "dimensions"})
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_CHOICES = frozenset("abcd")
_QUIZ_ENDS = frozenset({"answer", "d", "e"})

MANY_NUMBERS = 6
OPENING_WORDS = 12
GENERAL_HEADSTART = 1.5  # a text is a general question until its words say otherwise
CERTAIN = 6.0


def classify(request: InferenceRequest) -> str:
    """One of `TASK_TYPES`."""
    if request.hint.task_type in TASK_TYPES:
        return request.hint.task_type
    return _by_structure(request) or classify_text(_asked(request), _wants_schema(request))


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


def _wants_schema(request: InferenceRequest) -> bool:
    return Capability.JSON_SCHEMA in request.capabilities


def _asked(request: InferenceRequest) -> str:
    """The text of the last user message."""
    for message in reversed(request.messages):
        if message.role == "user":
            return "\n".join(b["text"] for b in message.content if b.get("type") == "text")
    return ""


def classify_text(text: str, wants_schema: bool = False) -> str:
    """The task type that the words of `text` speak for; `general` where none does."""
    return _verdict(scores(normal_words(text)), wants_schema)


def normal_words(text: str) -> list[str]:
    """Words in folded case without punctuation; the middle of a long text is left out."""
    words = text.split()
    if len(words) > HEAD_WORDS + TAIL_WORDS:
        words = words[:HEAD_WORDS] + words[-TAIL_WORDS:]
    return _PUNCTUATION.sub("", " ".join(words).casefold()).split()


def scores(words: list[str]) -> dict[str, float]:
    """How much the words speak for each type. A term counts once, however often it stands."""
    terms = _terms(words)
    found = dict.fromkeys(TABLES, 0.0)
    for term in terms & WEIGHTS.keys():
        for task, weight in WEIGHTS[term]:
            found[task] += weight
    found["general"] += GENERAL_HEADSTART
    numbers = min(sum(word[0].isdigit() for word in words), MANY_NUMBERS)
    if _is_quiz(words, terms):
        # one question with choices: it is answered, not written, and its numbers are choices
        return {
            "code": found["code"] * 0.3,
            "reasoning": found["reasoning"] + numbers * 0.2,
            "chat": 0.0,
            "extraction": 0.0,
            "general": found["general"] + 1.0,
        }
    found["reasoning"] += numbers * 0.6
    opening = _terms(words[:OPENING_WORDS])
    found["chat"] += sum(CHAT[term] for term in opening & CHAT.keys())
    return found


def _terms(words: list[str]) -> set[str]:
    """The words, and the twos and threes that begin as some phrase of the tables does."""
    terms = set(words)
    for at, word in enumerate(words):
        if word in PHRASE_STARTS:
            terms.add(" ".join(words[at : at + 2]))
            terms.add(" ".join(words[at : at + 3]))
    return terms


def _is_quiz(words: list[str], terms: set[str]) -> bool:
    return terms >= _CHOICES and bool(words) and words[-1] in _QUIZ_ENDS


def _verdict(found: dict[str, float], wants_schema: bool) -> str:
    """Programs and extraction are told by a few strong words, whatever else the text is about."""
    if wants_schema:
        found = found | {"extraction": found["extraction"] + CERTAIN}
    if found["code"] >= CERTAIN and found["code"] >= found["extraction"]:
        return "code"
    if found["extraction"] >= CERTAIN and found["extraction"] >= found["chat"]:
        return "extraction"
    return max(TABLES, key=found.__getitem__)
