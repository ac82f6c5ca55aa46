"""An Anthropic provider's stream, frame by frame, as canonical events.

Source: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.domain.dialects.answer_fields import as_mapping
from shared.domain.inference import (
    Completed,
    Failed,
    Failure,
    FinishReason,
    Started,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)

FINISH_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "pause_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
ERROR_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# the client's own fault: its wording is kept and nobody else need be asked
_CLIENT_FAULTS = {
    "invalid_request_error": "invalid_request",
    "request_too_large": "request_too_large",
}


@dataclass(slots=True)
class ParseState:
    """What the stream has told so far; `tool_calls` counts them, `blocks` finds them."""

    counts: dict[str, int] = field(default_factory=dict)
    blocks: dict[int, int] = field(default_factory=dict)
    tool_calls: int = 0
    stop_reason: str | None = None
    stop_sequence: str | None = None
    ended: bool = False


def parse_event(name: str | None, data: Mapping[str, Any], state: ParseState) -> list[StreamEvent]:
    """The events that one frame tells. After `Completed` or `Failed` nothing more comes.

    A frame that is not of the wire's form ends the stream with a `Failed`.
    """
    if state.ended:
        return []
    try:
        return _parse(data, state)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        wrong = f"malformed {data.get('type') or name or 'unnamed'} frame: {error!r}"
        return _failed(state, provider_failure(wrong))


def _parse(data: Mapping[str, Any], state: ParseState) -> list[StreamEvent]:
    match data.get("type"):
        case "message_start":
            message = data["message"]
            _count(state, message.get("usage"))
            return [Started(str(message.get("id") or ""), usage_of(state.counts))]
        case "content_block_start":
            return _block_start(data["index"], data["content_block"], state)
        case "content_block_delta":
            return _block_delta(data["index"], data["delta"], state)
        case "message_delta":
            _count(state, data.get("usage"))
            state.stop_reason = data["delta"].get("stop_reason") or state.stop_reason
            state.stop_sequence = data["delta"].get("stop_sequence")
            return []
        case "message_stop":
            return _completed(state)
        case "error":
            return _failed(state, _upstream_failure(as_mapping(data.get("error"))))
        case _:
            return []


def _block_start(index: int, block: Mapping[str, Any], state: ParseState) -> list[StreamEvent]:
    match block["type"]:
        case "text" if block.get("text"):
            return [TextDelta(block["text"])]
        case "thinking" if block.get("thinking") or block.get("signature"):
            return [ThinkingDelta(block["thinking"], signature=block.get("signature") or "")]
        case "redacted_thinking":
            return [ThinkingDelta(redacted=block["data"])]
        case "tool_use":
            call = state.tool_calls
            state.blocks[index], state.tool_calls = call, call + 1
            events: list[StreamEvent] = [ToolCallStarted(call, block["id"], block["name"])]
            if block.get("input"):
                events.append(ToolCallDelta(call, json.dumps(block["input"])))
            return events
        case _:
            return []


def _block_delta(index: int, delta: Mapping[str, Any], state: ParseState) -> list[StreamEvent]:
    match delta["type"]:
        case "text_delta":
            return [TextDelta(delta["text"])] if delta["text"] else []
        case "thinking_delta":
            return [ThinkingDelta(delta["thinking"])] if delta["thinking"] else []
        case "signature_delta":
            return [ThinkingDelta(signature=delta["signature"])] if delta["signature"] else []
        case "input_json_delta" if index in state.blocks and delta["partial_json"]:
            return [ToolCallDelta(state.blocks[index], delta["partial_json"])]
        case _:
            return []


def _count(state: ParseState, usage: Any) -> None:
    """Counts are running totals; one that a frame leaves out keeps its value."""
    state.counts.update({k: v for k, v in as_mapping(usage).items() if isinstance(v, int)})


def usage_of(counts: Mapping[str, Any]) -> Usage:
    """Anthropic's `input_tokens` leaves cached tokens out, as our classes do."""
    return Usage(
        input_tokens=counts.get("input_tokens", 0),
        output_tokens=counts.get("output_tokens", 0),
        cache_read_tokens=counts.get("cache_read_input_tokens", 0),
        cache_write_tokens=counts.get("cache_creation_input_tokens", 0),
        estimated="input_tokens" not in counts or "output_tokens" not in counts,
    )


def _completed(state: ParseState) -> list[StreamEvent]:
    state.ended = True
    native = state.stop_reason or "end_turn"
    reason = FINISH_REASONS.get(native, FinishReason.STOP)
    usage = usage_of(state.counts)
    return [Completed(reason, native, usage, stop_sequence=state.stop_sequence)]


def end_of_stream(state: ParseState) -> list[StreamEvent]:
    """What the end of the connection means: nothing new after the end, a break before it."""
    if state.ended:
        return []
    if state.stop_reason is not None:
        return _completed(state)
    return _failed(state, provider_failure("the provider's stream broke off"))


def _failed(state: ParseState, failure: Failure) -> list[StreamEvent]:
    state.ended = True
    return [Failed(failure, usage_of(state.counts) if state.counts else None)]


def provider_failure(message: str, **detail: Any) -> Failure:
    return Failure("provider_error", 502, message, detail=detail, retryable=True)


def _upstream_failure(error: Mapping[str, Any]) -> Failure:
    kind = str(error.get("type") or "api_error")
    message = str(error.get("message") or kind)
    status = ERROR_STATUS.get(kind, 500)
    if kind in _CLIENT_FAULTS:
        return Failure(_CLIENT_FAULTS[kind], status, message, detail={"upstream_status": status})
    return provider_failure(message, upstream_status=status, upstream_type=kind)
