"""A folded answer as the stream it would have been: for those who read its events later."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.inference import DONE_FRAME, Dialect, Frame


def unfold(dialect: Dialect, body: Mapping[str, Any]) -> list[Frame]:
    """The frames that tell `body`, each block of it in one piece."""
    match dialect:
        case Dialect.NATIVE:
            return [("completed", dict(body))]
        case Dialect.OPENAI:
            return [(None, _chunk(body)), DONE_FRAME]
        case Dialect.ANTHROPIC:
            return list(_message(body))


def _chunk(completion: Mapping[str, Any]) -> dict[str, Any]:
    """A completion as one chunk; in a stream, tool calls are numbered."""
    choices = []
    for choice in completion.get("choices", ()):
        delta = dict(choice["message"])
        if delta.get("tool_calls"):
            delta["tool_calls"] = [
                {"index": index, **call} for index, call in enumerate(delta["tool_calls"])
            ]
        told = {key: value for key, value in choice.items() if key != "message"}
        choices.append({**told, "delta": delta})
    return {**completion, "object": "chat.completion.chunk", "choices": choices}


# how a block of each kind is told: what it starts with, and its one delta
_PIECES = {
    "text": ("text", "text_delta", "text"),
    "thinking": ("thinking", "thinking_delta", "thinking"),
}


def _message(message: Mapping[str, Any]) -> Iterator[Frame]:
    ending = {key: message.get(key) for key in ("stop_reason", "stop_sequence")}
    bare = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message=bare)
    for index, block in enumerate(message.get("content", ())):
        yield from _block(index, block)
    yield _event("message_delta", delta=ending, usage=message.get("usage") or {})
    yield _event("message_stop")


def _block(index: int, block: Mapping[str, Any]) -> Iterator[Frame]:
    """Start, one delta, stop; a kind that no delta is known for comes whole at its start."""
    start, deltas = dict(block), []
    if block["type"] in _PIECES:
        name, kind, key = _PIECES[block["type"]]
        start[name] = ""
        deltas = [{"type": kind, key: block[name]}]
        if "signature" in block:
            start["signature"] = ""
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif block["type"] == "tool_use":
        start["input"] = {}
        arguments = json.dumps(block["input"], ensure_ascii=False)
        deltas = [{"type": "input_json_delta", "partial_json": arguments}]
    yield _event("content_block_start", index=index, content_block=start)
    for delta in deltas:
        yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _event(kind: str, **fields: Any) -> Frame:
    return kind, {"type": kind, **fields}
