"""An OpenAI-family provider's stream, chunk by chunk, as canonical events.

Source: https://platform.openai.com/docs/api-reference/chat-streaming, and the ways in which
other members of the family differ from it, each named where it is met.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.domain.dialects.answer_fields import as_mapping
from shared.domain.inference import (
    DONE_FRAME,
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
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}


@dataclass(slots=True)
class _Call:
    """A tool call as the provider numbers it, and as we do."""

    index: int
    id: str
    name: str = ""
    started: bool = False
    waiting: str = ""


@dataclass(slots=True)
class ParseState:
    """What the stream has told so far; `calls` finds a tool call by the provider's index."""

    started: bool = False
    calls: dict[int, _Call] = field(default_factory=dict)
    call_count: int = 0
    finish_reason: str | None = None
    refused: bool = False
    usage: Usage | None = None
    ended: bool = False


def parse_event(name: str | None, data: Mapping[str, Any], state: ParseState) -> list[StreamEvent]:
    """The events that one chunk tells. After `Completed` or `Failed` nothing more comes.

    A chunk that is not of the wire's form ends the stream with a `Failed`.
    """
    if state.ended:
        return []
    if data == DONE_FRAME[1]:
        return _completed(state)
    try:
        return list(_parse(data, state))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        return _failed(state, _provider_failure(f"malformed chunk: {error!r}"))


def _parse(data: Mapping[str, Any], state: ParseState) -> Iterator[StreamEvent]:
    if data.get("error"):
        yield from _failed(state, _upstream_failure(data["error"]))
        return
    choices = data.get("choices") or ()
    if not state.started:
        state.started = True
        yield Started(str(data.get("id") or ""))
    for choice in choices:
        yield from _delta(as_mapping(choice.get("delta")), state)
        state.finish_reason = choice.get("finish_reason") or state.finish_reason
    if data.get("usage"):
        state.usage = usage_of(data["usage"])
        if not choices and state.finish_reason is not None:
            yield from _completed(state)


def _delta(delta: Mapping[str, Any], state: ParseState) -> Iterator[StreamEvent]:
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        yield ThinkingDelta(reasoning)
    for block in delta.get("thinking_blocks") or ():
        if block.get("signature") or block.get("data"):
            yield ThinkingDelta(
                signature=block.get("signature") or "", redacted=block.get("data") or ""
            )
    yield from _content(delta.get("content"))
    if delta.get("refusal"):
        state.refused = True
        yield TextDelta(delta["refusal"])
    for call in delta.get("tool_calls") or ():
        yield from _tool_call(call, state)


def _content(content: Any) -> Iterator[StreamEvent]:
    """A string; Mistral's reasoning models send a list of parts."""
    if isinstance(content, str):
        if content:
            yield TextDelta(content)
        return
    for part in content or ():
        if part["type"] == "text":
            yield TextDelta(part["text"])
        elif part["type"] == "thinking":
            inner = part["thinking"]
            text = inner if isinstance(inner, str) else "".join(p.get("text", "") for p in inner)
            yield ThinkingDelta(text)


def _tool_call(piece: Mapping[str, Any], state: ParseState) -> Iterator[StreamEvent]:
    """A call starts once its name is known; what came before waits."""
    call = _find_call(piece, state)
    function = as_mapping(piece.get("function"))
    arguments = function.get("arguments") or ""
    if not call.started:
        call.name += function.get("name") or ""
        call.waiting += arguments
        if call.name:
            call.started = True
            yield ToolCallStarted(call.index, call.id, call.name)
            if call.waiting:
                yield ToolCallDelta(call.index, call.waiting)
    elif arguments:
        yield ToolCallDelta(call.index, arguments)


def _find_call(piece: Mapping[str, Any], state: ParseState) -> _Call:
    """The call a piece belongs to: by its index, but a new id is always a new call.

    Gemini's OpenAI form gives every call of an answer the index 0, or none at all.
    """
    key = piece.get("index")
    if key is None:
        key = max(state.calls, default=0)
    known, call_id = state.calls.get(key), piece.get("id") or ""
    if known is not None and (not call_id or call_id == known.id):
        return known
    call = _Call(state.call_count, call_id or f"call_{state.call_count}")
    state.calls[key] = call
    state.call_count += 1
    return call


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """Disjoint classes of tokens: OpenAI's `prompt_tokens` includes the cached ones.

    xAI and Gemini leave reasoning out of `completion_tokens` but not out of `total_tokens`,
    and DeepSeek names its cache hits at the top.
    """
    details = as_mapping(usage.get("prompt_tokens_details"))
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    read = details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
    written = details.get("cache_write_tokens") or 0
    return Usage(
        input_tokens=max(prompt - read - written, 0),
        output_tokens=max(completion, (usage.get("total_tokens") or 0) - prompt),
        cache_read_tokens=read,
        cache_write_tokens=written,
    )


def _completed(state: ParseState) -> list[StreamEvent]:
    state.ended = True
    native = state.finish_reason or "stop"
    reason = FINISH_REASONS.get(native, FinishReason.STOP)
    if reason is FinishReason.STOP and state.refused:
        reason = FinishReason.CONTENT_FILTER
    elif reason is FinishReason.STOP and state.call_count:
        reason = FinishReason.TOOL_CALLS  # some of the family say "stop" after tool calls
    return [Completed(reason, native, state.usage or Usage(estimated=True))]


def end_of_stream(state: ParseState) -> list[StreamEvent]:
    """What the end of the connection means: an end if a finish reason was told, else a break."""
    if state.ended:
        return []
    if state.finish_reason is not None:
        return _completed(state)
    return _failed(state, _provider_failure("the provider's stream broke off"))


def _failed(state: ParseState, failure: Failure) -> list[StreamEvent]:
    state.ended = True
    return [Failed(failure, state.usage)]


def _provider_failure(message: str, **detail: Any) -> Failure:
    return Failure("provider_error", 502, message, detail=detail, retryable=True)


def _upstream_failure(error: Any) -> Failure:
    """An error within a 200; `code` is a status with some of the family, a word with others."""
    told = error if isinstance(error, Mapping) else {"message": str(error)}
    code = told.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    message = str(told.get("message") or told.get("type") or "the provider failed")
    if told.get("type") == "invalid_request_error" and status in (400, 500):
        return Failure("invalid_request", 400, message, detail={"upstream_status": 400})
    return _provider_failure(message, upstream_status=status)
