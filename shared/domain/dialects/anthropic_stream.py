"""Our side of the Anthropic stream: events rendered as its frames, frames folded to a message.

Source: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from shared.domain.dialects.answer_fields import as_mapping, call_fields, notes
from shared.domain.dialects.anthropic_errors import error_frame
from shared.domain.dialects.openai_request import INVALID_JSON
from shared.domain.dialects.partial_json import parse_partial
from shared.domain.inference import (
    CallInfo,
    Completed,
    Failed,
    FinishReason,
    Forwarded,
    Frame,
    Started,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)

STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}
# what Anthropic itself may say; an answer of its own model keeps its word
NATIVE_STOP_REASONS = frozenset(
    {
        "end_turn",
        "max_tokens",
        "stop_sequence",
        "tool_use",
        "pause_turn",
        "refusal",
        "model_context_window_exceeded",
    }
)


@dataclass(slots=True)
class RenderState:
    """Where the stream of one answer stands: which block is open, where each tool call is."""

    call: CallInfo
    started: bool = False
    next_block: int = 0
    open_kind: str | None = None
    tool_blocks: dict[int, int] = field(default_factory=dict)


def render_event(event: StreamEvent, state: RenderState) -> list[Frame]:
    """The frames that tell one event to an Anthropic client; blocks open and close by need."""
    match event:
        case Started(usage=usage, ignored=ignored):
            state.call = replace(state.call, ignored=ignored or state.call.ignored)
            return _message_start(state, usage)
        case TextDelta(text=text):
            return [*_opened(state, "text"), _delta(state, "text_delta", "text", text)]
        case ThinkingDelta():
            return _thinking(state, event)
        case ToolCallStarted():
            return _tool_start(state, event)
        case ToolCallDelta(index=index, arguments=arguments):
            block = state.tool_blocks.get(index, state.next_block - 1)
            return [_delta_at(block, "input_json_delta", "partial_json", arguments)]
        case Completed():
            return _ending(state, event)
        case Failed(failure=failure):
            return [error_frame(failure, state.call.inference_id)]
        case Forwarded():
            raise TypeError("forwarded frames are already in the client's dialect")


def usage_fields(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }


def _message_start(state: RenderState, usage: Usage) -> list[Frame]:
    state.started = True
    message: dict[str, Any] = {
        "id": "msg_" + state.call.inference_id.replace("-", ""),
        "type": "message",
        "role": "assistant",
        "model": state.call.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_fields(usage),
    }
    if notes(state.call):
        message["ainfera"] = call_fields(state.call)
    return [("message_start", {"type": "message_start", "message": message})]


def _opened(state: RenderState, kind: str, **content: Any) -> list[Frame]:
    """What comes before a delta of this kind: nothing, if such a block is open."""
    if state.open_kind == kind:
        return []
    empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
    return _open_block(state, kind, content or empty[kind])


def _open_block(state: RenderState, kind: str, content: Mapping[str, Any]) -> list[Frame]:
    frames = [] if state.started else _message_start(state, Usage())
    frames += _closed(state)
    block = {"type": kind, **content}
    index = state.next_block
    start = {"type": "content_block_start", "index": index, "content_block": block}
    state.open_kind, state.next_block = kind, index + 1
    return [*frames, ("content_block_start", start)]


def _closed(state: RenderState) -> list[Frame]:
    if state.open_kind is None:
        return []
    state.open_kind = None
    stop = {"type": "content_block_stop", "index": state.next_block - 1}
    return [("content_block_stop", stop)]


def _delta(state: RenderState, kind: str, key: str, value: str) -> Frame:
    return _delta_at(state.next_block - 1, kind, key, value)


def _delta_at(block: int, kind: str, key: str, value: str) -> Frame:
    delta = {"type": kind, key: value}
    return (
        "content_block_delta",
        {"type": "content_block_delta", "index": block, "delta": delta},
    )


def _thinking(state: RenderState, event: ThinkingDelta) -> list[Frame]:
    frames: list[Frame] = []
    if event.redacted:
        frames += _open_block(state, "redacted_thinking", {"data": event.redacted})
        frames += _closed(state)
    if event.text:
        frames += _opened(state, "thinking")
        frames.append(_delta(state, "thinking_delta", "thinking", event.text))
    if event.signature:
        frames += _opened(state, "thinking")
        frames.append(_delta(state, "signature_delta", "signature", event.signature))
        frames += _closed(state)
    return frames


def _tool_start(state: RenderState, event: ToolCallStarted) -> list[Frame]:
    content = {"id": event.id, "name": event.name, "input": {}}
    frames = _open_block(state, "tool_use", content)
    state.tool_blocks[event.index] = state.next_block - 1
    return frames


def stop_reason(event: Completed) -> str:
    if event.finish_reason_native in NATIVE_STOP_REASONS:
        return event.finish_reason_native
    if event.stop_sequence is not None:
        return "stop_sequence"
    return STOP_REASONS[event.finish_reason]


def _ending(state: RenderState, event: Completed) -> list[Frame]:
    frames = [] if state.started else _message_start(state, Usage())
    delta = {"stop_reason": stop_reason(event), "stop_sequence": event.stop_sequence}
    told = {"type": "message_delta", "delta": delta, "usage": usage_fields(event.usage)}
    return [
        *frames,
        *_closed(state),
        ("message_delta", told),
        ("message_stop", {"type": "message_stop"}),
    ]


def fold(
    frames: Iterable[Frame], call: CallInfo, cost_usd: Decimal | None, usage: Usage | None
) -> dict[str, Any]:
    """The message that a stream tells, as the non-streamed call would have returned it.

    Takes our own frames and a provider's; fields that are unknown here are carried over.
    `usage` fills in where the frames name none. `cost_usd` has no place in this dialect.
    """
    message: dict[str, Any] = {}
    pieces: dict[int, list[str]] = {}
    for _, data in frames:
        match data.get("type"):
            case "message_start":
                message = {**data["message"], "content": [*data["message"].get("content", ())]}
            case "content_block_start":
                message["content"].append(dict(data["content_block"]))
            case "content_block_delta":
                delta = data["delta"]
                if delta["type"] == "input_json_delta":
                    pieces.setdefault(data["index"], []).append(delta["partial_json"])
                else:
                    _add_delta(message["content"][data["index"]], delta)
            case "message_delta":
                _add_message_delta(message, data)
    for index, parts in pieces.items():
        message["content"][index]["input"] = tool_input("".join(parts))
    if not message.get("usage") and usage is not None:
        message["usage"] = usage_fields(usage)
    message["ainfera"] = call_fields(call)
    return message


def _add_delta(block: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Deltas add to a string and replace anything else; citations make a list."""
    for key, value in delta.items():
        if key == "type":
            continue
        if delta["type"] == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), value]
        elif key in ("text", "thinking"):
            block[key] = block.get(key, "") + value
        else:
            block[key] = value


def _add_message_delta(message: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Counts of a `message_delta` are running totals: those that are named replace ours."""
    message.update(data["delta"])
    counts = as_mapping(data.get("usage"))
    if counts:
        known = {k: v for k, v in counts.items() if v is not None}
        message["usage"] = {**as_mapping(message.get("usage")), **known}
    message.update({k: v for k, v in data.items() if k not in ("type", "delta", "usage")})


def tool_input(text: str) -> Any:
    """A tool call's input from the pieces of its JSON; what is no JSON is wrapped, not lost."""
    if not text.strip():
        return {}
    try:
        return parse_partial(text)
    except ValueError:
        return {INVALID_JSON: text}
