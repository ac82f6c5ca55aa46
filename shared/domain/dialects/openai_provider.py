"""The request an OpenAI-family provider is sent.

A body of the same dialect is passed on as it is. Any other is built from the canonical
fields, and what this wire has no word for is named, never dropped in silence.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.dialects.fields import fault
from shared.domain.dialects.leftovers import NATIVE_SAID, unsaid
from shared.domain.dialects.model_limits import effort_for, knows_its_model, leave_out_for_openai
from shared.domain.dialects.wishes import OWN_FIELDS, unknown_wishes
from shared.domain.inference import (
    Block,
    Dialect,
    InferenceRequest,
    Message,
    Tool,
    ToolChoice,
)

# OpenAI's own models; the rest of the family knows an older form of some fields
_OWN_MODELS = ("gpt-", "chatgpt-", "o1", "o3", "o4")
_TOKEN_LIMITS = ("max_completion_tokens", "max_tokens")
_MODES = {"auto": "auto", "any": "required", "none": "none"}


def build_request(
    request: InferenceRequest, provider_model: str, max_tokens_default: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`(body to send, names of the client's fields that it cannot carry)`; always streaming.

    `max_tokens_default` is not used: this wire demands no limit. Usage is always asked for.
    Raises `InvalidRequest` for content that an OpenAI model cannot be shown.
    """
    if request.dialect is Dialect.OPENAI:
        body = {k: v for k, v in request.body.items() if k not in OWN_FIELDS}
        _settle_family(body, provider_model)
        ignored = list(unknown_wishes(request.body))
    else:
        body, ignored = _translated(request, provider_model), list(_ignored(request))
    if not knows_its_model(request, Dialect.OPENAI):
        taken = leave_out_for_openai(body, provider_model)
        ignored += [_client_word(name, request.dialect) for name in taken]
    options = {**(body.get("stream_options") or {}), "include_usage": True}
    return body | {"model": provider_model, "stream": True, "stream_options": options}, tuple(
        ignored
    )


def _client_word(name: str, dialect: Dialect) -> str:
    return "stop_sequences" if dialect is Dialect.ANTHROPIC and name == "stop" else name


def _is_own(provider_model: str) -> bool:
    return provider_model.startswith(_OWN_MODELS)


def _limit_field(provider_model: str) -> str:
    return _TOKEN_LIMITS[0] if _is_own(provider_model) else _TOKEN_LIMITS[1]


def _settle_family(body: dict[str, Any], provider_model: str) -> None:
    """Say what the client said with the words that this member of the family knows."""
    limit = next((body[name] for name in _TOKEN_LIMITS if body.get(name) is not None), None)
    for name in _TOKEN_LIMITS:
        body.pop(name, None)
    if limit is not None:
        body[_limit_field(provider_model)] = limit
    messages = body["messages"]
    if not _is_own(provider_model) and any(m.get("role") == "developer" for m in messages):
        body["messages"] = [
            {**m, "role": "system"} if m.get("role") == "developer" else m for m in messages
        ]


def _translated(request: InferenceRequest, provider_model: str) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": _messages(request)}
    if request.max_tokens is not None:
        body[_limit_field(provider_model)] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = list(request.stop)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        body.update(_choice(request.tool_choice))
    if request.response_format is not None:
        body["response_format"] = dict(request.response_format)
    effort = _effort(request)
    if effort is not None:
        body["reasoning_effort"] = effort
    return body


def _effort(request: InferenceRequest) -> str | None:
    """How hard to think: the client's own word for it, else by its thinking budget."""
    config = request.body.get("output_config")
    if isinstance(config, Mapping) and isinstance(config.get("effort"), str):
        return str(config["effort"])
    thinking = request.thinking or {}
    if thinking.get("type") != "enabled":
        return None
    return effort_for(thinking.get("budget_tokens", 0))


def _messages(request: InferenceRequest) -> list[dict[str, Any]]:
    built: list[dict[str, Any]] = []
    if request.system:
        built.append({"role": "system", "content": _text(request.system, "system")})
    for i, message in enumerate(request.messages):
        at = f"messages[{i}].content"
        if message.role == "system":
            built.append({"role": "system", "content": _text(message.content, at)})
        elif message.role == "assistant":
            built.extend(_assistant(message, at))
        else:
            built.extend(_user(message, at))
    return built


def _text(blocks: tuple[Block, ...], at: str) -> str:
    """Blocks of text as one string: not every member of the family takes a list here."""
    for j, block in enumerate(blocks):
        if block["type"] != "text":
            raise fault(f"{at}[{j}]", f"{block['type']} is not allowed in instructions")
    return "\n\n".join(block["text"] for block in blocks)


