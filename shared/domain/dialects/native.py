"""Our own dialect: one flat result, and a stream of five kinds of events.

`started`, `delta`, `tool_call`, then `completed` with the whole result, or `error`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from shared.domain.dialects.answer_fields import failure_fields, money, notes
from shared.domain.dialects.anthropic_stream import tool_input
from shared.domain.dialects.native_request import parse_request
from shared.domain.inference import (
    CallInfo,
    Completed,
    Failed,
    Failure,
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

__all__ = [
    "RenderState",
    "fold",
    "http_status",
    "parse_request",
    "render_event",
    "render_failure",
]


@dataclass(slots=True)
class RenderState:
    """The answer so far: its blocks in order, each with its text still in pieces."""

    call: CallInfo
    blocks: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[list[str]] = field(default_factory=list)
    tool_calls: dict[int, int] = field(default_factory=dict)


def render_event(event: StreamEvent, state: RenderState) -> list[Frame]:
    """The frames that tell one event to a native client."""
    match event:
        case Started(ignored=ignored):
            state.call = replace(state.call, ignored=ignored or state.call.ignored)
            told = {
                "inference_id": state.call.inference_id,
                "model_used": state.call.model,
                "provider": state.call.provider,
            }
            return [("started", told | notes(state.call))]
        case TextDelta(text=text):
            _piece(state, "text", text)
            return [("delta", {"text": text})]
        case ThinkingDelta():
            return _thinking(state, event)
        case ToolCallStarted(index=index, id=call_id, name=name):
            state.tool_calls[index] = len(state.blocks)
            _open(state, {"type": "tool_use", "id": call_id, "name": name})
            return [_tool_call(state, index, "")]
        case ToolCallDelta(index=index, arguments=arguments):
            state.pieces[state.tool_calls[index]].append(arguments)
            return [_tool_call(state, index, arguments)]
        case Completed():
            return [("completed", _result(state, event))]
        case Failed(failure=failure):
            return [("error", render_failure(failure, state.call.inference_id))]
        case Forwarded():
            raise TypeError("no provider speaks the native dialect")


def _open(state: RenderState, block: dict[str, Any]) -> None:
    state.blocks.append(block)
    state.pieces.append([])


def _piece(state: RenderState, kind: str, text: str) -> None:
    last = state.blocks[-1] if state.blocks else {}
    if last.get("type") != kind or "signature" in last:
        _open(state, {"type": kind})
    state.pieces[-1].append(text)


def _thinking(state: RenderState, event: ThinkingDelta) -> list[Frame]:
    """Signatures and redacted reasoning are told with the result, not as deltas."""
    if event.redacted:
        _open(state, {"type": "redacted_thinking", "data": event.redacted})
    if event.text or event.signature:
        _piece(state, "thinking", event.text)
    if event.signature:
        state.blocks[-1]["signature"] = event.signature
    return [("delta", {"thinking": event.text})] if event.text else []


def _tool_call(state: RenderState, index: int, arguments: str) -> Frame:
    block = state.blocks[state.tool_calls[index]]
    told = {"index": index, "id": block["id"], "name": block["name"]}
    return ("tool_call", told | {"arguments_delta": arguments})


def _result(state: RenderState, event: Completed) -> dict[str, Any]:
    call, texts = state.call, ["".join(pieces) for pieces in state.pieces]
    written = list(zip(state.blocks, texts, strict=True))
    return {
        "agent_id": call.agent_id,
        "inference_id": call.inference_id,
        "receipt_id": call.receipt_id,
        "content": "".join(text for block, text in written if block["type"] == "text"),
        "content_blocks": [_whole_block(block, text) for block, text in written],
        "tool_calls": [
            _openai_call(state.blocks[at], texts[at]) for _, at in sorted(state.tool_calls.items())
        ],
        "model_used": call.model,
        "provider": call.provider,
        "finish_reason": event.finish_reason.value,
        "finish_reason_native": event.finish_reason_native,
        **_usage_fields(event.usage),
        "cost_usd": money(event.cost_usd),
        **notes(call),
    }


def _whole_block(block: Mapping[str, Any], text: str) -> dict[str, Any]:
    if block["type"] == "tool_use":
        return {**block, "input": tool_input(text)}
    if block["type"] == "redacted_thinking":
        return dict(block)
    return {"type": block["type"], block["type"]: text, **block}


def _openai_call(block: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": arguments or "{}"}
    return {"id": block["id"], "type": "function", "function": function}


def _usage_fields(usage: Usage) -> dict[str, Any]:
    """Disjoint classes, as on the receipt; those of a cache only where one was used."""
    told: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.cache_read_tokens:
        told["cache_read_tokens"] = usage.cache_read_tokens
    if usage.cache_write_tokens:
        told["cache_write_tokens"] = usage.cache_write_tokens
    if usage.estimated:
        told["usage_estimated"] = True
    return told


def fold(
    frames: Iterable[Frame], call: CallInfo, cost_usd: Decimal | None, usage: Usage | None
) -> dict[str, Any]:
    """The result that the stream's `completed` frame holds, with the cost filled in.

    Raises ValueError for a stream that did not end well.
    """
    for name, data in frames:
        if name == "completed":
            result = dict(data)
            if usage is not None:
                result.update(_usage_fields(usage))
            if cost_usd is not None:
                result["cost_usd"] = money(cost_usd)
            return result
    raise ValueError(f"the stream of inference {call.inference_id} has no end")


def http_status(failure: Failure) -> int:
    return failure.status


def render_failure(failure: Failure, inference_id: str | None) -> dict[str, Any]:
    """`code`, `message`, `detail`, and the details once more at the top level."""
    said = failure_fields(failure, inference_id)
    return {"code": failure.code, "message": failure.message, "detail": said, **said}
