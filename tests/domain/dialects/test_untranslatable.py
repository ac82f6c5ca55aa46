"""What one vendor's wire cannot carry of another's: left out by name, or refused by name."""

from typing import Any

import pytest

from shared.domain.dialects import DIALECTS, WIRES
from shared.domain.dialects.wishes import unknown_wishes
from shared.domain.inference import Dialect, InvalidRequest
from tests.domain.dialects.test_provider_requests import HELLO, OLDER, accepted, built


def test_what_anthropic_has_no_word_for_is_named() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://e.org/a.png", "detail": "high"}}
    body = {
        **HELLO,
        "messages": [{"role": "user", "name": "ann", "content": [image]}],
        "temperature": 1.5,
        "seed": 7,
        "logit_bias": {"50256": -100},
        "presence_penalty": 0,
        "store": None,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "high",
        "routing_hint": {"min_qualty": 0.9},
    }
    sent, ignored = built(body, Dialect.OPENAI, Dialect.ANTHROPIC, OLDER[Dialect.ANTHROPIC])
    assert len(ignored) == len(set(ignored))
    assert set(ignored) == {
        "seed",
        "logit_bias",
        "reasoning_effort",
        "routing_hint.min_qualty",
        "messages[].name",
        "messages[].content[].image_url.detail",
        "temperature",
        "response_format",
    }
    assert sent["temperature"] == 1
    assert accepted(sent, Dialect.ANTHROPIC)


def test_what_openai_has_no_word_for_is_named() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "bad", "is_error": True}
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "words"},
        "citations": {"enabled": True},
    }
    body = {
        "model": "m",
        "max_tokens": 9,
        "top_k": 5,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "system": [{"type": "text", "text": "s", **mark}],
        "messages": [{"role": "user", "content": [result, document]}],
        "routing_hint": {"min_qualty": 0.9},
    }
    sent, ignored = built(body, Dialect.ANTHROPIC, Dialect.OPENAI)
    assert set(ignored) == {
        "top_k",
        "metadata",
        "cache_control",
        "routing_hint.min_qualty",
        "messages[].content[].citations",
        "messages[].content[].is_error",
    }
    assert accepted(sent, Dialect.OPENAI)


def test_unknown_wishes_are_named_within_the_same_dialect_too() -> None:
    body = {**HELLO, "routing_hint": {"cheap": True}}
    for dialect in WIRES:
        assert built(body, dialect, dialect)[1] == ("routing_hint.cheap",)


def test_a_word_that_is_none_of_a_wish_is_named() -> None:
    said = {"routing_preference": "best", "task_type": "code", "min_quality": "strong"}
    assert [*unknown_wishes({"task_type": "poetry", "routing_hint": said})] == [
        "task_type",
        "routing_hint.routing_preference",
    ]
    assert [
        *unknown_wishes({"task_type": None, "routing_hint": {"routing_preference": None}})
    ] == []


SAMPLED = {"temperature": 0.5, "top_p": 0.9}


@pytest.mark.parametrize(
    ("model", "left"),
    [
        ("claude-opus-4-7", set()),
        ("claude-next-9", set()),
        ("claude-sonnet-4-6", {"temperature"}),
        ("claude-haiku-4-5-20251001", {"temperature"}),
    ],
)
def test_sampling_reaches_only_the_claude_models_that_take_it(model: str, left: set[str]) -> None:
    for body in ({**HELLO, **SAMPLED}, {**HELLO, **SAMPLED, "model": "ainfera-inference"}):
        sent, ignored = built(body, Dialect.OPENAI, Dialect.ANTHROPIC, model)
        assert SAMPLED.keys() & sent.keys() == left
        assert set(ignored) == SAMPLED.keys() - left
    routed = {**HELLO, **SAMPLED, "top_k": 5, "model": "ainfera-inference"}
    sent, ignored = built(routed, Dialect.ANTHROPIC, Dialect.ANTHROPIC, model)
    assert (SAMPLED.keys() | {"top_k"}) - sent.keys() == set(ignored)
    pinned = {**HELLO, **SAMPLED, "model": model}
    sent, ignored = built(pinned, Dialect.ANTHROPIC, Dialect.ANTHROPIC, model)
    assert (SAMPLED.items() <= sent.items(), ignored) == (True, ())


