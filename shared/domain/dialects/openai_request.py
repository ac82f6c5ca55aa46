"""An OpenAI chat completions body read into an `InferenceRequest`.

Messages become content blocks of the canonical form: tool calls are `tool_use`, messages of
the role `tool` are `tool_result` blocks of one user message, data URLs are base64 sources.
Source: https://platform.openai.com/docs/api-reference/chat/create
"""

import json
from collections.abc import Mapping
from typing import Any

from shared.domain.dialects.fields import (
    a_flag,
    a_list,
    a_name,
    a_string,
    an_object,
    fault,
    optional_int,
    optional_number,
    optional_object,
    optional_string,
    strings,
)
from shared.domain.dialects.wishes import capabilities, read_agent, read_hint, read_target
from shared.domain.inference import (
    Block,
    Dialect,
    InferenceRequest,
    Message,
    Tool,
    ToolChoice,
)

FORMATS = ("text", "json_object", "json_schema")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MODES = {"auto": "auto", "none": "none", "required": "any"}
# the key under which Anthropic's documentation wraps tool arguments that are no JSON object
INVALID_JSON = "INVALID_JSON"


def parse_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a body of `POST /v1/chat/completions`; raises `InvalidRequest` naming the field."""
    model, alias = read_target(body)
    _refuse_what_is_gone(body)
    system, messages = read_messages(body)
    tools, vendor_tools = read_tools(body.get("tools"))
    thinking = optional_object(body, "thinking")
    response_format = read_format(body)
    options = optional_object(body, "stream_options") or {}
    return InferenceRequest(
        dialect=Dialect.OPENAI,
        model=model,
        alias=alias,
        messages=messages,
        system=system,
        max_tokens=_token_limit(body),
        temperature=optional_number(body, "temperature", 0, 2),
        top_p=optional_number(body, "top_p", 0, 1),
        stop=strings(body.get("stop"), "stop"),
        tools=tools,
        tool_choice=read_choice(body.get("tool_choice"), a_flag(body, "parallel_tool_calls", True)),
        thinking=thinking,
        response_format=response_format,
        stream=a_flag(body, "stream"),
        include_usage=a_flag(options, "include_usage", at="stream_options."),
        background=a_flag(body, "background"),
        hint=read_hint(body),
        metadata=optional_object(body, "metadata") or {},
        agent_id=read_agent(body),
        capabilities=capabilities(messages, tools, thinking, response_format, vendor_tools),
        body=body,
    )


def _refuse_what_is_gone(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise fault("n", "must be 1: one call gives one answer")
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.get(old) is not None:
            raise fault(old, f"is deprecated and not served; use {new}")


def _token_limit(body: Mapping[str, Any]) -> int | None:
    limit = optional_int(body, "max_completion_tokens")
    return limit if limit is not None else optional_int(body, "max_tokens")


def read_messages(body: Mapping[str, Any]) -> tuple[tuple[Block, ...], tuple[Message, ...]]:
    """`(system blocks, messages)`; system messages before the first turn are system blocks."""
    raw = a_list(body.get("messages"), "messages")
    if not raw:
        raise fault("messages", "must hold at least one message")
    system: tuple[Block, ...] = ()
    messages: list[Message] = []
    for i, item in enumerate(raw):
        message = read_message(an_object(item, f"messages[{i}]"), f"messages[{i}]")
        if message.role == "system" and not messages:
            system += message.content
        else:
            join_results(messages, message)
    if not messages:
        return (), (Message("user", system),)
    return system, tuple(messages)


def join_results(messages: list[Message], message: Message) -> None:
    """Append a message; results of parallel tool calls are put into one user message."""
    if messages and _only_results(message) and _only_results(messages[-1]):
        messages[-1] = Message("user", messages[-1].content + message.content)
    else:
        messages.append(message)


def _only_results(message: Message) -> bool:
    return bool(message.content) and all(b["type"] == "tool_result" for b in message.content)


def read_message(item: Mapping[str, Any], at: str) -> Message:
    role = item.get("role")
    if role in ("system", "developer"):
        return Message("system", read_content(item.get("content"), f"{at}.content"))
    if role == "user":
        return Message("user", read_content(item.get("content"), f"{at}.content"))
    if role == "assistant":
        return Message("assistant", _assistant_blocks(item, at))
    if role == "tool":
        return Message("user", (_tool_result(item, at),))
    raise fault(f"{at}.role", f"must be one of {', '.join(_ROLES)}")


def _tool_result(item: Mapping[str, Any], at: str) -> Block:
    call_id = a_name(item.get("tool_call_id"), f"{at}.tool_call_id")
    content = item.get("content")
    if not isinstance(content, str):
        content = list(read_content(content, f"{at}.content"))
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def _assistant_blocks(item: Mapping[str, Any], at: str) -> tuple[Block, ...]:
    blocks = list(_reasoning(item, at))
    if item.get("content") is not None:
        blocks.extend(read_content(item["content"], f"{at}.content"))
    refusal = optional_string(item, "refusal", f"{at}.")
    if refusal:
        blocks.append({"type": "text", "text": refusal})
    calls = item.get("tool_calls")
    if calls is not None:
        for i, call in enumerate(a_list(calls, f"{at}.tool_calls")):
            blocks.append(read_tool_call(call, f"{at}.tool_calls[{i}]"))
    if item.get("content") is None and not blocks:
        raise fault(f"{at}.content", "must be given where there are no tool calls")
    return tuple(blocks)


def _reasoning(item: Mapping[str, Any], at: str) -> list[Block]:
    """Thinking that an earlier answer of ours showed, sent back by the client."""
    blocks = item.get("thinking_blocks")
    if blocks is None:
        return []
    kept = []
    for i, value in enumerate(a_list(blocks, f"{at}.thinking_blocks")):
        block = dict(an_object(value, f"{at}.thinking_blocks[{i}]"))
        a_name(block.get("type"), f"{at}.thinking_blocks[{i}].type")
        block.pop("index", None)
        kept.append(block)
    return kept


def read_tool_call(value: Any, at: str) -> Block:
    """A tool call as a `tool_use` block; a vendor's own kind of call is kept as it is."""
    call = an_object(value, at)
    call_id = a_name(call.get("id"), f"{at}.id")
    if call.get("type", "function") != "function":
        return {**call, "type": a_name(call.get("type"), f"{at}.type")}
    function = an_object(call.get("function"), f"{at}.function")
    return {
        "type": "tool_use",
        "id": call_id,
        "name": a_name(function.get("name"), f"{at}.function.name"),
        "input": arguments_object(
            a_string(function.get("arguments", ""), f"{at}.function.arguments")
        ),
    }


