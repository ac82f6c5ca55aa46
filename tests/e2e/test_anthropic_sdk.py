"""The unmodified `anthropic` SDK, against models of its own vendor and of another."""

import json
from typing import Any

import ainfera
import anthropic
import pytest

from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream

# the SDK's client, a model reached over the Anthropic wire, one over the OpenAI wire
EITHER = pytest.mark.parametrize("model", ["claude-haiku-4-5", "gpt-5-mini"])
VENDORS = {"claude-haiku-4-5": "anthropic", "gpt-5-mini": "openai"}

WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def asking(text: str) -> Any:
    return [{"role": "user", "content": text}]


@EITHER
def test_a_message(claude: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    word = upstream.will(Say(texts=("It is ", "raining."), input_tokens=21, output_tokens=9))

    message = claude.messages.create(
        model=model,
        max_tokens=100,
        system="You are a weather bot.",
        messages=asking(word),
        stop_sequences=["END"],
        extra_body={"temperature": 0.5},
    )

    assert isinstance(message, anthropic.types.Message)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == "It is raining."  # type: ignore[union-attr]
    assert (message.role, message.model, message.stop_reason) == ("assistant", model, "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (21, 9)
    about = message.ainfera  # type: ignore[attr-defined]
    assert set(about) >= {"inference_id", "receipt_id", "agent_id", "provider", "audit_url"}
    assert about["provider"] == VENDORS[model]

    asked = upstream.asked(word)
    assert asked.system == "You are a weather bot."
    assert asked.max_tokens == 100
    assert asked.body["stream"] is True
    # what a model does not take is left out, and never without a word
    ignored = about.get("ignored", [])
    assert asked.stop == ["END"] or "stop_sequences" in ignored
    assert asked.body.get("temperature") == 0.5 or "temperature" in ignored
    assert model != "claude-haiku-4-5" or not ignored


@EITHER
def test_a_stream(claude: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    words = ("One", " two", " three", " ünïcode\u2028", " four.")
    word = upstream.will(Say(texts=words, input_tokens=11, output_tokens=5))

    with claude.messages.stream(model=model, max_tokens=100, messages=asking(word)) as stream:
        events = [event for event in stream if event.type not in ("text", "ping")]
        message = stream.get_final_message()

    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert message.content[0].text == "".join(words)  # type: ignore[union-attr]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 5)


@EITHER
@pytest.mark.parametrize("streamed", [True, False])
def test_parallel_tools_and_their_results(
    claude: anthropic.Anthropic, upstream: Upstream, model: str, streamed: bool
) -> None:
    """The model asks for two tools at once; their results go back; it answers."""
    word = upstream.will(
        Say.tool_calls(
            ("get_weather", '{"city": "Oslo"}'),
            ("get_weather", '{"city": "Rome"}'),
            before="Looking it up.",
        )
    )
    wish: Any = {
        "model": model,
        "max_tokens": 200,
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
    }
    if streamed:
        with claude.messages.stream(**wish, messages=asking(word)) as stream:
            message = stream.get_final_message()
    else:
        message = claude.messages.create(**wish, messages=asking(word))

    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [
        ("get_weather", {"city": "Oslo"}),
        ("get_weather", {"city": "Rome"}),
    ]
    assert len({call.id for call in calls}) == 2
    asked = upstream.asked(word)
    assert asked.tool_names == ["get_weather"]
    assert asked.tool_is_forced

    reply = upstream.will(Say(texts=("Cold and warm.",)))
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"{city} degrees"}
        for call, city in zip(calls, ("2", "19"), strict=True)
    ]
    history = [
        {"role": "user", "content": "Weather in Oslo and Rome?"},
        {"role": "assistant", "content": [block.model_dump() for block in message.content]},
        {"role": "user", "content": [*results, {"type": "text", "text": reply}]},
    ]
    answer = claude.messages.create(
        model=model,
        max_tokens=200,
        tools=[WEATHER],
        messages=history,  # type: ignore[arg-type]
    )

    assert answer.content[0].text == "Cold and warm."  # type: ignore[union-attr]
    assert upstream.asked(reply).tool_results == {
        calls[0].id: "2 degrees",
        calls[1].id: "19 degrees",
    }
    assert [json.loads(a) for a in upstream.asked(reply).past_tool_arguments] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]