def test_openai_reasoning_models_are_spared_what_they_refuse() -> None:
    body = {**HELLO, **SAMPLED, "stop_sequences": ["x"]}
    sent, ignored = built(body, Dialect.ANTHROPIC, Dialect.OPENAI, "gpt-5.5")
    assert set(ignored) == {"temperature", "top_p", "stop_sequences"}
    assert not {"temperature", "top_p", "stop"} & sent.keys()
    for model in ("gpt-4.1", "gpt-5-chat-latest", "mistral-large-2512"):
        sent, ignored = built(body, Dialect.ANTHROPIC, Dialect.OPENAI, model)
        assert (sent["temperature"], sent["stop"], ignored) == (0.5, ["x"], ())
    routed = {**HELLO, "temperature": 0.2, "model": "ainfera-inference"}
    assert built(routed, Dialect.OPENAI, Dialect.OPENAI, "gpt-5.5")[1] == ("temperature",)
    sent, ignored = built({**routed, "model": "gpt-5-5"}, Dialect.OPENAI, Dialect.OPENAI, "gpt-5.5")
    assert (sent["temperature"], ignored) == (0.2, ())


def test_thinking_is_asked_for_in_the_form_the_claude_model_knows() -> None:
    routed = {**HELLO, "model": "ainfera-inference", "max_tokens": 8000}
    budget = {**routed, "thinking": {"type": "enabled", "budget_tokens": 5000}}
    sent, ignored = built(budget, Dialect.ANTHROPIC, Dialect.ANTHROPIC, "claude-opus-4-7")
    assert sent["thinking"] == {"type": "adaptive"}
    assert sent["output_config"] == {"effort": "medium"}
    assert ignored == ("thinking.budget_tokens",)
    sent, ignored = built(budget, Dialect.ANTHROPIC, Dialect.ANTHROPIC, "claude-haiku-4-5")
    assert (sent["thinking"], ignored) == (budget["thinking"], ())
    adaptive = {**routed, "thinking": {"type": "adaptive"}}
    sent, _ = built(adaptive, Dialect.ANTHROPIC, Dialect.ANTHROPIC, "claude-haiku-4-5")
    assert sent["thinking"] == {"type": "enabled", "budget_tokens": 4000}
    sent, ignored = built(
        {**adaptive, "max_tokens": 500}, Dialect.ANTHROPIC, Dialect.ANTHROPIC, "claude-haiku-4-5"
    )
    assert ("thinking" in sent, ignored) == (False, ("thinking",))


def _user(block: dict[str, Any]) -> dict[str, Any]:
    return {**HELLO, "messages": [{"role": "user", "content": [block]}]}


@pytest.mark.parametrize(
    ("body", "dialect", "vendor", "param"),
    [
        (
            {**HELLO, "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            Dialect.ANTHROPIC,
            Dialect.OPENAI,
            "tools[0]",
        ),
        (
            {**HELLO, "tools": [{"type": "custom", "custom": {"name": "c"}}]},
            Dialect.OPENAI,
            Dialect.ANTHROPIC,
            "tools[0]",
        ),
        (
            _user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
            Dialect.OPENAI,
            Dialect.ANTHROPIC,
            "messages[0].content[0]",
        ),
        (
            _user({"type": "file", "file": {"file_id": "f1"}}),
            Dialect.OPENAI,
            Dialect.ANTHROPIC,
            "messages[0].content[0]",
        ),
        (
            _user({"type": "document", "source": {"type": "url", "url": "https://e.org/a.pdf"}}),
            Dialect.ANTHROPIC,
            Dialect.OPENAI,
            "messages[0].content[0]",
        ),
        (
            _user({"type": "image", "source": {"type": "file", "file_id": "f1"}}),
            Dialect.ANTHROPIC,
            Dialect.OPENAI,
            "messages[0].content[0]",
        ),
        (
            _user({"type": "block_of_next_year"}),
            Dialect.ANTHROPIC,
            Dialect.OPENAI,
            "messages[0].content[0]",
        ),
        (
            {**HELLO, "messages": [{"role": "user", "content": ""}]},
            Dialect.OPENAI,
            Dialect.ANTHROPIC,
            "messages",
        ),
    ],
)
def test_content_that_the_other_vendor_cannot_be_shown_is_refused_by_name(
    body: dict[str, Any], dialect: Dialect, vendor: Dialect, param: str
) -> None:
    request = DIALECTS[dialect].parse_request(body)
    with pytest.raises(InvalidRequest) as caught:
        WIRES[vendor].build_request(request, "model", 1024)
    assert caught.value.param == param
