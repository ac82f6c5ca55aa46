"""What providers are asked: their vendor's own types accept it, and nothing goes missing."""

import copy
import json
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from shared.domain.dialects import DIALECTS, WIRES, anthropic, native, openai
from shared.domain.inference import Block, Dialect, InferenceRequest

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
VENDOR_TYPES: dict[Dialect, TypeAdapter[Any]] = {
    Dialect.ANTHROPIC: TypeAdapter(MessageCreateParamsStreaming),
    Dialect.OPENAI: TypeAdapter(CompletionCreateParamsStreaming),
}
# the wire still takes these for older models; the SDK's types no longer name them
_UNTYPED: dict[Dialect, set[str]] = {
    Dialect.ANTHROPIC: {"temperature", "top_p"},
    Dialect.OPENAI: set(),
}
OLDER = {Dialect.ANTHROPIC: "claude-sonnet-4-6", Dialect.OPENAI: "gpt-4.1"}


def _read_out(value: Any) -> Any:
    """The value with the vendor's lazily checked lists read to their ends."""
    if isinstance(value, dict):
        return {k: _read_out(v) for k, v in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    return [_read_out(v) for v in value]


def accepted(body: dict[str, Any], vendor: Dialect) -> bool:
    """Whether the vendor's types take the body and know every field in it."""
    known = {k: v for k, v in body.items() if k not in _UNTYPED[vendor]}
    return bool(_read_out(VENDOR_TYPES[vendor].validate_python(body)) == known)


def built(
    body: dict[str, Any], dialect: Dialect, vendor: Dialect, model: str = "some-model"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    request = DIALECTS[dialect].parse_request(body)
    sent, ignored = WIRES[vendor].build_request(request, model, 1024)
    assert (sent["model"], sent["stream"]) == (model, True)
    return sent, ignored


_texts = st.text(min_size=1, max_size=8)
_ids = st.from_regex(r"[a-zA-Z0-9_]{4,12}", fullmatch=True)
_sources = st.one_of(
    st.builds(lambda d: {"type": "base64", "media_type": "image/png", "data": d}, _ids),
    st.builds(lambda d: {"type": "url", "url": f"https://example.org/{d}.png"}, _ids),
)
_seen = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, _texts),
    st.builds(lambda s: {"type": "image", "source": s}, _sources),
)
_inputs = st.dictionaries(_texts, st.integers() | _texts | st.lists(_texts, max_size=2), max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """An Anthropic body with text, images, and tool calls that get their results."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": draw(st.lists(_seen, min_size=1, max_size=3))}
    ]
    for _ in range(draw(st.integers(0, 3))):
        calls = [
            {"type": "tool_use", "id": i, "name": draw(_ids), "input": draw(_inputs)}
            for i in draw(st.lists(_ids, max_size=2, unique=True))
        ]
        said = [{"type": "text", "text": draw(_texts)}] if draw(st.booleans()) or not calls else []
        messages.append({"role": "assistant", "content": [*said, *calls]})
        results = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": draw(_texts)}
            for call in calls
        ]
        more = draw(st.lists(_seen, min_size=0 if results else 1, max_size=2))
        messages.append({"role": "user", "content": [*results, *more]})
    return {
        "model": "m",
        "max_tokens": draw(st.integers(1, 4096)),
        "system": draw(_texts),
        "stop_sequences": draw(st.lists(_texts, min_size=1, max_size=3)),
        "temperature": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "tools": [{"name": draw(_ids), "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": draw(st.sampled_from(["auto", "any", "none"]))},
        "messages": messages,
    }


def _turns(request: InferenceRequest) -> list[tuple[str, list[Block]]]:
    """The conversation with neighbours of one role put together, as providers read it."""
    turns: list[tuple[str, list[Block]]] = []
    for message in request.messages:
        if turns and turns[-1][0] == message.role:
            turns[-1][1].extend(message.content)
        else:
            turns.append((message.role, list(message.content)))
    return turns


@given(conversations())
@settings(max_examples=60)
def test_a_conversation_survives_the_way_to_the_other_vendor_and_back(
    body: dict[str, Any],
) -> None:
    kept = copy.deepcopy(body)
    there, ignored = built(body, Dialect.ANTHROPIC, Dialect.OPENAI, OLDER[Dialect.OPENAI])
    assert ignored == ()
    assert accepted(there, Dialect.OPENAI)
    back, ignored = built(there, Dialect.OPENAI, Dialect.ANTHROPIC, "claude-sonnet-4-6")
    assert ignored == ()
    assert accepted(back, Dialect.ANTHROPIC)
    assert body == kept
    first, last = anthropic.parse_request(body), anthropic.parse_request(back)
    assert _turns(last) == _turns(first)
    for field in ("system", "max_tokens", "stop", "temperature", "tools", "tool_choice"):
        assert getattr(last, field) == getattr(first, field), field
    assert last.capabilities == first.capabilities


@given(conversations())
@settings(max_examples=30)
def test_a_native_conversation_reaches_both_vendors(body: dict[str, Any]) -> None:
    body["stop"] = body.pop("stop_sequences")
    for vendor in WIRES:
        sent, ignored = built(body, Dialect.NATIVE, vendor, OLDER[vendor])
        assert ignored == ()
        assert accepted(sent, vendor)
        again = DIALECTS[vendor].parse_request(sent)
        assert _turns(again) == _turns(native.parse_request(body))


def test_a_body_of_the_same_dialect_is_passed_on_as_it_is() -> None:
    body = {
        **HELLO,
        "max_tokens": 5,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "a_field_of_next_year": {"x": 1},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "metadata": {"user_id": "u"},
    }
    ours = {"routing_hint": {"min_quality": 0.5}, "background": False, "agent_id": "a"}
    sent, ignored = built({**body, **ours}, Dialect.ANTHROPIC, Dialect.ANTHROPIC, "claude")
    assert sent == {**body, "model": "claude", "stream": True}
    assert ignored == ()
    sent, ignored = built({**HELLO, "seed": 7, "n": 1, **ours}, Dialect.OPENAI, Dialect.OPENAI)
    assert sent == {
        **HELLO,
        "model": "some-model",
        "seed": 7,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert ignored == ()


def test_stream_options_of_the_client_are_kept() -> None:
    options = {"include_usage": False, "include_obfuscation": False}
    sent, _ = built({**HELLO, "stream_options": options}, Dialect.OPENAI, Dialect.OPENAI)
    assert sent["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_the_default_limit_is_set_where_the_wire_demands_one() -> None:
    for dialect in Dialect:
        sent, _ = built(HELLO, dialect, Dialect.ANTHROPIC)
        assert sent["max_tokens"] == 1024
        sent, _ = built(HELLO, dialect, Dialect.OPENAI)
        assert not {"max_tokens", "max_completion_tokens"} & sent.keys()


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    ("model", "field"),
    [("gpt-5.5", "max_completion_tokens"), ("o3", "max_completion_tokens")]
    + [(model, "max_tokens") for model in ("mistral-large", "grok-4", "gemini-3-1-pro")],
)
def test_each_member_of_the_family_gets_its_own_word_for_the_limit(
    dialect: Dialect, model: str, field: str
) -> None:
    sent, _ = built({**HELLO, "max_tokens": 9}, dialect, Dialect.OPENAI, model)
    assert {k: v for k, v in sent.items() if k.startswith("max_")} == {field: 9}


def test_developers_are_systems_outside_openai() -> None:
    body = {**HELLO, "messages": [{"role": "developer", "content": "be kind"}, *HELLO["messages"]]}
    for model, role in (("gpt-5.5", "developer"), ("mistral-large", "system")):
        sent, _ = built(body, Dialect.OPENAI, Dialect.OPENAI, model)
        assert sent["messages"][0] == {"role": role, "content": "be kind"}
    assert body["messages"][0]["role"] == "developer"  # type: ignore[index]


def test_thinking_of_another_vendor_is_not_sent_to_anthropic() -> None:
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    signed = {"type": "thinking", "thinking": "ah", "signature": "s"}
    said = {"type": "text", "text": "x"}
    body = {
        **HELLO,
        "messages": [
            *HELLO["messages"],
            {"role": "assistant", "content": [unsigned, signed, said]},
            *HELLO["messages"],
        ],
    }
    for dialect in (Dialect.ANTHROPIC, Dialect.NATIVE):
        sent, ignored = built(body, dialect, Dialect.ANTHROPIC)
        assert sent["messages"][1]["content"] == [signed, said]
        assert ignored == ("messages[].content[].thinking",)
    sent, ignored = built(body, Dialect.NATIVE, Dialect.OPENAI)
    assert sent["messages"][1] == {"role": "assistant", "content": "x"}
    assert ignored == ("messages[].content[].thinking",)


def test_signed_thinking_returns_through_an_openai_client() -> None:
    block = {"type": "thinking", "thinking": "ah", "signature": "s"}
    turn = {
        "role": "assistant",
        "content": "x",
        "reasoning_content": "ah",
        "thinking_blocks": [block],
    }
    body = {**HELLO, "messages": [*HELLO["messages"], turn, *HELLO["messages"]]}
    sent, ignored = built(body, Dialect.OPENAI, Dialect.ANTHROPIC)
    assert sent["messages"][1]["content"] == [block, {"type": "text", "text": "x"}]
    assert ignored == ()


@pytest.mark.parametrize(
    ("thinking", "effort"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, "low"),
        ({"type": "enabled", "budget_tokens": 5000}, "medium"),
        ({"type": "enabled", "budget_tokens": 32000}, "high"),
        ({"type": "adaptive"}, None),
        ({"type": "disabled"}, None),
    ],
)
def test_a_thinking_budget_becomes_an_effort(thinking: dict[str, Any], effort: str | None) -> None:
    sent, _ = built({**HELLO, "thinking": thinking}, Dialect.ANTHROPIC, Dialect.OPENAI)
    assert sent.get("reasoning_effort") == effort


def test_an_effort_by_name_is_passed_on() -> None:
    body = {**HELLO, "thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}
    sent, ignored = built(body, Dialect.ANTHROPIC, Dialect.OPENAI)
    assert sent["reasoning_effort"] == "xhigh"
    assert ignored == ()


def test_a_schema_for_the_answer_reaches_both_vendors() -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    sent, ignored = built({**HELLO, "response_format": asked}, Dialect.OPENAI, Dialect.ANTHROPIC)
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert ignored == ()
    sent, ignored = built(
        {**HELLO, "output_config": sent["output_config"]}, Dialect.ANTHROPIC, Dialect.OPENAI
    )
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
    assert ignored == ()
    assert accepted(sent, Dialect.OPENAI)


def test_images_in_tool_results_follow_as_the_users_own() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://e.org/a.png"}}
    shown = [{"type": "text", "text": "a chart"}, image]
    result = {"type": "tool_result", "tool_use_id": "t", "content": shown}
    body = {**HELLO, "messages": [{"role": "user", "content": [result]}]}
    sent, _ = built(body, Dialect.ANTHROPIC, Dialect.OPENAI)
    assert sent["messages"] == [
        {"role": "tool", "tool_call_id": "t", "content": "a chart"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://e.org/a.png"}}],
        },
    ]


def test_arguments_that_are_no_json_return_as_anthropic_advises() -> None:
    function = {"name": "f", "arguments": '{"a": '}
    call = {"id": "1", "type": "function", "function": function}
    turn = {"role": "assistant", "tool_calls": [call]}
    body = {**HELLO, "messages": [*HELLO["messages"], turn]}
    sent, _ = built(body, Dialect.OPENAI, Dialect.ANTHROPIC)
    assert sent["messages"][1]["content"][0]["input"] == {"INVALID_JSON": '{"a": '}
    same, _ = built(body, Dialect.OPENAI, Dialect.OPENAI)
    assert same["messages"][1] == turn
    assert json.dumps(sent)


def test_an_empty_text_is_not_sent_to_anthropic() -> None:
    turn = {"role": "assistant", "content": ""}
    body = {**HELLO, "messages": [*HELLO["messages"], turn, *HELLO["messages"]]}
    sent, _ = built(body, Dialect.OPENAI, Dialect.ANTHROPIC)
    assert [m["role"] for m in sent["messages"]] == ["user", "user"]


def test_instructions_in_mid_conversation() -> None:
    later = {"role": "system", "content": "be brief"}
    body = {**HELLO, "messages": [*HELLO["messages"], later, *HELLO["messages"]]}
    sent, _ = built(body, Dialect.NATIVE, Dialect.OPENAI)
    assert [m["role"] for m in sent["messages"]] == ["user", "system", "user"]
    sent, _ = built(body, Dialect.NATIVE, Dialect.ANTHROPIC)
    assert sent["system"] == [{"type": "text", "text": "be brief"}]
    assert [m["role"] for m in sent["messages"]] == ["user", "user"]


def test_a_body_is_never_changed_by_building_from_it() -> None:
    unsigned = {"type": "thinking", "thinking": "hm", "signature": ""}
    body = {
        **HELLO,
        "max_tokens": 7,
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [unsigned]},
            {"role": "developer", "content": "y"},
        ],
    }
    kept = copy.deepcopy(body)
    openai.build_request(openai.parse_request(body), "mistral-large", 1)
    ours = {**body, "messages": body["messages"][:2]}  # type: ignore[index]
    anthropic.build_request(anthropic.parse_request(ours), "claude", 1)
    assert body == kept


@pytest.mark.parametrize(
    ("in_openai", "in_anthropic"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}),
    ],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_tool_choices_mean_the_same_on_both_wires(
    in_openai: Any, in_anthropic: dict[str, Any], parallel: bool
) -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    asked = {**HELLO, "tools": [function], "tool_choice": in_openai}
    if not parallel:
        asked["parallel_tool_calls"] = False
        if in_anthropic["type"] != "none":
            in_anthropic = {**in_anthropic, "disable_parallel_tool_use": True}
    sent, ignored = built(asked, Dialect.OPENAI, Dialect.ANTHROPIC)
    assert (sent["tool_choice"], ignored) == (in_anthropic, ())
    again, ignored = built(sent, Dialect.ANTHROPIC, Dialect.OPENAI)
    assert (again["tool_choice"], ignored) == (in_openai, ())
    assert again.get("parallel_tool_calls", True) is (parallel or in_openai == "none")
