"""What can be told of an answer without a judge: did it end by itself, and does it hold together.

Three checks, each only where it applies: code in a fence parses, JSON matches the schema that was
asked for, the arguments of a tool call match the tool's schema. Nothing is run. What cannot be
told for sure is `NOT_CHECKED`, never `FAILED`: languages without a parser here, schemas with
regular expressions, syntax that is newer than this interpreter, what is too large.

No word of the answer is in the result.
"""

import ast
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from shared.domain.answered import Answered, Finish, ToolUse
from shared.domain.inference import FinishReason, InferenceRequest
from shared.domain.json_schema import Fit, fits

# Longer answers are not read, longer schemas not kept, in bytes; a longer piece of code not parsed.
LARGEST_ANSWER = 512 * 1024
LARGEST_ASKED = 64 * 1024
LARGEST_CODE = 64 * 1024
MOST_FENCES = 50
# A number with more digits is compared as a decimal: reading it as a whole number takes squarely.
_LONG_NUMBER = 300


class Check(StrEnum):
    """`NONE`: the answer has nothing of the kind, and nothing of the kind was asked for."""

    NONE = "none"
    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not_checked"


# a schema that nothing is known of
_ELSEWHERE = {"$ref": "elsewhere"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asked of its answer's form; holds schemas and names of tools, no other words.

    `whole` is False where `tools` lacks some that were offered, or what was asked is not known.
    """

    wants_json: bool = False
    schema: Any = None
    tools: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "json": self.wants_json,
            "schema": self.schema,
            "tools": dict(self.tools),
            "whole": self.whole,
        }

    def without_schemas(self) -> "Asked":
        """The same where the schemas are too large to be kept: nothing can be held against them."""
        return Asked(self.wants_json, None if self.schema is None else _ELSEWHERE, whole=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Asked":
        return cls(data["json"], data["schema"], data["tools"], data["whole"])


NOTHING_ASKED = Asked()


def asked_of(request: InferenceRequest, finish: FinishReason) -> Asked | None:
    """What is worth keeping of a request once its answer has ended; None if that is nothing."""
    if finish is FinishReason.TOOL_CALLS:
        offered = len(request.body.get("tools") or ())
        tools = {tool.name: tool.parameters for tool in request.tools}
        return Asked(tools=tools, whole=offered <= len(tools))
    wanted = request.response_format or {}
    if wanted.get("type") == "json_object":
        return Asked(wants_json=True)
    if wanted.get("type") == "json_schema":
        return Asked(wants_json=True, schema=wanted["json_schema"].get("schema"))
    return None


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of one answer; `note` says why not more is: `gone`, `too_large`, `too_hard`."""

    finish: Finish
    code: Check = Check.NONE
    json: Check = Check.NONE
    tools: Check = Check.NONE
    note: str | None = None

    @property
    def checks(self) -> tuple[Check, Check, Check]:
        return self.code, self.json, self.tools

    @property
    def checked(self) -> bool:
        """Whether anything but its ending could be told of the answer."""
        return Check.PASSED in self.checks or Check.FAILED in self.checks

    @property
    def reward(self) -> int | None:
        """1: ended by itself and failed no check. 0: did not, or failed one. None: not known.

        A client that leaves says nothing about the model, and neither does an answer that is gone.
        """
        if self.finish in (Finish.CANCELLED, Finish.UNKNOWN):
            return None
        if self.finish is not Finish.BY_ITSELF or Check.FAILED in self.checks:
            return 0
        return None if self.note is not None else 1


def judge(answered: Answered, asked: Asked = NOTHING_ASKED) -> Signals:
    """The signals of an answer that was told to its end. An answer that was cut off is not
    checked: that it does not hold together is not news."""
    if answered.finish is not Finish.BY_ITSELF:
        return Signals(answered.finish)
    return Signals(
        answered.finish,
        code=check_fences(answered.text),
        json=check_json(answered, asked),
        tools=check_tools(answered.tools, asked),
    )


# -- JSON and tools ----------------------------------------------------------------------------


def read_json(text: str) -> Any:
    """Strict JSON with exact numbers. Raises ValueError or RecursionError."""
    return json.loads(text, parse_float=Decimal, parse_int=_whole, parse_constant=_no_constant)


def _whole(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _LONG_NUMBER else Decimal(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def check_json(answered: Answered, asked: Asked) -> Check:
    if not asked.wants_json or answered.tools:
        return Check.NONE
    try:
        value = read_json(answered.text)
    except ValueError:
        return Check.FAILED
    except RecursionError:
        return Check.NOT_CHECKED
    if asked.schema is None:
        return Check.PASSED if isinstance(value, dict) else Check.FAILED
    return _told(fits(asked.schema, value))


def check_tools(used: Iterable[ToolUse], asked: Asked) -> Check:
    return worst(_check_tool(each, asked) for each in used)


def _check_tool(used: ToolUse, asked: Asked) -> Check:
    if used.name not in asked.tools:
        return Check.FAILED if asked.whole else Check.NOT_CHECKED
    arguments = used.arguments
    try:
        if isinstance(arguments, str):
            arguments = read_json(arguments.strip() or "{}")
    except ValueError:
        return Check.FAILED
    except RecursionError:
        return Check.NOT_CHECKED
    if not isinstance(arguments, dict):
        return Check.FAILED
    return _told(fits(asked.tools[used.name], arguments))


def _told(fit: Fit) -> Check:
    return Check.NOT_CHECKED if fit is Fit.UNSURE else Check(fit.value)


def worst(found: Iterable[Check]) -> Check:
    """One that failed decides, else one that passed: what was not checked says nothing."""
    every = set(found)
    for decisive in (Check.FAILED, Check.PASSED, Check.NOT_CHECKED):
        if decisive in every:
            return decisive
    return Check.NONE


# -- code --------------------------------------------------------------------------------------


def check_fences(text: str) -> Check:
    found = []
    for number, (language, code) in enumerate(fences(text)):
        if number == MOST_FENCES:
            break
        parse = _PARSERS.get(language)
        known = parse is not None and len(code) <= LARGEST_CODE
        found.append(parse(code) if parse is not None and known else Check.NOT_CHECKED)
    return worst(found)


def fences(text: str) -> Iterator[tuple[str, str]]:
    """`(language, code)` of each fenced block; one that is not closed goes to the end."""
    fence, language, lines = "", "", list[str]()
    for line in text.splitlines():
        bare = line.strip()
        if not fence:
            if bare.startswith(("```", "~~~")):
                fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
                words = bare[len(fence) :].split(maxsplit=1)
                language, lines = (words[0].lower() if words else ""), []
        elif bare.startswith(fence) and not bare.strip(fence[0]):
            yield language, "\n".join(lines)
            fence = ""
        else:
            lines.append(line)
    if fence:
        yield language, "\n".join(lines)


# Consoles show more than code, notebooks have commands of their own.
_NOT_PLAIN = re.compile(r"^ *(>>>|\.\.\. |In \[|[%!])", re.MULTILINE)
# What later versions of the language allow; where it occurs, a failure may be our age.
_NEWER = re.compile(
    r"^ *type +\w|^ *(async +)?(def|class) +\w+ *\[|^ *except +[\w.]+ *,|\b[rR]?[ftFT][rR]?[\"']",
    re.MULTILINE,
)


def _python(code: str) -> Check:
    if _NOT_PLAIN.search(code):
        return Check.NOT_CHECKED
    try:
        ast.parse(textwrap.dedent(code))
    except (RecursionError, MemoryError):
        return Check.NOT_CHECKED
    except (SyntaxError, ValueError):
        return Check.NOT_CHECKED if _NEWER.search(code) else Check.FAILED
    return Check.PASSED


def _json(code: str) -> Check:
    return _parsed(read_json, code)


def _toml(code: str) -> Check:
    return _parsed(tomllib.loads, code)


def _parsed(parse: Callable[[str], Any], code: str) -> Check:
    try:
        parse(code)
    except RecursionError:
        return Check.NOT_CHECKED
    except ValueError:
        return Check.FAILED
    return Check.PASSED


_PARSERS: Mapping[str, Callable[[str], Check]] = {
    **dict.fromkeys(("python", "py", "python3"), _python),
    "json": _json,
    "toml": _toml,
}
