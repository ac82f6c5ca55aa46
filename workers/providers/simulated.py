"""A provider without a model behind it: the same request is always given the same answer.

It streams word by word, calls a tool where tools are offered, keeps to `max_tokens`, to stop
sequences and to a JSON schema, and says of itself that it is simulated. A request can ask it
for more in its metadata, as an object or as the JSON text of one:

    {"simulate": {"fail": "before_first_token" | "midstream" | "hang",
                  "latency_ms": 250, "token_ms": 20, "tokens": 100}}
"""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from shared.config import Settings
from shared.domain.dialects.wishes import unknown_wishes
from shared.domain.estimate import estimate_input_tokens
from shared.domain.inference import (
    Completed,
    Dialect,
    Failed,
    Failure,
    FinishReason,
    InferenceRequest,
    Started,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from workers.providers.faults import provider_error, unreachable
from workers.providers.provider import ProviderCall
from workers.providers.schema_example import example
from workers.providers.watch import OutOfTime, Silent

NAME = "simulated"
FAILURES = ("before_first_token", "midstream", "hang")
MAX_TOKENS = 100_000
LEXICON = (
    "a all an and answer any as at begins between by call carries clear each ends every "
    "first for from gives here holds in is it keeps last line long model next no of on one "
    "only open order other over path place plain question reads road same says second short "
    "so some still stream that the then there this through to token turn under way while "
    "with word"
)
WORDS = tuple(LEXICON.split(" "))


@dataclass(frozen=True, slots=True)
class Wishes:
    """How one answer shall go. Times in seconds; `tokens` None: as the request's content has it."""

    fail: str | None
    first_token_s: float
    token_s: float
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Script:
    """An answer before it is spoken: its words as events, one token each, and its end."""

    id: str
    words: tuple[StreamEvent, ...]
    completed: Completed


class SimulatedProvider:
    """Stands in for every provider that was not configured."""

    dialect: Dialect | None = None
    simulated = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def stream(self, call: ProviderCall) -> AsyncGenerator[StreamEvent, None]:
        """See `Provider.stream`."""
        total_s = self._settings.call_deadline_s
        deadline_s = total_s if call.deadline_s is None else min(call.deadline_s, total_s)
        ends_at = asyncio.get_running_loop().time() + deadline_s
        wishes = self._wishes(call)
        if wishes.fail is not None and wishes.fail not in FAILURES:
            yield Failed(_unknown_failure())
            return
        written = script(call, wishes.tokens)
        if wishes.fail == "hang":
            await asyncio.sleep(min(self._settings.idle_deadline_s, deadline_s))
            yield Failed(unreachable(NAME, Silent()).failure)
            return
        await asyncio.sleep(min(wishes.first_token_s, deadline_s))
        if wishes.fail == "before_first_token":
            yield Failed(_on_demand())
            return
        ignored = tuple(unknown_wishes(call.request.body))
        yield Started(written.id, Usage(written.completed.usage.input_tokens), ignored)
        for number, word in enumerate(written.words):
            if number:
                await asyncio.sleep(wishes.token_s)
            if asyncio.get_running_loop().time() >= ends_at:
                yield Failed(unreachable(NAME, OutOfTime()).failure)
                return
            if wishes.fail == "midstream" and number > 0 and number >= len(written.words) // 2:
                yield Failed(_on_demand(), Usage(written.completed.usage.input_tokens, number))
                return
            yield word
        yield written.completed

    def _wishes(self, call: ProviderCall) -> Wishes:
        asked = _asked_for(call.request.metadata)
        settings = self._settings
        first = _number(asked, "latency_ms", settings.simulated_first_token_ms)
        token = _number(asked, "token_ms", settings.simulated_token_ms)
        tokens = asked.get("tokens")
        return Wishes(
            fail=self._mishap(call) if asked.get("fail") is None else asked["fail"],
            first_token_s=first / 1000,
            token_s=token / 1000,
            tokens=min(tokens, MAX_TOKENS) if isinstance(tokens, int) and tokens > 0 else None,
        )

    def _mishap(self, call: ProviderCall) -> str | None:
        """A failure at the set rate, drawn from the inference id: another call, another draw."""
        if not self._settings.simulated_failure_rate:
            return None
        draw = random.Random(f"{call.seed}:{call.model}")
        if draw.random() >= self._settings.simulated_failure_rate:
            return None
        return draw.choice(("before_first_token", "midstream"))


def _asked_for(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """`simulate` of the metadata; clients whose metadata holds only strings write it as JSON."""
    asked = metadata.get("simulate")
    if isinstance(asked, str):
        try:
            asked = orjson.loads(asked)
        except orjson.JSONDecodeError:
            return {}
    return asked if isinstance(asked, Mapping) else {}


def _number(asked: Mapping[str, Any], name: str, default: float) -> float:
    value = asked.get(name)
    return max(float(value), 0.0) if isinstance(value, int | float) else default


def _unknown_failure() -> Failure:
    field = "metadata.simulate.fail"
    known = ", ".join(FAILURES)
    return Failure("invalid_request", 400, f"{field}: must be one of {known}", {"param": field})


def _on_demand() -> Failure:
    return provider_error(NAME, "The simulated provider failed, as it was asked to.", 500)


def script(call: ProviderCall, tokens: int | None) -> Script:
    """The answer to a request; a pure function of what it asks and of the model."""
    request = call.request
    draw = random.Random(fingerprint(call))
    limit = request.max_tokens or call.max_output_tokens
    tool = tool_to_call(request, draw)
    thoughts = _thoughts(request)
    if tool is not None:
        words = _tool_words(tool, draw)
        finish, native, stopped_by = FinishReason.TOOL_CALLS, "tool_calls", None
    else:
        text, stopped_by = _until_stop(_text(call, tokens, draw), request.stop)
        words = [TextDelta(word) for word in re.findall(r"\s*\S+|\s+$", text)]
        finish, native = FinishReason.STOP, "stop_sequence" if stopped_by else "stop"
    spoken = [*thoughts, *words]
    if len(spoken) > limit:
        spoken = spoken[:limit]
        finish, native, stopped_by = FinishReason.LENGTH, "length", None
    usage = Usage(estimate_input_tokens(request), len(spoken))
    completed = Completed(finish, native, usage, stop_sequence=stopped_by)
    return Script(f"simulated-{draw.getrandbits(64):016x}", tuple(spoken), completed)


def fingerprint(call: ProviderCall) -> bytes:
    """What the answer depends on: the model and all that the model would have been shown."""
    request = call.request
    shown = {
        "model": call.model,
        "system": request.system,
        "messages": [[message.role, message.content] for message in request.messages],
        "tools": [[t.name, t.description, t.parameters] for t in request.tools],
        "choice": request.tool_choice,
        "format": request.response_format,
    }
    return blake2b(orjson.dumps(shown, default=str, option=orjson.OPT_SORT_KEYS)).digest()


def tool_to_call(request: InferenceRequest, draw: random.Random) -> Tool | None:
    """The tool a model would be expected to call now, if any."""
    choice = request.tool_choice
    mode = choice.mode if choice is not None else "auto"
    if not request.tools or mode == "none":
        return None
    if choice is not None and mode == "tool":
        return next((tool for tool in request.tools if tool.name == choice.name), None)
    last = request.messages[-1].content if request.messages else ()
    if mode == "auto" and any(block.get("type") == "tool_result" for block in last):
        return None
    return draw.choice(request.tools)


def _thoughts(request: InferenceRequest) -> list[StreamEvent]:
    if (request.thinking or {}).get("type") not in ("enabled", "adaptive"):
        return []
    return [
        ThinkingDelta("There is no model here; "),
        ThinkingDelta("this thought is simulated."),
        ThinkingDelta(signature=NAME),
    ]


def _tool_words(tool: Tool, draw: random.Random) -> list[StreamEvent]:
    arguments = orjson.dumps(example(tool.parameters, draw)).decode()
    pieces = [arguments[at : at + 12] for at in range(0, len(arguments), 12)]
    started = ToolCallStarted(0, f"call_simulated_{draw.getrandbits(48):012x}", tool.name)
    return [started, *(ToolCallDelta(0, piece) for piece in pieces)]


def _text(call: ProviderCall, tokens: int | None, draw: random.Random) -> str:
    wanted = call.request.response_format or {}
    if wanted.get("type") == "json_schema":
        schema = wanted["json_schema"].get("schema") or {}
        return orjson.dumps(example(schema, draw)).decode()
    if wanted.get("type") == "json_object":
        return '{"simulated": true}'
    count = tokens if tokens is not None else draw.randint(16, 48)
    return " ".join(list(_sentences(call.model, draw, count)))


def _sentences(model: str, draw: random.Random, count: int) -> Iterator[str]:
    opening = f"This answer of {model} is simulated:".split()
    yield from opening[:count]
    for _ in range(count - len(opening)):
        yield draw.choice(WORDS)


def _until_stop(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The text before the first stop sequence in it, and that sequence."""
    found = [(text.find(sequence), sequence) for sequence in stop if sequence and sequence in text]
    if not found:
        return text, None
    at, sequence = min(found)
    return text[:at], sequence
