"""Bodies that no provider could be asked with: every fault is named by its field."""

from typing import Any

import pytest

from shared.domain.dialects import DIALECTS
from shared.domain.inference import Dialect, InvalidRequest
from tests.domain.dialects.test_requests import HELLO


def _with(**fields: Any) -> dict[str, Any]:
    return {**HELLO, **fields}


def _saying(*messages: Any) -> dict[str, Any]:
    return {**HELLO, "messages": list(messages)}


EVERYWHERE: list[tuple[dict[str, Any], str]] = [
    ({"messages": HELLO["messages"]}, "model"),
    (_with(model=""), "model"),
    (_with(model=5), "model"),
    ({"model": "m"}, "messages"),
    (_with(messages=[]), "messages"),
    (_with(messages="hello"), "messages"),
    (_saying("hello"), "messages[0]"),
    (_saying({"role": "robot", "content": "x"}), "messages[0].role"),
    (_saying({"role": "user"}), "messages[0].content"),
    (_saying({"role": "user", "content": 5}), "messages[0].content"),
    (_saying({"role": "user", "content": ["x"]}), "messages[0].content[0]"),
    (_saying({"role": "user", "content": [{"text": "x"}]}), "messages[0].content[0].type"),
    (_saying({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
    (_with(max_tokens="many"), "max_tokens"),
    (_with(max_tokens=-1), "max_tokens"),
    (_with(max_tokens=True), "max_tokens"),
    (_with(max_tokens=1.5), "max_tokens"),
    (_with(temperature=9), "temperature"),
    (_with(temperature="hot"), "temperature"),
    (_with(top_p=2), "top_p"),
    (_with(stream="yes"), "stream"),
    (_with(tools={}), "tools"),
    (_with(tools=["weather"]), "tools[0]"),
    (_with(tool_choice={"type": 5}), "tool_choice.type"),
    (_with(metadata="m"), "metadata"),
    (_with(routing_hint="cheap"), "routing_hint"),
    (_with(routing_hint={"min_quality": "superb"}), "routing_hint.min_quality"),
    (_with(routing_hint={"min_quality": 1.1}), "routing_hint.min_quality"),
    (_with(routing_hint={"min_quality": True}), "routing_hint.min_quality"),
    (_with(routing_hint={"min_quality": float("nan")}), "routing_hint.min_quality"),
    (_with(routing_hint={"budget_cap_usd": "-1"}), "routing_hint.budget_cap_usd"),
    (_with(routing_hint={"budget_cap_usd": "much"}), "routing_hint.budget_cap_usd"),
    (_with(routing_hint={"budget_cap_usd": "inf"}), "routing_hint.budget_cap_usd"),
    (_with(routing_hint={"latency_cap_ms": "soon"}), "routing_hint.latency_cap_ms"),
    (_with(routing_hint={"allow": [1]}), "routing_hint.allow[0]"),
    (_with(routing_hint={"deny": 7}), "routing_hint.deny"),
    (_with(routing_hint={"data_class": "secret"}), "routing_hint.data_class"),
    (_with(routing_hint={"data_class": ["public"]}), "routing_hint.data_class"),
    (_with(routing_hint={"region": "EU"}), "routing_hint.region"),
    (_with(routing_hint={"region": "eu_west"}), "routing_hint.region"),
    (_with(routing_hint={"region": ""}), "routing_hint.region"),
    (_with(routing_hint={"region": "e" * 65}), "routing_hint.region"),
    (_with(routing_hint={"region": 7}), "routing_hint.region"),
    (_with(routing_hint={"task_type": 7}), "routing_hint.task_type"),
    (_with(agent_id=7), "agent_id"),
    (_with(background=1), "background"),
]
OPENAI_ONLY: list[tuple[dict[str, Any], str]] = [
    (_with(n=2), "n"),
    (_with(functions=[]), "functions"),
    (_with(stop=5), "stop"),
    (_with(stop=["x", 5]), "stop[1]"),
    (_with(max_completion_tokens=0), "max_completion_tokens"),
    (_with(stream_options={"include_usage": 1}), "stream_options.include_usage"),
    (_with(response_format={"type": "xml"}), "response_format.type"),
    (_with(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (_with(tool_choice="maybe"), "tool_choice"),
    (_with(tools=[{"type": "function"}]), "tools[0].function"),
    (_with(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
    (_saying({"role": "assistant"}), "messages[0].content"),
    (_saying({"role": "tool", "content": "x"}), "messages[0].tool_call_id"),
    (
        _saying({"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}),
        "messages[0].tool_calls[0].function.name",
    ),
    (
        _saying({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}),
        "messages[0].content[0].image_url",
    ),
    (
        _saying(
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}
        ),
        "messages[0].content[0].image_url.url",
    ),
    (
        _saying({"role": "user", "content": [{"type": "file", "file": {}}]}),
        "messages[0].content[0].file.file_data",
    ),
]
ANTHROPIC_ONLY: list[tuple[dict[str, Any], str]] = [
    (_with(temperature=1.5), "temperature"),
    (_with(stop_sequences=[1]), "stop_sequences[0]"),
    (_with(system=5), "system"),
    (_with(system=[{"type": "text", "text": 5}]), "system[0].text"),
    (_with(tools=[{"name": "weather"}]), "tools[0].input_schema"),
    (_with(tools=[{"input_schema": {}}]), "tools[0].name"),
    (_with(tool_choice={"type": "tool"}), "tool_choice.name"),
    (_with(tool_choice={"type": "some"}), "tool_choice.type"),
    (_with(thinking={}), "thinking.type"),
    (_with(thinking={"type": "enabled", "budget_tokens": "x"}), "thinking.budget_tokens"),
    (_with(output_config={"format": {"type": "xml"}}), "output_config.format.type"),
    (
        _saying({"role": "user", "content": [{"type": "image", "source": "u"}]}),
        "messages[0].content[0].source",
    ),
    (
        _saying({"role": "user", "content": [{"type": "tool_result"}]}),
        "messages[0].content[0].tool_use_id",
    ),
    (
        _saying({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}),
        "messages[0].content[0].input",
    ),
]
FAULTS = (
    [(d, body, param) for d in Dialect for body, param in EVERYWHERE]
    + [(Dialect.OPENAI, body, param) for body, param in OPENAI_ONLY]
    + [(Dialect.ANTHROPIC, body, param) for body, param in ANTHROPIC_ONLY]
)


@pytest.mark.parametrize(("dialect", "body", "param"), FAULTS)
def test_a_fault_is_named_by_its_field(dialect: Dialect, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DIALECTS[dialect].parse_request(body)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")
