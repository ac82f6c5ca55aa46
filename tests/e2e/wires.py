"""How an answer looks on the two vendors' wires.

The frames have the fields of the recorded samples under tests/recorded, in their order.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from tests.standins.behaviour import error_frame

if TYPE_CHECKING:
    from tests.e2e.upstream import Say

Paced = Iterator[tuple[bytes, str]]

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def anthropic_frames(say: "Say", model: str) -> Paced:
    """Frames with the text that each holds, "" for those without."""
    before: dict[str, Any] = {"input_tokens": say.input_tokens, "output_tokens": 1}
    if say.cache_read_tokens:
        before |= {
            "cache_read_input_tokens": say.cache_read_tokens,
            "cache_creation_input_tokens": 0,
        }
    message: dict[str, Any] = {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        **({"usage": before} if say.usage else {}),
    }
    yield _named({"type": "message_start", "message": message}), ""
    yield _named({"type": "ping"}), ""
    block = -1
    if say.texts:
        block += 1
        start: dict[str, Any] = {"type": "text", "text": ""}
        yield _block("start", block, content_block=start), ""
        for text in say.texts[: say.broken_after]:
            yield _block("delta", block, delta={"type": "text_delta", "text": text}), text
    if say.broken_after is not None:
        if say.error:
            yield error_frame("anthropic", say.error, "overloaded_error"), ""
        return
    if say.texts:
        yield _block("stop", block), ""
    for name, arguments in say.tools:
        block += 1
        start = {"type": "tool_use", "id": f"toolu_{uuid4().hex}", "name": name, "input": {}}
        yield _block("start", block, content_block=start), ""
        for part in (arguments[:4], arguments[4:]):
            delta = {"type": "input_json_delta", "partial_json": part}
            yield _block("delta", block, delta=delta), ""
        yield _block("stop", block), ""
    ending: dict[str, Any] = {
        "type": "message_delta",
        "delta": {"stop_reason": STOP_REASONS[say.finish], "stop_sequence": None},
    }
    if say.usage:
        ending["usage"] = {"output_tokens": say.output_tokens}
    yield _named(ending), ""
    yield _named({"type": "message_stop"}), ""


def _block(kind: str, index: int, **more: Any) -> bytes:
    return _named({"type": f"content_block_{kind}", "index": index, **more})


def _named(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def openai_frames(say: "Say", model: str) -> Paced:
    """The same on the other wire."""
    common = {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": model,
        "system_fingerprint": "fp_1",
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**common, "choices": [choice]})

    yield chunk({"role": "assistant", "content": "" if say.texts else None, "refusal": None}), ""
    for text in say.texts[: say.broken_after]:
        yield chunk({"content": text}), text
    if say.broken_after is not None:
        if say.error:
            yield error_frame("openai", say.error, "server_error"), ""
        return
    for index, (name, arguments) in enumerate(say.tools):
        call = {"index": index, "id": f"call_{uuid4().hex}", "type": "function"}
        yield chunk({"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]}), ""
        for part in (arguments[:4], arguments[4:]):
            piece = {"index": index, "function": {"arguments": part}}
            yield chunk({"tool_calls": [piece]}), ""
    yield chunk({}, say.finish), ""
    if say.usage:
        prompt = say.input_tokens + say.cache_read_tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": say.output_tokens,
            "total_tokens": prompt + say.output_tokens,
            "prompt_tokens_details": {"cached_tokens": say.cache_read_tokens},
        }
        yield _data({**common, "choices": [], "usage": usage}), ""
    yield b"data: [DONE]\n\n", ""


def _data(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
