"""Streams that are not as the books say: faults, and the ways of the OpenAI family."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.dialects import WIRES
from shared.domain.inference import (
    DONE_FRAME,
    Completed,
    Dialect,
    Failed,
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
from tests.domain.dialects.answers import parsed
from tests.domain.dialects.vendors import sample_frames

BOTH = [(Dialect.ANTHROPIC, "tool_use"), (Dialect.OPENAI, "parallel_tools")]


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> Frame:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (None, {"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **more})


def usage_chunk(**usage: Any) -> Frame:
    return (None, {"id": "c1", "choices": [], "usage": usage})


def openai_events(*frames: Frame) -> list[StreamEvent]:
    return parsed(frames, Dialect.OPENAI)


def failed(events: list[StreamEvent]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def completed(events: list[StreamEvent]) -> Completed:
    assert isinstance(events[-1], Completed)
    return events[-1]


@pytest.mark.parametrize(("dialect", "name"), BOTH)
def test_a_stream_cut_anywhere_is_a_failure_or_an_end_never_silence(
    dialect: Dialect, name: str
) -> None:
    frames = sample_frames(dialect.value, name)
    for cut in range(len(frames)):
        events = parsed(frames[:cut], dialect)
        ends = [event for event in events if isinstance(event, Completed | Failed)]
        assert ends == events[-1:]
    assert isinstance(parsed(frames[:4], dialect)[-1], Failed)
    assert failed(parsed(frames[:4], dialect)).failure.code == "provider_error"


@pytest.mark.parametrize(("dialect", "name"), BOTH)
def test_nothing_comes_after_the_end(dialect: Dialect, name: str) -> None:
    frames = sample_frames(dialect.value, name)
    assert parsed([*frames, *frames], dialect) == parsed(frames, dialect)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "delta", "choices", "index", "usage", "message", "text", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(BOTH), st.integers(0, 30), st.data())
def test_a_malformed_frame_never_raises(
    sample: tuple[Dialect, str], at: int, data: st.DataObject
) -> None:
    dialect, name = sample
    frames = sample_frames(dialect.value, name)
    event, frame = frames[at % len(frames)]
    key = data.draw(st.sampled_from(sorted(frame)))
    broken = (event, {**frame, key: data.draw(_json)})
    events = parsed([*frames[: at % len(frames)], broken], dialect)
    assert isinstance(events[-1], Completed | Failed)


def test_an_error_within_an_anthropic_stream_keeps_its_wording() -> None:
    start = sample_frames("anthropic", "basic")[:4]
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    end = failed(parsed([*start, ("error", error)], Dialect.ANTHROPIC))
    assert (end.failure.code, end.failure.status, end.failure.message) == (
        "provider_error",
        502,
        "Overloaded",
    )
    assert end.failure.detail["upstream_status"] == 529
    assert end.failure.retryable
    assert end.usage is not None
    assert end.usage.input_tokens == 11
    said = "prompt is too long: 9 tokens > 8 maximum"
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    end = failed(parsed([("error", error)], Dialect.ANTHROPIC))
    assert (end.failure.code, end.failure.status, end.failure.message) == (
        "invalid_request",
        400,
        said,
    )
    assert not end.failure.retryable


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        ({"message": "slow down", "code": 429}, "provider_error", 429),
        ({"message": "slow down", "type": "server_error"}, "provider_error", 500),
        ({"message": "slow down", "type": "invalid_request_error"}, "invalid_request", 400),
        ("slow down", "provider_error", 500),
    ],
)
def test_an_error_within_a_200_of_the_openai_family(error: Any, code: str, status: int) -> None:
    end = failed(openai_events(chunk({"content": "hi"}), (None, {"error": error})))
    assert (end.failure.code, end.failure.message) == (code, "slow down")
    assert end.failure.detail["upstream_status"] == status


def test_usage_that_never_came_is_marked_as_an_estimate() -> None:
    end = completed(openai_events(chunk({"content": "hi"}), chunk({}, "stop"), DONE_FRAME))
    assert end.usage == Usage(estimated=True)
    end = completed(openai_events(chunk({"content": "hi"}), chunk({}, "stop")))
    assert end.usage == Usage(estimated=True)
    frames: list[Frame] = [
        ("message_start", {"type": "message_start", "message": {"id": "m"}}),
        ("message_delta", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        ("message_stop", {"type": "message_stop"}),
    ]
    assert completed(parsed(frames, Dialect.ANTHROPIC)).usage.estimated


def test_usage_on_the_finish_chunk() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    events = openai_events(chunk({"content": "hi"}), chunk({}, "stop", usage=usage), DONE_FRAME)
    assert completed(events).usage == Usage(5, 2)
    assert len([event for event in events if isinstance(event, Completed)]) == 1


def test_usage_told_with_every_chunk_counts_once() -> None:
    counts = [{"prompt_tokens": 5, "completion_tokens": n, "total_tokens": 5 + n} for n in (1, 2)]
    events = openai_events(
        chunk({"content": "a"}, usage=counts[0]),
        chunk({"content": "b"}, "stop", usage=counts[1]),
        DONE_FRAME,
    )
    assert completed(events).usage == Usage(5, 2)


@pytest.mark.parametrize(
    ("told", "want"),
    [
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
            Usage(10, 3),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
            },
            Usage(5, 3, 4, 1),
        ),
        # reasoning left out of the completion's count, but not out of the total
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 113},
            Usage(10, 103),
        ),
        # cache hits at the top
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "total_tokens": 13,
                "prompt_cache_hit_tokens": 8,
                "prompt_cache_miss_tokens": 2,
            },
            Usage(2, 3, 8),
        ),
        ({"prompt_tokens": 10, "prompt_tokens_details": None}, Usage(10, 0)),
    ],
)
def test_classes_of_tokens_are_disjoint(told: dict[str, Any], want: Usage) -> None:
    end = completed(openai_events(chunk({}, "stop"), usage_chunk(**told), DONE_FRAME))
    assert end.usage == want


def test_reasoning_by_either_name_and_in_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "c"}]},
        {"type": "text", "text": "d"},
    ]
    events = openai_events(
        chunk({"reasoning_content": "a", "content": None}),
        chunk({"reasoning": "b"}),
        chunk({"content": parts}),
        chunk({}, "stop"),
    )
    assert events[1:5] == [
        ThinkingDelta("a"),
        ThinkingDelta("b"),
        ThinkingDelta("c"),
        TextDelta("d"),
    ]


def _tool(call_id: str | None, index: int | None, name: str | None, arguments: str) -> Any:
    call: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if call_id is not None:
        call["id"] = call_id
    if index is not None:
        call["index"] = index
    return chunk({"tool_calls": [call]})


@pytest.mark.parametrize("index", [0, None])
def test_parallel_calls_under_one_index_are_told_apart_by_their_ids(index: int | None) -> None:
    events = openai_events(
        _tool("a", index, "f", '{"x":1}'), _tool("b", index, "g", "{}"), chunk({}, "stop")
    )
    assert events[1:5] == [
        ToolCallStarted(0, "a", "f"),
        ToolCallDelta(0, '{"x":1}'),
        ToolCallStarted(1, "b", "g"),
        ToolCallDelta(1, "{}"),
    ]
    assert completed(events).finish_reason is FinishReason.TOOL_CALLS
    assert completed(events).finish_reason_native == "stop"


def test_a_call_waits_for_its_name_and_gets_an_id() -> None:
    events = openai_events(
        _tool(None, 0, None, '{"x"'), _tool(None, 0, "f", ":1"), _tool(None, 0, None, "}")
    )
    assert events[1:4] == [
        ToolCallStarted(0, "call_0", "f"),
        ToolCallDelta(0, '{"x":1'),
        ToolCallDelta(0, "}"),
    ]


def test_the_first_chunk_starts_the_answer_once() -> None:
    filters = (None, {"id": "", "choices": [], "prompt_filter_results": []})
    events = openai_events(filters, chunk({"role": "assistant", "content": ""}), chunk({}, "stop"))
    assert [event for event in events if isinstance(event, Started)] == [Started("")]


@pytest.mark.parametrize(
    ("native", "want"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("model_length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("a_reason_of_next_year", FinishReason.STOP),
    ],
)
def test_finish_reasons_of_the_openai_family(native: str, want: FinishReason) -> None:
    end = completed(openai_events(chunk({"content": "x"}), chunk({}, native)))
    assert (end.finish_reason, end.finish_reason_native) == (want, native)


@pytest.mark.parametrize(
    ("native", "want"),
    [
        ("pause_turn", FinishReason.STOP),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("a_reason_of_next_year", FinishReason.STOP),
    ],
)
def test_rarer_stop_reasons_of_anthropic(native: str, want: FinishReason) -> None:
    frames = sample_frames("anthropic", "basic")
    told = {"type": "message_delta", "delta": {"stop_reason": native}, "usage": {}}
    frames[-2] = ("message_delta", told)
    end = completed(parsed(frames, Dialect.ANTHROPIC))
    assert (end.finish_reason, end.finish_reason_native) == (want, native)


def test_both_wires_are_there() -> None:
    assert set(WIRES) == {Dialect.ANTHROPIC, Dialect.OPENAI}
