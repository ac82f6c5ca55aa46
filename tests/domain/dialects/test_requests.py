"""Bodies of the three dialects read into one request, and every fault named by its field."""

import copy
from decimal import Decimal
from typing import Any

import pytest

from shared.domain.dialects import DIALECTS, anthropic, native, openai
from shared.domain.inference import (
    ROUTING_ALIASES,
    ROUTING_TARGET,
    Capability,
    Dialect,
    Message,
    RoutingHint,
    Tool,
    ToolChoice,
)

HELLO = {"model": "ainfera-inference", "messages": [{"role": "user", "content": "hello"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PNG = "iVBORw0KGgo="


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("dialect", list(Dialect))
def test_the_least_body(dialect: Dialect) -> None:
    request = DIALECTS[dialect].parse_request(HELLO)
    assert request.dialect is dialect
    assert request.routed
    assert request.messages == (Message("user", (text("hello"),)),)
    assert request.body is HELLO
    assert request.capabilities == frozenset()
    assert (request.stream, request.background, request.max_tokens) == (False, False, None)
    assert request.hint == RoutingHint()


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("alias", sorted(ROUTING_ALIASES))
def test_aliases_are_resolved_and_remembered(dialect: Dialect, alias: str) -> None:
    request = DIALECTS[dialect].parse_request({**HELLO, "model": alias})
    assert (request.model, request.alias) == (ROUTING_TARGET, alias)
    pinned = DIALECTS[dialect].parse_request({**HELLO, "model": "gpt-5-5"})
    assert (pinned.model, pinned.alias, pinned.routed) == ("gpt-5-5", None, False)


def test_a_full_anthropic_body() -> None:
    body: dict[str, Any] = {
        "model": "claude-opus-4-7",
        "system": [{**text("be kind"), "cache_control": {"type": "ephemeral"}}],
        "max_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["END"],
        "stream": True,
        "metadata": {"user_id": "u1"},
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "tools": [{"name": "weather", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "messages": [
            {"role": "user", "content": [text("what is this?"), _base64_image()]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}],
            },
            {"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]},
        ],
    }
    kept = copy.deepcopy(body)
    request = anthropic.parse_request(body)
    assert body == kept
    assert request.system == tuple(body["system"])
    assert request.stop == ("END",)
    assert (request.max_tokens, request.temperature, request.top_p) == (100, 0.5, 0.9)
    assert request.tools == (Tool("weather", "d", SCHEMA),)
    assert request.tool_choice == ToolChoice("tool", "weather", parallel=False)
    contents = [list(message.content) for message in request.messages]
    assert contents == [message["content"] for message in kept["messages"]]
    assert request.response_format is not None
    assert request.response_format["json_schema"]["schema"] == SCHEMA
    assert request.capabilities == frozenset(Capability)


def _base64_image() -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    return {"type": "image", "source": source}


def test_a_full_openai_body() -> None:
    request = openai.parse_request(
        {
            "model": "gpt-5-5",
            "max_completion_tokens": 100,
            "temperature": 1.5,
            "stop": "END",
            "stream": True,
            "stream_options": {"include_usage": True},
            "n": 1,
            "parallel_tool_calls": False,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            },
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "weather", "parameters": SCHEMA, "strict": True},
                }
            ],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "messages": [
                {"role": "developer", "content": "be kind"},
                {"role": "user", "content": [text("look"), image_part(), _file_part()]},
                {"role": "assistant", "content": None, "tool_calls": [_call("1"), _call("2")]},
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
                {"role": "tool", "tool_call_id": "2", "content": [text("sun")]},
                {"role": "user", "content": "thanks"},
                {"role": "system", "content": "be brief now"},
            ],
        }
    )
    assert request.system == (text("be kind"),)
    assert request.stop == ("END",)
    assert (request.max_tokens, request.include_usage) == (100, True)
    assert request.tools == (Tool("weather", None, SCHEMA, strict=True),)
    assert request.tool_choice == ToolChoice("tool", "weather", parallel=False)
    look, called, results, thanks, brief = request.messages
    assert look.content[1] == {**_base64_image(), "detail": "low"}
    assert look.content[2] == {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
        "title": "a.pdf",
    }
    assert called == Message(
        "assistant",
        tuple(_use(i) for i in "12"),
    )
    assert results == Message(
        "user",
        (
            {"type": "tool_result", "tool_use_id": "1", "content": "rain"},
            {"type": "tool_result", "tool_use_id": "2", "content": [text("sun")]},
        ),
    )
    assert thanks == Message("user", (text("thanks"),))
    assert brief == Message("system", (text("be brief now"),))
    assert request.capabilities == frozenset(Capability) - {Capability.THINKING}


def image_part() -> dict[str, Any]:
    url = {"url": f"data:image/png;base64,{PNG}", "detail": "low"}
    return {"type": "image_url", "image_url": url}


