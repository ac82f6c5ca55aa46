"""What a stand-in is told to do, and the frames of its answers."""

import json
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

WORD = "lorem"
INPUT_TOKENS = 12
CACHE_READ_TOKENS = 3
MESSAGE_ID = "msg_standin_01"
CHAT_ID = "chatcmpl-standin-01"
TOOL_PIECES = ('{"', 'city": ', '"Bern"', "}")
_DIRECTIVE = re.compile(r"\[\[standin (\{.*?\})\]\]")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One way to answer. All counts are of words, times in milliseconds.

    `status` other than 200 refuses with `message`, `error_type` and `retry_after` (seconds).
    `hang` falls silent `before_headers`, `before_first_token` or `midstream`. `cut`, `error_inside`
    and `malformed` break the stream after that many words; -1 is never. `chunk_bytes` splits the
    answer into writes of that size, `byte_ms` apart. `late_end_ms` parts the last frame from the
    bytes that end the response. `text` replaces the words. `sample` names a
    file of `tests/recorded` to be served as it is.
    """

    status: int = 200
    message: str = "the stand-in was told to refuse"
    error_type: str = "api_error"
    retry_after: str = ""
    extra_headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "text/event-stream; charset=utf-8"
    words: int = 5
    text: str = ""
    first_ms: float = 0.0
    word_ms: float = 0.0
    hang: str = ""
    cut: int = -1
    error_inside: int = -1
    malformed: int = -1
    omit_usage: bool = False
    omit_end: bool = False
    late_end_ms: float = 0.0
    chunk_bytes: int = 0
    byte_ms: float = 0.0
    crlf: bool = False
    comments: bool = False
    sample: str = ""
    use_tools: bool = True

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Behaviour":
        """From JSON; an unknown name is an error, so that no test is green by a slip."""
        known = {field.name for field in fields(cls)}
        if unknown := told.keys() - known:
            raise ValueError(f"a stand-in knows no {', '.join(sorted(unknown))}")
        if "extra_headers" in told:
            told = {**told, "extra_headers": tuple(map(tuple, told["extra_headers"]))}
        return cls(**told)


def directive(**told: Any) -> str:
    """Text for a prompt that tells the stand-in how to answer it, through any gateway."""
    Behaviour.of(told)
    return f"[[standin {json.dumps(told)}]]"


def told_in(body: dict[str, Any]) -> Behaviour | None:
    """The behaviour that a directive in the last message asks for, if it holds one."""
    messages = body.get("messages") or [{}]
    content = messages[-1].get("content")
    texts = [content] if isinstance(content, str) else [p.get("text", "") for p in content or ()]
    for text in texts:
        if isinstance(text, str) and (found := _DIRECTIVE.search(text)):
            return Behaviour.of(json.loads(found[1]))
    return None


def wants_tool(body: dict[str, Any]) -> str | None:
    """The name of the tool to call: the first offered, unless a result was just given."""
    tools = body.get("tools") or ()
    choice = body.get("tool_choice")
    if not tools or choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none"):
        return None
    last = (body.get("messages") or [{}])[-1]
    content = last.get("content")
    parts = content if isinstance(content, list) else []
    if last.get("role") == "tool" or any(part.get("type") == "tool_result" for part in parts):
        return None
    tool = tools[0]
    name: str = (tool.get("function") or tool)["name"]
    return name


@dataclass(frozen=True, slots=True)
class Answer:
    """The frames of an answer: before its words, one for each word, and after them."""

    head: tuple[bytes, ...]
    words: tuple[bytes, ...]
    tail: tuple[bytes, ...]
    body: bytes


def _event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {_json(data)}\n\n".encode()


def _chunk(data: dict[str, Any]) -> bytes:
    return f"data: {_json(data)}\n\n".encode()


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def spoken(behaviour: Behaviour) -> tuple[str, ...]:
    """The words of the answer as the stand-in streams them."""
    if behaviour.text:
        return tuple(re.findall(r"\S*\s*", behaviour.text)[:-1]) or (behaviour.text,)
    return tuple(f"{WORD}{number} " for number in range(behaviour.words))


@cache
def anthropic_answer(behaviour: Behaviour, model: str, tool: str | None) -> Answer:
    """Frame by frame as in https://docs.anthropic.com/en/api/messages-streaming."""
    pieces = TOOL_PIECES if tool else spoken(behaviour)
    block: dict[str, Any] = {"type": "text", "text": ""}
    if tool:
        block = {"type": "tool_use", "id": "toolu_standin_01", "name": tool, "input": {}}
    usage = {
        "input_tokens": INPUT_TOKENS,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHE_READ_TOKENS,
        "output_tokens": 1,
    }
    message: dict[str, Any] = {
        "id": MESSAGE_ID,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {} if behaviour.omit_usage else usage,
    }
    delta = {"stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None}
    ending: dict[str, Any] = {"type": "message_delta", "delta": delta}
    if not behaviour.omit_usage:
        ending["usage"] = {"output_tokens": len(pieces)}
    content = {**block, "input": {"city": "Bern"}} if tool else {**block, "text": "".join(pieces)}
    whole = {**message, **delta, "content": [content]}
    if not behaviour.omit_usage:
        whole["usage"] = {**usage, "output_tokens": len(pieces)}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    kind, name = ("input_json_delta", "partial_json") if tool else ("text_delta", "text")
    words = tuple(
        _event({"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: piece}})
        for piece in pieces
    )
    return Answer(
        (
            _event({"type": "message_start", "message": message}),
            _event(start),
            _event({"type": "ping"}),
        ),
        words,
        (
            _event({"type": "content_block_stop", "index": 0}),
            _event(ending),
            _event({"type": "message_stop"}),
        ),
        _json(whole).encode(),
    )


@cache
def openai_answer(
    behaviour: Behaviour, model: str, tool: str | None, include_usage: bool
) -> Answer:
    """Chunk by chunk as in https://platform.openai.com/docs/api-reference/chat-streaming."""
    include_usage = include_usage and not behaviour.omit_usage
    pieces = TOOL_PIECES if tool else spoken(behaviour)
    base: dict[str, Any] = {
        "id": CHAT_ID,
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "system_fingerprint": "fp_standin",
    }
    also: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _chunk({**base, "choices": [choice], **also})

    usage = {
        "prompt_tokens": INPUT_TOKENS + CACHE_READ_TOKENS,
        "completion_tokens": len(pieces),
        "total_tokens": INPUT_TOKENS + CACHE_READ_TOKENS + len(pieces),
        "prompt_tokens_details": {"cached_tokens": CACHE_READ_TOKENS},
    }
    head = [chunk({"role": "assistant", "content": None if tool else "", "refusal": None})]
    if tool:
        called = {"name": tool, "arguments": ""}
        call = {"index": 0, "id": "call_standin_01", "type": "function", "function": called}
        head.append(chunk({"tool_calls": [call]}))
        words = [
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            for piece in pieces
        ]
    else:
        words = [chunk({"content": piece}) for piece in pieces]
    finish = "tool_calls" if tool else "stop"
    tail = [chunk({}, finish)]
    if include_usage:
        tail.append(_chunk({**base, "choices": [], "usage": usage}))
    tail.append(b"data: [DONE]\n\n")
    message: dict[str, Any] = {"role": "assistant", "content": None if tool else "".join(pieces)}
    if tool:
        function = {"name": tool, "arguments": "".join(pieces)}
        message["tool_calls"] = [
            {"id": "call_standin_01", "type": "function", "function": function}
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    whole = {**base, "object": "chat.completion", "choices": [choice]}
    if not behaviour.omit_usage:
        whole["usage"] = usage
    return Answer(tuple(head), tuple(words), tuple(tail), _json(whole).encode())


def error_frame(dialect: str, message: str, error_type: str) -> bytes:
    """An error within a stream, as each vendor tells it."""
    if dialect == "anthropic":
        return _event({"type": "error", "error": {"type": error_type, "message": message}})
    return _chunk({"error": {"message": message, "type": error_type, "param": None, "code": None}})


def error_body(dialect: str, message: str, error_type: str) -> bytes:
    """The body of a refusal."""
    error: dict[str, Any] = {"type": error_type, "message": message}
    if dialect == "anthropic":
        whole = {"type": "error", "error": error, "request_id": "req_standin"}
        return _json(whole).encode()
    return _json({"error": {**error, "param": None, "code": None}}).encode()
