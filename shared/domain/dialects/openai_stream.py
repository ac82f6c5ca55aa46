"""Our side of the OpenAI stream: events rendered as chunks, chunks folded to a completion.

Source: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from shared.domain.dialects.answer_fields import as_mapping, call_fields, notes
from shared.domain.dialects.openai_errors import error_frames
from shared.domain.inference import (
    DONE_FRAME,
    CallInfo,
    Completed,
    Failed,
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

# fields of a chunk that make sense in a stream only
_CHUNK_ONLY = frozenset({"choices", "object", "usage", "obfuscation"})


@dataclass(slots=True)
class RenderState:
    """Where the stream of one answer stands.

    `thought` is the reasoning of the open block, `bare` the tool calls without arguments yet.
    """

    call: CallInfo
    started: bool = False
    thought: list[str] = field(default_factory=list)
    thinking_blocks: int = 0
    bare: set[int] = field(default_factory=set)


def render_event(event: StreamEvent, state: RenderState) -> list[Frame]:
    """The frames that tell one event to an OpenAI client."""
    match event:
        case Started(ignored=ignored):
            state.call = replace(state.call, ignored=ignored or state.call.ignored)
            return _opening(state)
        case TextDelta(text=text):
            return _chunks(state, {"content": text})
        case ThinkingDelta():
            return _thinking(state, event)
        case ToolCallStarted(index=index, id=call_id, name=name):
            state.bare.add(index)
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return _chunks(state, {"tool_calls": [call]})
        case ToolCallDelta(index=index, arguments=arguments):
            state.bare.discard(index)
            return _arguments(state, index, arguments)
        case Completed():
            return _ending(state, event)
        case Failed(failure=failure):
            return error_frames(failure, state.call.inference_id)
        case Forwarded():
            raise TypeError("forwarded frames are already in the client's dialect")


def usage_fields(usage: Usage) -> dict[str, Any]:
    """OpenAI counts cached tokens within the prompt's."""
    return {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_input + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
    }


def _chunk(state: RenderState, choices: list[dict[str, Any]], **more: Any) -> Frame:
    chunk = {
        "id": "chatcmpl-" + state.call.inference_id.replace("-", ""),
        "object": "chat.completion.chunk",
        "created": state.call.created,
        "model": state.call.model,
        "choices": choices,
    }
    if state.call.include_usage:
        chunk["usage"] = None
    return (None, chunk | more)


