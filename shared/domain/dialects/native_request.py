"""A native body read into an `InferenceRequest`.

Messages, tools and the tool choice are taken in the OpenAI or the Anthropic form, also mixed:
each message is read in the form that it has.
"""

from collections.abc import Mapping
from typing import Any

from shared.domain.dialects import anthropic_request, openai_request
from shared.domain.dialects.fields import (
    a_flag,
    a_list,
    a_name,
    an_object,
    fault,
    optional_int,
    optional_number,
    optional_object,
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

_OPENAI_PARTS = frozenset({"image_url", "file", "input_audio", "refusal"})
_OPENAI_KEYS = frozenset({"tool_calls", "refusal", "thinking_blocks"})


def parse_request(body: Mapping[str, Any]) -> InferenceRequest:
    """Read a body of `POST /v1/inference`; raises `InvalidRequest` naming the field at fault."""
    model, alias = read_target(body)
    system, messages = _messages(body)
    tools, vendor_tools = _tools(body.get("tools"))
    thinking = anthropic_request.read_thinking(body)
    response_format = openai_request.read_format(body)
    return InferenceRequest(
        dialect=Dialect.NATIVE,
        model=model,
        alias=alias,
        messages=messages,
        system=system,
        max_tokens=optional_int(body, "max_tokens"),
        temperature=optional_number(body, "temperature", 0, 2),
        top_p=optional_number(body, "top_p", 0, 1),
        stop=strings(body.get("stop"), "stop"),
        tools=tools,
        tool_choice=_choice(body),
        thinking=thinking,
        response_format=response_format,
        stream=a_flag(body, "stream"),
        include_usage=True,
        background=a_flag(body, "background"),
        hint=read_hint(body),
        metadata=optional_object(body, "metadata") or {},
        agent_id=read_agent(body),
        capabilities=capabilities(messages, tools, thinking, response_format, vendor_tools),
        body=body,
    )


def _messages(body: Mapping[str, Any]) -> tuple[tuple[Block, ...], tuple[Message, ...]]:
    raw = a_list(body.get("messages"), "messages")
    if not raw:
        raise fault("messages", "must hold at least one message")
    system = anthropic_request.read_system(body.get("system"))
    messages: list[Message] = []
    for i, value in enumerate(raw):
        at = f"messages[{i}]"
        item = an_object(value, at)
        form = openai_request if _openai_form(item) else anthropic_request
        message = form.read_message(item, at)
        if message.role == "system" and not messages:
            system += message.content
        else:
            openai_request.join_results(messages, message)
    if not messages:
        return (), (Message("user", system),)
    return system, tuple(messages)


def _openai_form(item: Mapping[str, Any]) -> bool:
    if item.get("role") in ("tool", "developer", "system") or _OPENAI_KEYS & item.keys():
        return True
    content = item.get("content")
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") in _OPENAI_PARTS for part in content
    )


def _tools(value: Any) -> tuple[tuple[Tool, ...], bool]:
    if value is None:
        return (), False
    items = a_list(value, "tools")
    tools = []
    for i, item in enumerate(items):
        at = f"tools[{i}]"
        tool = an_object(item, at)
        if tool.get("type") == "function":
            tools.append(openai_request.read_tool(tool, at))
        elif anthropic_request.is_custom_tool(tool):
            tools.append(anthropic_request.read_tool(tool, at))
        else:
            raise fault(f"{at}.type", "must be function or custom")
    return tuple(tools), False


def _choice(body: Mapping[str, Any]) -> ToolChoice | None:
    value = body.get("tool_choice")
    parallel = a_flag(body, "parallel_tool_calls", True)
    if isinstance(value, Mapping) and value.get("type") != "function":
        a_name(value.get("type"), "tool_choice.type")
        return anthropic_request.read_choice(value)
    return openai_request.read_choice(value, parallel)
