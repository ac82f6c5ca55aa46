"""Any answer, told in any dialect, is read back whole by the SDK of the dialect and by us."""

import json
from decimal import Decimal
from typing import Any

from hypothesis import given, settings

from shared.domain.dialects import DIALECTS, anthropic, native, openai
from shared.domain.inference import (
    DONE_FRAME,
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
from tests.domain.dialects.answers import ANTHROPIC_WORDS, Gist, answers, gist, parsed, rendered
from tests.domain.dialects.vendors import (
    CALL,
    openai_chunks,
    read_with_anthropic,
    read_with_openai,
    without_nothing,
)

END = Completed(FinishReason.STOP, "stop", Usage(3, 4))


@given(answers())
def test_the_anthropic_sdk_reads_the_whole_answer(events: list[StreamEvent]) -> None:
    want, got = gist(events), read_with_anthropic(rendered(events, Dialect.ANTHROPIC))
    blocks = got["content"]
    assert "".join(b["text"] for b in blocks if b["type"] == "text") == want.text
    assert "".join(b["thinking"] for b in blocks if b["type"] == "thinking") == want.thinking
    assert [b["signature"] for b in blocks if b.get("signature")] == want.signatures
    assert [b["data"] for b in blocks if b["type"] == "redacted_thinking"] == want.redacted
    assert [(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"] == (
        want.tools
    )
    assert want.finish is not None
    assert got["stop_reason"] == ANTHROPIC_WORDS[want.finish]
    assert _anthropic_usage(got["usage"]) == want.usage


def _anthropic_usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        usage["input_tokens"],
        usage["output_tokens"],
        usage["cache_read_input_tokens"],
        usage["cache_creation_input_tokens"],
    )


@given(answers())
def test_the_openai_sdk_reads_the_whole_answer(events: list[StreamEvent]) -> None:
    want, chunks = gist(events), openai_chunks(rendered(events, Dialect.OPENAI))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content") or "" for d in deltas) == want.text
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == want.thinking
    finishes = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert want.finish is not None
    assert want.usage is not None
    assert [f for f in finishes if f is not None] == [want.finish.value]
    assert chunks[-1]["choices"] == []
    usage, details = chunks[-1]["usage"], chunks[-1]["usage"]["prompt_tokens_details"]
    assert usage["total_tokens"] == want.usage.total_input + want.usage.output_tokens
    read, written = details["cached_tokens"], details["cache_write_tokens"]
    assert want.usage == Usage(
        usage["prompt_tokens"] - read - written, usage["completion_tokens"], read, written
    )


@given(answers())
@settings(max_examples=50)
def test_the_openai_sdk_accumulates_what_we_fold(events: list[StreamEvent]) -> None:
    events = [*events[:-1], END]
    frames = rendered(events, Dialect.OPENAI)
    told, body = read_with_openai(frames), openai.fold(frames, CALL, None, None)
    for name in ("tool_calls", "thinking_blocks"):
        for entry in told["choices"][0]["message"].get(name) or ():
            del entry["index"]
    message = told["choices"][0]["message"]
    message["content"] = (
        message["content"] or None if message.get("tool_calls") else (message["content"])
    )
    del body["ainfera"]
    assert without_nothing(body) == without_nothing(told)


@given(answers())
@settings(max_examples=50)
def test_the_anthropic_sdk_accumulates_what_we_fold(events: list[StreamEvent]) -> None:
    frames = rendered(events, Dialect.ANTHROPIC)
    body = anthropic.fold(frames, CALL, None, None)
    del body["ainfera"]
    assert without_nothing(body) == without_nothing(read_with_anthropic(frames))


@given(answers())
def test_we_read_back_what_we_rendered(events: list[StreamEvent]) -> None:
    for dialect in (Dialect.ANTHROPIC, Dialect.OPENAI):
        assert gist(parsed(rendered(events, dialect), dialect)) == gist(events)


@given(answers())
def test_an_answer_survives_a_chain_of_dialects(events: list[StreamEvent]) -> None:
    first = parsed(rendered(events, Dialect.OPENAI), Dialect.OPENAI)
    second = parsed(rendered(first, Dialect.ANTHROPIC), Dialect.ANTHROPIC)
    assert gist(second) == gist(events)


@given(answers())
def test_the_native_result_holds_the_whole_answer(events: list[StreamEvent]) -> None:
    want, frames = gist(events), rendered(events, Dialect.NATIVE)
    body = native.fold(frames, CALL, Decimal("0.000000123"), None)
    blocks = body["content_blocks"]
    read = Gist(
        text=body["content"],
        thinking="".join(b["thinking"] for b in blocks if b["type"] == "thinking"),
        signatures=[b["signature"] for b in blocks if b.get("signature")],
        redacted=[b["data"] for b in blocks if b["type"] == "redacted_thinking"],
        tools=[(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"],
        finish=FinishReason(body["finish_reason"]),
        usage=Usage(
            body["input_tokens"],
            body["output_tokens"],
            body.get("cache_read_tokens", 0),
            body.get("cache_write_tokens", 0),
        ),
    )
    assert read == want
    assert body["cost_usd"] == "0.000000123"
    calls = [
        (c["id"], c["function"]["name"], json.loads(c["function"]["arguments"]))
        for c in body["tool_calls"]
    ]
    assert calls == want.tools


@given(answers())
def test_the_native_stream_tells_what_its_result_holds(events: list[StreamEvent]) -> None:
    frames = rendered(events, Dialect.NATIVE)
    assert [name for name, _ in frames[:1] + frames[-1:]] == ["started", "completed"]
    assert {name for name, _ in frames} <= {"started", "delta", "tool_call", "completed"}
    result = frames[-1][1]
    deltas = [data for name, data in frames if name == "delta"]
    assert all(len(data) == 1 for data in deltas)
    assert "".join(data.get("text", "") for data in deltas) == result["content"]
    written: dict[int, str] = {}
    for name, data in frames:
        if name == "tool_call":
            assert set(data) == {"index", "id", "name", "arguments_delta"}
            written[data["index"]] = written.get(data["index"], "") + data["arguments_delta"]
    assert [written[i] or "{}" for i in sorted(written)] == [
        call["function"]["arguments"] for call in result["tool_calls"]
    ]


@given(answers())
def test_anthropic_blocks_come_one_after_the_other(events: list[StreamEvent]) -> None:
    frames = rendered(events, Dialect.ANTHROPIC)
    assert all(name == data["type"] for name, data in frames)
    names = [name for name, _ in frames]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    open_block, next_block = None, 0
    for name, data in frames[1:-2]:
        if name == "content_block_start":
            assert open_block is None
            assert data["index"] == next_block
            open_block, next_block = next_block, next_block + 1
        else:
            assert data["index"] == open_block
            open_block = None if name == "content_block_stop" else open_block
    assert open_block is None


def test_tool_calls_that_take_turns_are_kept_apart() -> None:
    events: list[StreamEvent] = [
        Started("up"),
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(1, "b", "g"),
        ToolCallDelta(0, '{"x":'),
        ToolCallDelta(1, '{"y":'),
        ToolCallDelta(0, "1}"),
        ToolCallDelta(1, "2}"),
        Completed(FinishReason.TOOL_CALLS, "tool_calls", Usage(1, 1)),
    ]
    want = [("a", "f", {"x": 1}), ("b", "g", {"y": 2})]
    for dialect in (Dialect.ANTHROPIC, Dialect.OPENAI):
        assert gist(parsed(rendered(events, dialect), dialect)).tools == want
    read = read_with_anthropic(rendered(events, Dialect.ANTHROPIC))
    assert [(b["id"], b["name"], b["input"]) for b in read["content"]] == want


def test_the_openai_usage_chunk_comes_only_when_it_was_asked_for() -> None:
    events: list[StreamEvent] = [Started("up"), TextDelta("hi"), END]
    asked = rendered(events, Dialect.OPENAI)
    assert asked[-1] == DONE_FRAME
    assert asked[-2][1]["usage"]["total_tokens"] == 7
    assert asked[0][1]["usage"] is None
    state = openai.RenderState(CALL.answered_by("m", "p", include_usage=False))
    unasked = [frame for event in events for frame in openai.render_event(event, state)]
    assert all("usage" not in data for _, data in unasked)
    body = openai.fold(unasked, CALL, None, Usage(3, 4))
    assert body["usage"]["prompt_tokens"] == 3


def test_a_stop_sequence_is_named_to_anthropic_clients() -> None:
    end = Completed(FinishReason.STOP, "stop_sequence", Usage(1, 1), stop_sequence="END")
    frames = rendered([Started("up"), TextDelta("hi"), end], Dialect.ANTHROPIC)
    assert frames[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    read = parsed(frames, Dialect.ANTHROPIC)[-1]
    assert isinstance(read, Completed)
    assert read.stop_sequence == "END"


def test_vendor_bodies_say_which_call_they_are() -> None:
    want = {
        "inference_id": CALL.inference_id,
        "receipt_id": CALL.receipt_id,
        "agent_id": CALL.agent_id,
        "provider": CALL.provider,
        "audit_url": CALL.audit_url,
    }
    for dialect in (Dialect.ANTHROPIC, Dialect.OPENAI):
        frames = rendered([Started("up"), TextDelta("hi"), END], dialect)
        body = DIALECTS[dialect].fold(frames, CALL, None, None)
        assert body["ainfera"] == want
        assert body["model"] == CALL.model


def test_the_native_result_has_the_contracts_fields() -> None:
    frames = rendered([Started("up"), END], Dialect.NATIVE)
    body = native.fold(frames, CALL, Decimal("1E-7"), None)
    assert body == {
        "agent_id": CALL.agent_id,
        "inference_id": CALL.inference_id,
        "receipt_id": CALL.receipt_id,
        "content": "",
        "content_blocks": [],
        "tool_calls": [],
        "model_used": CALL.model,
        "provider": CALL.provider,
        "finish_reason": "stop",
        "finish_reason_native": "stop",
        "input_tokens": 3,
        "output_tokens": 4,
        "cost_usd": "0.0000001",
    }


def test_a_simulated_answer_and_fields_not_served_are_told_in_every_dialect() -> None:
    call = CALL.answered_by("m", "p", simulated=True)
    for dialect, module in DIALECTS.items():
        state = module.RenderState(call)
        events: list[StreamEvent] = [Started("up", ignored=("top_k",)), TextDelta("hi"), END]
        frames: list[Frame] = [f for e in events for f in module.render_event(e, state)]
        body = module.fold(frames, state.call, None, None)
        said = body if dialect is Dialect.NATIVE else body["ainfera"]
        assert said["simulated"] is True
        assert said["ignored"] == ["top_k"]
        first = frames[0][1]
        told = first.get("message", first).get("ainfera", first)
        assert (told["simulated"], told["ignored"]) == (True, ["top_k"])


def test_a_tool_only_answer_has_no_content_in_openai() -> None:
    end = Completed(FinishReason.TOOL_CALLS, "tool_use", Usage(1, 1))
    events: list[StreamEvent] = [Started("up"), ToolCallStarted(0, "a", "f"), end]
    message = openai.fold(rendered(events, Dialect.OPENAI), CALL, None, None)["choices"][0]
    assert message["message"]["content"] is None
    assert message["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert message["finish_reason"] == "tool_calls"


def test_a_count_that_a_provider_leaves_null_keeps_its_value() -> None:
    frames = rendered([Started("up", Usage(7, 1, 2, 3)), TextDelta("hi"), END], Dialect.ANTHROPIC)
    frames[-2][1]["usage"] = {"output_tokens": 9, "input_tokens": None}
    body = anthropic.fold(frames, CALL, None, None)
    assert body["usage"] == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 2,
        "output_tokens": 9,
    }
    end = parsed(frames, Dialect.ANTHROPIC)[-1]
    assert isinstance(end, Completed)
    assert end.usage == Usage(7, 9, 2, 3)


def test_a_signature_ends_a_block_of_thinking() -> None:
    events: list[StreamEvent] = [
        Started("up"),
        ThinkingDelta("a"),
        ThinkingDelta(signature="1"),
        ThinkingDelta("b"),
        ThinkingDelta(signature="2"),
        END,
    ]
    want = [
        {"type": "thinking", "thinking": "a", "signature": "1"},
        {"type": "thinking", "thinking": "b", "signature": "2"},
    ]
    told = native.fold(rendered(events, Dialect.NATIVE), CALL, None, None)
    assert told["content_blocks"] == want
    assert read_with_anthropic(rendered(events, Dialect.ANTHROPIC))["content"] == want
    body = openai.fold(rendered(events, Dialect.OPENAI), CALL, None, None)
    assert body["choices"][0]["message"]["thinking_blocks"] == want
    assert body["choices"][0]["message"]["reasoning_content"] == "ab"


def test_the_completed_frame_tells_the_cost_as_a_plain_decimal() -> None:
    end = Completed(FinishReason.STOP, "stop", Usage(1, 1), cost_usd=Decimal("1E-7"))
    assert rendered([Started("up"), end], Dialect.NATIVE)[-1][1]["cost_usd"] == "0.0000001"
    estimated = Completed(FinishReason.STOP, "stop", Usage(1, 1, estimated=True))
    assert rendered([Started("up"), estimated], Dialect.NATIVE)[-1][1]["usage_estimated"] is True
