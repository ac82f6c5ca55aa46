"""Answers as canonical events: made up by Hypothesis, and boiled down to what must survive."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from shared.domain.dialects import DIALECTS, WIRES
from shared.domain.inference import (
    Completed,
    Dialect,
    FinishReason,
    Frame,
    Started,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from tests.domain.dialects.vendors import CALL

ANTHROPIC_WORDS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}


@dataclass
class Gist:
    """What no dialect may lose of an answer."""

    text: str = ""
    thinking: str = ""
    signatures: list[str] = field(default_factory=list)
    redacted: list[str] = field(default_factory=list)
    tools: list[tuple[str, str, Any]] = field(default_factory=list)
    finish: FinishReason | None = None
    usage: Usage | None = None


def gist(events: Iterable[StreamEvent]) -> Gist:
    found, arguments = Gist(), {}
    calls: dict[int, tuple[str, str]] = {}
    for event in events:
        match event:
            case TextDelta(text=text):
                found.text += text
            case ThinkingDelta(text=text, signature=signature, redacted=redacted):
                found.thinking += text
                found.signatures += [signature] if signature else []
                found.redacted += [redacted] if redacted else []
            case ToolCallStarted(index=index, id=call_id, name=name):
                calls[index], arguments[index] = (call_id, name), ""
            case ToolCallDelta(index=index, arguments=piece):
                arguments[index] += piece
            case Completed(finish_reason=reason, usage=usage):
                found.finish, found.usage = reason, usage
            case _:
                pass
    found.tools = [(*calls[i], json.loads(arguments[i] or "{}")) for i in sorted(calls)]
    return found


def rendered(events: Iterable[StreamEvent], dialect: Dialect) -> list[Frame]:
    """The whole answer as a client of the dialect gets it."""
    module = DIALECTS[dialect]
    state = module.RenderState(CALL)
    return [frame for event in events for frame in module.render_event(event, state)]


def parsed(frames: Iterable[Frame], dialect: Dialect) -> list[StreamEvent]:
    """What we would make of the frames if a provider sent them."""
    wire = WIRES[dialect]
    state = wire.ParseState()
    events = [event for frame in frames for event in wire.parse_event(*frame, state)]
    return events + wire.end_of_stream(state)


_words = st.text(min_size=1, max_size=12)
_counts = st.integers(min_value=0, max_value=10**7)
_usages = st.builds(Usage, _counts, _counts, _counts, _counts)
_names = st.from_regex(r"[a-zA-Z0-9_-]{1,24}", fullmatch=True)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
_arguments = st.dictionaries(st.text(max_size=6), _json, max_size=4)


@st.composite
def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    bounds = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return [text[a:b] for a, b in bounds if a < b]


@st.composite
def _tool_events(draw: st.DrawFn, index: int) -> list[StreamEvent]:
    value = draw(_arguments)
    text = json.dumps(value, ensure_ascii=draw(st.booleans())) if value else ""
    started = ToolCallStarted(index, f"call_{index}_{draw(_names)}", draw(_names))
    return [started, *(ToolCallDelta(index, piece) for piece in draw(_pieces(text)))]


@st.composite
def _thoughts(draw: st.DrawFn) -> list[StreamEvent]:
    if draw(st.booleans()):
        return [ThinkingDelta(redacted=draw(_names))]
    events: list[StreamEvent] = [ThinkingDelta(t) for t in draw(st.lists(_words, max_size=3))]
    if draw(st.booleans()):
        events.append(ThinkingDelta(signature=draw(_names)))
    return events


@st.composite
def answers(draw: st.DrawFn) -> list[StreamEvent]:
    """An answer with text, reasoning and tool calls in any order, and its end."""
    events: list[StreamEvent] = [Started("upstream-1", draw(_usages))]
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "thinking", "tool"]), max_size=6)):
        if kind == "text":
            events += [TextDelta(word) for word in draw(st.lists(_words, max_size=4))]
        elif kind == "thinking":
            events += draw(_thoughts())
        else:
            events += draw(_tool_events(calls))
            calls += 1
    allowed = [FinishReason.LENGTH, FinishReason.TOOL_CALLS if calls else FinishReason.STOP]
    reason = draw(st.sampled_from([*allowed, FinishReason.CONTENT_FILTER]))
    native = draw(st.sampled_from([ANTHROPIC_WORDS[reason], reason.value]))
    return [*events, Completed(reason, native, draw(_usages))]
