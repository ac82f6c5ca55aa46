"""An Anthropic Messages body read into an `InferenceRequest`.

Content blocks are kept as the client wrote them: the canonical form is this one. Blocks and
tools of kinds unknown here are kept too, because an Anthropic model may know them.
Source: https://docs.anthropic.com/en/api/messages
"""

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

CHOICES = ("auto", "any", "none", "tool")
_ROLES = ("user", "assistant", "system")


def parse_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a body of `POST /v1/messages`; `max_tokens` may be left out.

    Raises `InvalidRequest` naming the field at fault.
    """
    model, alias = read_target(body)
    system, messages = read_messages(body)
    tools, vendor_tools = read_tools(body.get("tools"))
    thinking = read_thinking(body)
    response_format = _response_format(body)
    return InferenceRequest(
        dialect=Dialect.ANTHROPIC,
        model=model,
        alias=alias,
        messages=messages,
        system=system,
        max_tokens=optional_int(body, "max_tokens", 0),
        temperature=optional_number(body, "temperature", 0, 1),
        top_p=optional_number(body, "top_p", 0, 1),
        stop=strings(body.get("stop_sequences"), "stop_sequences"),
        tools=tools,
        tool_choice=read_choice(body.get("tool_choice")),
        thinking=thinking,
        response_format=response_format,
        stream=a_flag(body, "stream"),
        background=a_flag(body, "background"),
        hint=read_hint(body),
        metadata=optional_object(body, "metadata") or {},
        agent_id=read_agent(body),
        capabilities=capabilities(messages, tools, thinking, response_format, vendor_tools),
        body=body,
    )


def read_messages(body: Mapping[str, Any]) -> tuple[tuple[Block, ...], tuple[Message, ...]]:
    """`(system blocks, messages)`; system messages before the first turn are system blocks."""
    raw = a_list(body.get("messages"), "messages")
    if not raw:
        raise fault("messages", "must hold at least one message")
    system = read_system(body.get("system"))
    messages: list[Message] = []
    for i, item in enumerate(raw):
        message = read_message(an_object(item, f"messages[{i}]"), f"messages[{i}]")
        if message.role == "system" and not messages:
            system += message.content
        else:
            messages.append(message)
    if not messages:
        raise fault("messages", "must hold a message of the user")
    return system, tuple(messages)


def read_message(item: Mapping[str, Any], at: str) -> Message:
    role = item.get("role")
    if role not in _ROLES:
        raise fault(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
    return Message(role, read_content(item.get("content"), f"{at}.content"))


def read_system(value: Any) -> tuple[Block, ...]:
    return () if value is None else read_content(value, "system")


def read_content(value: Any, at: str) -> tuple[Block, ...]:
    """A string is one text block; a list is checked block by block and kept as it is."""
    if isinstance(value, str):
        return ({"type": "text", "text": value},)
    if not isinstance(value, list):
        raise fault(at, "must be a string or a list of content blocks")
    return tuple(read_block(block, f"{at}[{i}]") for i, block in enumerate(value))


def read_block(value: Any, at: str) -> Block:
    block = an_object(value, at)
    kind = a_name(block.get("type"), f"{at}.type")
    if kind == "text":
        a_string(block.get("text"), f"{at}.text")
    elif kind in ("image", "document"):
        a_name(an_object(block.get("source"), f"{at}.source").get("type"), f"{at}.source.type")
    elif kind == "tool_use":
        a_name(block.get("id"), f"{at}.id")
        a_name(block.get("name"), f"{at}.name")
        an_object(block.get("input"), f"{at}.input")
    elif kind == "tool_result":
        a_name(block.get("tool_use_id"), f"{at}.tool_use_id")
        if block.get("content") is not None:
            read_content(block["content"], f"{at}.content")
    elif kind == "thinking":
        a_string(block.get("thinking"), f"{at}.thinking")
    elif kind == "redacted_thinking":
        a_string(block.get("data"), f"{at}.data")
    return dict(block)


def read_tools(value: Any) -> tuple[tuple[Tool, ...], bool]:
    """`(tools with a schema, whether there are tools that only the vendor can run)`."""
    if value is None:
        return (), False
    items = a_list(value, "tools")
    tools = []
    for i, item in enumerate(items):
        tool = an_object(item, f"tools[{i}]")
        if is_custom_tool(tool):
            tools.append(read_tool(tool, f"tools[{i}]"))
        else:
            a_name(tool.get("type"), f"tools[{i}].type")
    return tuple(tools), len(tools) < len(items)


def is_custom_tool(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") in (None, "custom")


def read_tool(tool: Mapping[str, Any], at: str) -> Tool:
    return Tool(
        name=a_name(tool.get("name"), f"{at}.name"),
        description=optional_string(tool, "description", f"{at}."),
        parameters=an_object(tool.get("input_schema"), f"{at}.input_schema"),
        strict=a_flag(tool, "strict", at=f"{at}.") if tool.get("strict") is not None else None,
    )


def read_choice(value: Any) -> ToolChoice | None:
    if value is None:
        return None
    choice = an_object(value, "tool_choice")
    mode = choice.get("type")
    if mode not in CHOICES:
        raise fault("tool_choice.type", f"must be one of {', '.join(CHOICES)}")
    name = a_name(choice.get("name"), "tool_choice.name") if mode == "tool" else None
    alone = a_flag(choice, "disable_parallel_tool_use", at="tool_choice.")
    return ToolChoice(mode, name, parallel=not alone)


def read_thinking(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    thinking = optional_object(body, "thinking")
    if thinking is not None:
        a_name(thinking.get("type"), "thinking.type")
        optional_int(thinking, "budget_tokens", 1, "thinking.")
    return thinking


def _response_format(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`output_config.format` in the OpenAI form, which is the canonical one."""
    config = optional_object(body, "output_config")
    if config is None or config.get("format") is None:
        return None
    wanted = an_object(config["format"], "output_config.format")
    if wanted.get("type") != "json_schema":
        raise fault("output_config.format.type", "must be json_schema")
    schema = an_object(wanted.get("schema"), "output_config.format.schema")
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