@EITHER
def test_an_image_reaches_the_model(
    claude: anthropic.Anthropic, upstream: Upstream, model: str
) -> None:
    word = upstream.will(Say(texts=("A pixel.",)))
    image = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content: Any = [{"type": "image", "source": image}, {"type": "text", "text": word}]

    message = claude.messages.create(
        model=model, max_tokens=50, messages=[{"role": "user", "content": content}]
    )

    assert message.content[0].text == "A pixel."  # type: ignore[union-attr]
    assert upstream.asked(word).images == [PIXEL]


@EITHER
@pytest.mark.parametrize(("said", "reason"), [("length", "max_tokens"), ("stop", "end_turn")])
def test_why_it_stopped(
    claude: anthropic.Anthropic, upstream: Upstream, model: str, said: str, reason: str
) -> None:
    word = upstream.will(Say(texts=("Cut",), finish=said))
    message = claude.messages.create(model=model, max_tokens=1, messages=asking(word))
    assert message.stop_reason == reason


def test_unknown_fields_and_headers_reach_the_vendor(
    claude: anthropic.Anthropic, upstream: Upstream
) -> None:
    """A body of the same dialect is passed on as it came, but for what is meant for us."""
    word = upstream.will(Say(texts=("ok",)))
    system: Any = [{"type": "text", "text": "Short.", "cache_control": {"type": "ephemeral"}}]
    claude.messages.create(
        model="claude-haiku-4-5",
        max_tokens=50,
        system=system,
        messages=asking(word),
        metadata={"user_id": "u-1"},
        extra_body={"some_new_field": {"a": [1]}, "routing_hint": {"min_quality": "good"}},
        extra_headers={"anthropic-beta": "new-thing-2026-01-01"},
    )
    asked = upstream.asked(word)
    assert asked.body["some_new_field"] == {"a": [1]}
    assert asked.body["system"] == system
    assert asked.body["metadata"] == {"user_id": "u-1"}
    assert "routing_hint" not in asked.body
    assert asked.headers["anthropic-beta"] == "new-thing-2026-01-01"
    assert asked.headers["anthropic-version"] == claude.default_headers["anthropic-version"]
    assert asked.headers["x-api-key"] == "sk-ant-standin"


def test_cached_tokens_are_told_and_priced_as_such(
    claude: anthropic.Anthropic, upstream: Upstream
) -> None:
    word = upstream.will(
        Say(texts=("ok",), input_tokens=10, output_tokens=2, cache_read_tokens=5000)
    )
    message = claude.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=asking(word))
    assert message.usage.input_tokens == 10
    assert message.usage.cache_read_input_tokens == 5000


def test_count_tokens(claude: anthropic.Anthropic) -> None:
    short = claude.messages.count_tokens(model="claude-haiku-4-5", messages=asking("Hi."))
    long = claude.messages.count_tokens(model="claude-haiku-4-5", messages=asking("Hi. " * 500))
    assert 0 < short.input_tokens < long.input_tokens


def test_models_are_listed_in_the_vendors_shape(claude: anthropic.Anthropic) -> None:
    models = list(claude.models.list())
    names = [model.id for model in models]
    assert {"ainfera-inference", "claude-opus-4-7", "claude-sonnet-4-6", "claude-haiku-4-5"} <= set(
        names
    )
    assert not {"ainfera-mithril", "ainfera-auto", "ainfera/auto"} & set(names)
    assert all(
        model.type == "model" and model.display_name and model.created_at for model in models
    )


def test_a_bearer_token_does_as_well(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    """Claude Code sends the key as a bearer token when it is told to."""
    word = upstream.will(Say(texts=("ok",)))
    with anthropic.Anthropic(auth_token=agent.api_key, base_url=stack.url, max_retries=0) as client:
        message = client.messages.create(
            model="claude-haiku-4-5", max_tokens=10, messages=asking(word)
        )
    assert message.content[0].text == "ok"  # type: ignore[union-attr]