def arguments_object(arguments: str) -> dict[str, Any]:
    """The arguments a model wrote, as an object; what is no object is wrapped, not lost."""
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments)
    except ValueError:
        return {INVALID_JSON: arguments}
    return value if isinstance(value, dict) else {INVALID_JSON: arguments}


def read_content(value: Any, at: str) -> tuple[Block, ...]:
    if isinstance(value, str):
        return ({"type": "text", "text": value},)
    if not isinstance(value, list):
        raise fault(at, "must be a string or a list of content parts")
    return tuple(read_part(part, f"{at}[{i}]") for i, part in enumerate(value))


def read_part(value: Any, at: str) -> Block:
    """A content part as a canonical block; other kinds than these are kept as they are."""
    part = an_object(value, at)
    kind = a_name(part.get("type"), f"{at}.type")
    if kind == "text":
        a_string(part.get("text"), f"{at}.text")
    elif kind == "refusal":
        return {"type": "text", "text": a_string(part.get("refusal"), f"{at}.refusal")}
    elif kind == "image_url":
        return _image(part, at)
    elif kind == "file":
        return _document(part, at)
    return dict(part)


def _image(part: Mapping[str, Any], at: str) -> Block:
    image = an_object(part.get("image_url"), f"{at}.image_url")
    url = a_name(image.get("url"), f"{at}.image_url.url")
    source = _data_source(url, f"{at}.image_url.url") or {"type": "url", "url": url}
    return {"type": "image", "source": source, **_others(part, image, "image_url", "url")}