def _choice(delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _opening(state: RenderState) -> list[Frame]:
    if state.started:
        return []
    state.started = True
    said = {"ainfera": call_fields(state.call)} if notes(state.call) else {}
    return [_chunk(state, [_choice({"role": "assistant", "content": ""})], **said)]


def _chunks(state: RenderState, delta: Mapping[str, Any]) -> list[Frame]:
    return [*_opening(state), _chunk(state, [_choice(delta)])]


def _arguments(state: RenderState, index: int, arguments: str) -> list[Frame]:
    call = {"index": index, "function": {"arguments": arguments}}
    return _chunks(state, {"tool_calls": [call]})


def _thinking(state: RenderState, event: ThinkingDelta) -> list[Frame]:
    """Reasoning goes out as `reasoning_content`, the word of OpenAI-family providers.

    A provider that signs its reasoning wants it back unchanged: the signed and the redacted
    blocks follow whole as `thinking_blocks`, which `parse_request` takes back.
    """
    frames: list[Frame] = []
    if event.text:
        state.thought.append(event.text)
        frames += _chunks(state, {"reasoning_content": event.text})
    if event.signature:
        block = {"type": "thinking", "thinking": "".join(state.thought)}
        frames += _thinking_block(state, {**block, "signature": event.signature})
        state.thought.clear()
    if event.redacted:
        block = {"type": "redacted_thinking", "data": event.redacted}
        frames += _thinking_block(state, block)
    return frames


def _thinking_block(state: RenderState, block: Mapping[str, Any]) -> list[Frame]:
    index = state.thinking_blocks
    state.thinking_blocks += 1
    return _chunks(state, {"thinking_blocks": [{"index": index, **block}]})


def _ending(state: RenderState, event: Completed) -> list[Frame]:
    """OpenAI clients parse the arguments of every call: a call without any has `{}`."""
    frames = _opening(state)
    for index in sorted(state.bare):
        frames += _arguments(state, index, "{}")
    frames.append(_chunk(state, [_choice({}, event.finish_reason.value)]))
    if state.call.include_usage:
        frames.append(_chunk(state, [], usage=usage_fields(event.usage)))
    return [*frames, DONE_FRAME]


def fold(
    frames: Iterable[Frame], call: CallInfo, cost_usd: Decimal | None, usage: Usage | None
) -> dict[str, Any]:
    """The completion that a stream tells, as the non-streamed call would have returned it.

    Takes our own frames and a provider's; fields that are unknown here are carried over.
    `usage` fills in where the frames name none. `cost_usd` has no place in this dialect.
    """
    body: dict[str, Any] = {"object": "chat.completion", "choices": []}
    choices: dict[int, dict[str, Any]] = {}
    counts: Mapping[str, Any] = {}
    for frame in frames:
        if frame == DONE_FRAME:
            continue
        chunk = frame[1]
        body.update({k: v for k, v in chunk.items() if k not in _CHUNK_ONLY and v is not None})
        counts = as_mapping(chunk.get("usage")) or counts
        for part in chunk.get("choices") or ():
            _add_choice(choices.setdefault(part.get("index", 0), {}), part)
    body["choices"] = [_finished(index, choices[index]) for index in sorted(choices)]
    if not counts and usage is not None:
        counts = usage_fields(usage)
    body["usage"] = dict(counts)
    body["ainfera"] = call_fields(call)
    return body


def _add_choice(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if key == "delta":
            _merge(choice.setdefault("message", {}), as_mapping(value))
        elif key == "logprobs" and value is not None:
            _merge_logprobs(choice.setdefault("logprobs", {}), value)
        elif key not in ("index", "logprobs") and value is not None:
            choice[key] = value


def _merge(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Strings are joined, objects merged, lists matched by their entries' `index`."""
    for key, value in delta.items():
        have = into.get(key)
        if have is None or key in ("role", "type", "index", "id"):
            into[key] = value if have is None or value else have
            into[key] = _copied(into[key])
        elif isinstance(have, str) and isinstance(value, str):
            into[key] = have + value
        elif isinstance(have, dict) and isinstance(value, Mapping):
            _merge(have, value)
        elif isinstance(have, list) and isinstance(value, list):
            _merge_list(have, value)
        elif value is not None:
            into[key] = value


def _copied(value: Any) -> Any:
    """Containers that later deltas add to must not be the frame's own."""
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list):
        fresh: list[Any] = []
        _merge_list(fresh, value)
        return fresh
    return value


def _merge_list(have: list[Any], entries: list[Any]) -> None:
    for entry in entries:
        index = entry.get("index") if isinstance(entry, Mapping) else None
        known = next((h for h in have if isinstance(h, dict) and h.get("index") == index), None)
        if index is None or known is None:
            have.append(_copied(entry))
        else:
            _merge(known, entry)


def _merge_logprobs(have: dict[str, Any], value: Mapping[str, Any]) -> None:
    for key, tokens in value.items():
        if isinstance(tokens, list):
            have[key] = [*(have.get(key) or ()), *tokens]
        else:
            have.setdefault(key, tokens)


def _finished(index: int, choice: Mapping[str, Any]) -> dict[str, Any]:
    said = {k: v for k, v in choice.items() if k != "message"}
    return {
        "index": index,
        "message": _finished_message(as_mapping(choice.get("message"))),
        "logprobs": None,
        "finish_reason": None,
        **said,
    }


def _finished_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what only a stream needs: an entry's `index`, an empty content."""
    whole: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, **message}
    for name in ("tool_calls", "thinking_blocks"):
        if name in whole:
            entries = sorted(whole[name] or (), key=lambda entry: entry.get("index", 0))
            whole[name] = [{k: v for k, v in e.items() if k != "index"} for e in entries]
    if whole.get("tool_calls") and not whole["content"]:
        whole["content"] = None
    return whole