def _assistant(message: Message, at: str) -> Iterator[dict[str, Any]]:
    texts, calls = [], []
    for j, block in enumerate(message.content):
        match block["type"]:
            case "text":
                texts.append(block["text"])
            case "tool_use":
                function = {"name": block["name"], "arguments": json.dumps(block["input"])}
                calls.append({"id": block["id"], "type": "function", "function": function})
            case "thinking" | "redacted_thinking":
                pass
            case other:
                raise fault(f"{at}[{j}]", f"{other} cannot be sent to an OpenAI model")
    if texts or calls:
        told: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
        yield told | ({"tool_calls": calls} if calls else {})


def _user(message: Message, at: str) -> Iterator[dict[str, Any]]:
    """Tool results are messages of their own; images among them follow as the user's."""
    parts: list[dict[str, Any]] = []
    for j, block in enumerate(message.content):
        if block["type"] != "tool_result":
            parts.append(_part(block, f"{at}[{j}]"))
            continue
        text, shown = _result(block, f"{at}[{j}].content")
        parts.extend(shown)
        yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text}
    if len(parts) == 1 and parts[0]["type"] == "text":
        yield {"role": "user", "content": parts[0]["text"]}
    elif parts:
        yield {"role": "user", "content": parts}


def _result(block: Block, at: str) -> tuple[str, list[dict[str, Any]]]:
    content = block.get("content")
    if content is None or isinstance(content, str):
        return content or "", []
    parts = [_part(inner, f"{at}[{k}]") for k, inner in enumerate(content)]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return text, [part for part in parts if part["type"] != "text"]


def _part(block: Block, at: str) -> dict[str, Any]:
    match block["type"]:
        case "text":
            return {"type": "text", "text": block["text"]}
        case "image":
            url = {"url": _url(block["source"], at)}
            detail = {"detail": block["detail"]} if block.get("detail") else {}
            return {"type": "image_url", "image_url": url | detail}
        case "document":
            return _document(block, at)
        case "input_audio":
            return dict(block)
        case other:
            raise fault(at, f"{other} cannot be sent to an OpenAI model")


def _url(source: Mapping[str, Any], at: str) -> str:
    if source["type"] == "base64":
        return f"data:{source['media_type']};base64,{source['data']}"
    if source["type"] == "url":
        return str(source["url"])
    raise fault(at, f"a source of type {source['type']} cannot be sent to an OpenAI model")


def _document(block: Block, at: str) -> dict[str, Any]:
    source = block["source"]
    if source["type"] == "text":
        return {"type": "text", "text": source["data"]}
    if source["type"] == "content":
        inner = source["content"]
        blocks = inner if isinstance(inner, str) else "\n".join(b.get("text", "") for b in inner)
        return {"type": "text", "text": blocks}
    if source["type"] != "base64":
        raise fault(at, f"a document by {source['type']} cannot be sent to an OpenAI model")
    file = {"filename": block.get("title") or "document.pdf", "file_data": _url(source, at)}
    return {"type": "file", "file": file}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = dict(tool.parameters) or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    alone = {} if choice.parallel else {"parallel_tool_calls": False}
    if choice.mode == "tool":
        named = {"type": "function", "function": {"name": choice.name}}
        return {"tool_choice": named, **alone}
    return {"tool_choice": _MODES[choice.mode], **alone}


_SAID = {
    Dialect.ANTHROPIC: frozenset(
        {
            "model",
            "messages",
            "system",
            "max_tokens",
            "temperature",
            "top_p",
            "stop_sequences",
            "tools",
            "tool_choice",
            "thinking",
            "output_config",
            "stream",
        }
    ),
    Dialect.NATIVE: NATIVE_SAID,
}


def _ignored(request: InferenceRequest) -> Iterator[str]:
    yield from unsaid(request, _SAID[request.dialect])
    blocks = [*request.system, *(block for m in request.messages for block in m.content)]
    if any("cache_control" in b for b in blocks) or any(
        "cache_control" in tool for tool in request.body.get("tools") or ()
    ):
        yield "cache_control"
    if any(block.get("citations") for block in blocks):
        yield "messages[].content[].citations"
    if any(block.get("is_error") for block in blocks):
        yield "messages[].content[].is_error"
    if any(block["type"] in ("thinking", "redacted_thinking") for block in blocks):
        yield "messages[].content[].thinking"