def _file_part() -> dict[str, Any]:
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}
    return {"type": "file", "file": file}


def _use(call_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": {"city": "Oslo"}}


def _call(call_id: str, arguments: str = '{"city":"Oslo"}') -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ("", {}),
        ("  ", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
    ],
)
def test_arguments_a_model_wrote_are_never_refused(arguments: str, want: Any) -> None:
    assistant = {"role": "assistant", "tool_calls": [_call("1", arguments)]}
    request = openai.parse_request({**HELLO, "messages": [assistant]})
    assert request.messages[0].content[0]["input"] == want


def test_native_messages_and_tools_in_both_forms() -> None:
    tool = {"name": "weather", "description": "d", "input_schema": SCHEMA}
    function = {"name": "weather", "description": "d", "parameters": SCHEMA}
    in_openai = native.parse_request(
        {
            **HELLO,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required",
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": [text("look"), image_part()]},
                {"role": "assistant", "content": "", "tool_calls": [_call("1"), _call("2")]},
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
                {"role": "tool", "tool_call_id": "2", "content": "sun"},
            ],
        }
    )
    in_anthropic = native.parse_request(
        {
            **HELLO,
            "system": "be kind",
            "tools": [tool],
            "tool_choice": {"type": "any"},
            "messages": [
                {"role": "user", "content": [text("look"), {**_base64_image(), "detail": "low"}]},
                {
                    "role": "assistant",
                    "content": [
                        text(""),
                        *(_use(i) for i in "12"),
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": "rain"},
                        {"type": "tool_result", "tool_use_id": "2", "content": "sun"},
                    ],
                },
            ],
        }
    )
    for field in ("system", "messages", "tools", "tool_choice", "capabilities"):
        assert getattr(in_openai, field) == getattr(in_anthropic, field), field


def test_native_fields_of_our_own() -> None:
    request = native.parse_request(
        {
            **HELLO,
            "agent_id": "a1",
            "task_type": "code",
            "background": True,
            "stop": ["x"],
            "metadata": {"k": "v"},
        }
    )
    assert (request.agent_id, request.background, request.stop) == ("a1", True, ("x",))
    assert request.metadata == {"k": "v"}
    assert request.hint.task_type == "code"


@pytest.mark.parametrize("dialect", list(Dialect))
def test_the_routing_hint_in_every_dialect(dialect: Dialect) -> None:
    hint = {
        "task_type": "chat",
        "min_quality": 0.7,
        "routing_preference": "cost",
        "budget_cap_usd": "0.010000001",
        "latency_cap_ms": 900,
        "allow": ["gpt-5-5"],
        "deny": ["xai", "mistral"],
    }
    request = DIALECTS[dialect].parse_request({**HELLO, "routing_hint": hint})
    assert request.hint == RoutingHint(
        task_type="chat",
        min_quality=Decimal("0.7"),
        routing_preference="cost",
        budget_cap_usd=Decimal("0.010000001"),
        latency_cap_ms=900,
        allow=("gpt-5-5",),
        deny=("xai", "mistral"),
    )


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("good", "0.50"),
        ("strong", "0.70"),
        ("frontier", "0.85"),
        (0.1, "0.1"),
        (0, "0"),
        (1, "1"),
        ("0.6", "0.6"),
    ],
)
def test_a_quality_is_a_number_or_a_tier(given: Any, want: str) -> None:
    request = native.parse_request({**HELLO, "routing_hint": {"min_quality": given}})
    assert request.hint.min_quality == Decimal(want)


def _with(**fields: Any) -> dict[str, Any]:
    return {**HELLO, **fields}


def _saying(*messages: Any) -> dict[str, Any]:
    return {**HELLO, "messages": list(messages)}


def test_unknown_anthropic_blocks_and_tools_are_kept() -> None:
    block = {"type": "block_of_next_year", "x": [1]}
    body = _with(
        messages=[{"role": "user", "content": [block]}],
        tools=[{"type": "web_search_20250305", "name": "web_search"}],
    )
    request = anthropic.parse_request(body)
    assert request.messages[0].content == (block,)
    assert request.tools == ()
    assert Capability.TOOLS in request.capabilities


def test_images_inside_tool_results_need_eyes() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [_base64_image()]}
    request = anthropic.parse_request(_saying({"role": "user", "content": [result]}))
    assert request.capabilities == {Capability.TOOLS, Capability.VISION}


@pytest.mark.parametrize(
    ("thinking", "needed"),
    [({"type": "disabled"}, False), ({"type": "adaptive"}, True), (None, False)],
)
def test_thinking_is_needed_only_where_it_is_on(thinking: Any, needed: bool) -> None:
    request = anthropic.parse_request(_with(thinking=thinking))
    assert (Capability.THINKING in request.capabilities) is needed