def _document(part: Mapping[str, Any], at: str) -> Block:
    file = an_object(part.get("file"), f"{at}.file")
    if file.get("file_id") is not None:
        source = {"type": "file", "file_id": a_name(file["file_id"], f"{at}.file.file_id")}
    else:
        data = a_name(file.get("file_data"), f"{at}.file.file_data")
        source = _data_source(data, f"{at}.file.file_data") or {
            "type": "base64",
            "media_type": "application/pdf",
            "data": data,
        }
    title = optional_string(file, "filename", f"{at}.file.")
    named = {} if title is None else {"title": title}
    return {"type": "document", "source": source, **named}


def _others(
    part: Mapping[str, Any], inner: Mapping[str, Any], name: str, *taken: str
) -> dict[str, Any]:
    """What a part says besides its source, such as `detail` and `cache_control`."""
    return {k: v for k, v in part.items() if k not in ("type", name)} | {
        k: v for k, v in inner.items() if k not in taken
    }


def _data_source(url: str, at: str) -> Block | None:
    """A base64 source for a data URL, None for any other URL."""
    if not url.startswith("data:"):
        return None
    head, comma, data = url[5:].partition(",")
    if not comma or not head.endswith(";base64"):
        raise fault(at, "must be an http URL or a data URL with base64 content")
    return {"type": "base64", "media_type": head.removesuffix(";base64"), "data": data}


def read_tools(value: Any) -> tuple[tuple[Tool, ...], bool]:
    """`(functions, whether there are tools of another kind, which only the vendor knows)`."""
    if value is None:
        return (), False
    items = a_list(value, "tools")
    tools = []
    for i, item in enumerate(items):
        tool = an_object(item, f"tools[{i}]")
        if a_name(tool.get("type"), f"tools[{i}].type") == "function":
            tools.append(read_tool(tool, f"tools[{i}]"))
    return tuple(tools), len(tools) < len(items)


def read_tool(tool: Mapping[str, Any], at: str) -> Tool:
    function, at = an_object(tool.get("function"), f"{at}.function"), f"{at}.function."
    parameters = function.get("parameters")
    return Tool(
        name=a_name(function.get("name"), f"{at}name"),
        description=optional_string(function, "description", at),
        parameters={} if parameters is None else an_object(parameters, f"{at}parameters"),
        strict=a_flag(function, "strict", at=at) if function.get("strict") is not None else None,
    )


def read_choice(value: Any, parallel: bool = True) -> ToolChoice | None:
    if value is None:
        return None if parallel else ToolChoice("auto", parallel=False)
    if isinstance(value, str):
        if value not in _MODES:
            raise fault("tool_choice", f"must be one of {', '.join(_MODES)} or an object")
        return ToolChoice(_MODES[value], parallel=parallel)  # type: ignore[arg-type]
    choice = an_object(value, "tool_choice")
    if choice.get("type") != "function":
        a_name(choice.get("type"), "tool_choice.type")
        return ToolChoice("auto", parallel=parallel)
    function = an_object(choice.get("function"), "tool_choice.function")
    name = a_name(function.get("name"), "tool_choice.function.name")
    return ToolChoice("tool", name, parallel=parallel)


def read_format(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = optional_object(body, "response_format")
    if wanted is None:
        return None
    if wanted.get("type") not in FORMATS:
        raise fault("response_format.type", f"must be one of {', '.join(FORMATS)}")
    if wanted["type"] == "json_schema":
        schema = an_object(wanted.get("json_schema"), "response_format.json_schema")
        a_name(schema.get("name"), "response_format.json_schema.name")
    return wanted
