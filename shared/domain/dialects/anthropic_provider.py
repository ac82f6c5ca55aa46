"""The request an Anthropic provider is sent.

A body of the same dialect is passed on as it is. Any other is built from the canonical
fields, and what this wire has no word for is named, never dropped in silence.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.domain.dialects.fields import fault
from shared.domain.dialects.leftovers import NATIVE_SAID, unsaid
from shared.domain.dialects.model_limits import knows_its_model, leave_out_for_claude
from shared.domain.dialects.wishes import OWN_FIELDS, unknown_wishes
from shared.domain.inference import (
    Block,
    Capability,
    Dialect,
    InferenceRequest,
    Message,
    Tool,
    ToolChoice,
)

_BLOCKS = frozenset(
    {
        "text",
        "image",
        "document",
        "tool_use",
        "tool_result",
        "thinking",
        "redacted_thinking",
        "search_result",
    }
)

_THINKING = "messages[].content[].thinking"


def build_request(
    request: InferenceRequest, provider_model: str, max_tokens_default: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`(body to send, names of the client's fields that it cannot carry)`; always streaming.

    `max_tokens_default` is used where the client set no limit: this wire demands one.
    Raises `InvalidRequest` for content that an Anthropic model cannot be shown.
    """
    if request.dialect is Dialect.ANTHROPIC:
        body, ignored = _passed_on(request)
    else:
        body, ignored = _translated(request), list(_ignored(request))
    body.setdefault("max_tokens", max_tokens_default)
    if not knows_its_model(request, Dialect.ANTHROPIC):
        ignored += [n for n in leave_out_for_claude(body, provider_model) if n not in ignored]
    return body | {"model": provider_model, "stream": True}, tuple(ignored)


def _passed_on(request: InferenceRequest) -> tuple[dict[str, Any], list[str]]:
    body = {k: v for k, v in request.body.items() if k not in OWN_FIELDS}
    ignored = list(unknown_wishes(request.body))
    if _has_unsigned_thinking(request.messages):
        body["messages"] = _without_unsigned(body["messages"])
        ignored.append(_THINKING)
    return body, ignored


def _has_unsigned_thinking(messages: Sequence[Message]) -> bool:
    return any(_is_unsigned(block) for message in messages for block in message.content)


def _is_unsigned(block: Any) -> bool:
    """Thinking of another vendor's model, shown by us: Anthropic takes only its own back."""
    return (
        isinstance(block, Mapping)
        and block.get("type") == "thinking"
        and not block.get("signature")
    )


def _without_unsigned(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kept: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = [block for block in content if not _is_unsigned(block)]
        if content:
            kept.append({**message, "content": content})
    return kept


def _translated(request: InferenceRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": _messages(request)}
    system = _system(request)
    if system:
        body["system"] = system
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = min(request.temperature, 1.0)
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            body["tool_choice"] = _choice(request.tool_choice)
    if request.thinking is not None:
        body["thinking"] = dict(request.thinking)
    if Capability.JSON_SCHEMA in request.capabilities and request.response_format is not None:
        schema = request.response_format["json_schema"].get("schema", {})
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return body


def _system(request: InferenceRequest) -> list[Block]:
    """Instructions in mid-conversation join the others: not every model takes them in place."""
    later = [b for m in request.messages if m.role == "system" for b in m.content]
    return [_plain(block) for block in (*request.system, *later) if not _is_empty(block)]


def _messages(request: InferenceRequest) -> list[dict[str, Any]]:
    built = []
    for i, message in enumerate(request.messages):
        if message.role == "system":
            continue
        content = list(_blocks(message, f"messages[{i}]"))
        if content:
            built.append({"role": message.role, "content": content})
    if not built:
        raise fault("messages", "must hold some content")
    return built


def _blocks(message: Message, at: str) -> Iterator[Block]:
    for j, block in enumerate(message.content):
        if block["type"] not in _BLOCKS:
            raise fault(
                f"{at}.content[{j}]", f"{block['type']} cannot be sent to an Anthropic model"
            )
        source = block.get("source")
        if isinstance(source, Mapping) and source.get("type") == "file":
            raise fault(f"{at}.content[{j}]", "a file is known only to the vendor it was sent to")
        if not _is_empty(block) and not _is_unsigned(block):
            yield _plain(block)


def _is_empty(block: Block) -> bool:
    return block["type"] == "text" and not block["text"]


def _plain(block: Block) -> Block:
    """A block without `detail`, which only OpenAI's images have."""
    if block["type"] == "tool_result" and isinstance(block.get("content"), list):
        inner = [_plain(b) for b in block["content"] if not _is_empty(b)]
        return {**block, "content": inner}
    return {k: v for k, v in block.items() if k != "detail"}


def _tool(tool: Tool) -> dict[str, Any]:
    built: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        built["description"] = tool.description
    built["input_schema"] = dict(tool.parameters) or {"type": "object", "properties": {}}
    if tool.strict is not None:
        built["strict"] = tool.strict
    return built


def _choice(choice: ToolChoice) -> dict[str, Any]:
    built: dict[str, Any] = {"type": choice.mode}
    if choice.name is not None:
        built["name"] = choice.name
    if not choice.parallel and choice.mode != "none":
        built["disable_parallel_tool_use"] = True
    return built


_SAID = {
    Dialect.OPENAI: frozenset(
        {
            "model",
            "messages",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
            "stop",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "thinking",
            "response_format",
            "stream",
            "stream_options",
            "n",
        }
    ),
    Dialect.NATIVE: NATIVE_SAID,
}


def _ignored(request: InferenceRequest) -> Iterator[str]:
    yield from unsaid(request, _SAID[request.dialect])
    if request.temperature is not None and request.temperature > 1:
        yield "temperature"
    wanted = request.response_format or {}
    if wanted.get("type") == "json_object":
        yield "response_format"
    if any(b.get("detail") for m in request.messages for b in m.content if b["type"] == "image"):
        yield "messages[].content[].image_url.detail"
    if any(_is_unsigned(block) for m in request.messages for block in m.content):
        yield _THINKING
