"""A folded answer told as events says the same: folding them again gives the same body."""

from typing import Any

import pytest

from shared.domain.dialects import DIALECTS
from shared.domain.dialects.unfold import unfold
from shared.domain.dialects.written import written_in_frames
from shared.domain.inference import (
    DONE_FRAME,
    CallInfo,
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

CALL = CallInfo("0199-1", "r", "a", "url", "model-x", "prov", 1)
ARGUMENTS = ('{"at": "you', '", "n": 1}')
EVENTS: list[StreamEvent] = [
    Started("up-1", Usage(5)),
    ThinkingDelta(text="Hmm."),
    ThinkingDelta(signature="sig"),
    TextDelta("Hel"),
    TextDelta("lo"),
    ToolCallStarted(0, "call_1", "look"),
    ToolCallDelta(0, ARGUMENTS[0]),
    ToolCallDelta(0, ARGUMENTS[1]),
    ToolCallStarted(1, "call_2", "wait"),
    ToolCallDelta(1, "{}"),
    Completed(FinishReason.TOOL_CALLS, "tool_use", Usage(5, 7)),
]


def told(dialect: Dialect) -> list[Frame]:
    spoken = DIALECTS[dialect]
    state = spoken.RenderState(CALL)
    return [frame for event in EVENTS for frame in spoken.render_event(event, state)]


def folded(dialect: Dialect, frames: list[Frame]) -> dict[str, Any]:
    return DIALECTS[dialect].fold(frames, CALL, None, Usage(5, 7))


@pytest.mark.parametrize("dialect", list(Dialect))
def test_unfolding_and_folding_give_the_same_answer(dialect: Dialect) -> None:
    body = folded(dialect, told(dialect))
    assert folded(dialect, unfold(dialect, body)) == body


def test_the_events_come_in_the_dialect_s_order() -> None:
    body = folded(Dialect.ANTHROPIC, told(Dialect.ANTHROPIC))
    names = [name for name, _ in unfold(Dialect.ANTHROPIC, body)]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert names.count("content_block_start") == names.count("content_block_stop") == 4
    chunk, done = unfold(Dialect.OPENAI, folded(Dialect.OPENAI, told(Dialect.OPENAI)))
    assert chunk[1]["object"] == "chat.completion.chunk"
    assert [c["index"] for c in chunk[1]["choices"][0]["delta"]["tool_calls"]] == [0, 1]
    assert done == DONE_FRAME


@pytest.mark.parametrize("dialect", list(Dialect))
def test_what_the_model_wrote_is_counted_and_nothing_else(dialect: Dialect) -> None:
    wrote = len("Hmm.") + len("Hello") + len("".join(ARGUMENTS)) + len("{}")
    unended = [frame for frame in told(dialect) if frame[0] != "completed"]
    assert written_in_frames(dialect, unended) == wrote
    assert written_in_frames(dialect, unended[:1]) == 0
