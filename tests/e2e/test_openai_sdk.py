"""The unmodified `openai` SDK, against models of its own vendor and of another."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.e2e.test_anthropic_sdk import EITHER, PIXEL, VENDORS, asking
from tests.e2e.upstream import Say, Upstream

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@EITHER
def test_a_completion(gpt: openai.OpenAI, upstream: Upstream, model: str) -> None:
    word = upstream.will(Say(texts=("It is ", "raining."), input_tokens=21, output_tokens=9))
    messages: Any = [{"role": "system", "content": "You are a weather bot."}, *asking(word)]

    completion = gpt.chat.completions.create(
        model=model, messages=messages, max_tokens=100, stop=["END"], temperature=0.5
    )

    assert isinstance(completion, ChatCompletion)
    assert (completion.object, completion.model) == ("chat.completion", model)
    (choice,) = completion.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", "It is raining.")
    assert choice.message.tool_calls is None
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (21, 9)
    assert completion.usage.total_tokens == 30
    about = completion.ainfera  # type: ignore[attr-defined]
    assert set(about) >= {"inference_id", "receipt_id", "agent_id", "provider", "audit_url"}
    assert about["provider"] == VENDORS[model]

    asked = upstream.asked(word)
    assert asked.system == "You are a weather bot."
    assert asked.stop == ["END"]
    assert asked.max_tokens == 100
    assert asked.body["temperature"] == 0.5
    assert not about.get("ignored")


@EITHER
@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_stream(gpt: openai.OpenAI, upstream: Upstream, model: str, wants_usage: bool) -> None:
    """Usage comes to whoever asked for it, and only to them."""
    words = ("One", " two", " three", " ünïcode\u2028", " four.")
    word = upstream.will(Say(texts=words, input_tokens=11, output_tokens=5))
    options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}

    chunks = list(
        gpt.chat.completions.create(model=model, messages=asking(word), stream=True, **options)
    )

    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    said = [c for chunk in chunks for c in chunk.choices]
    assert said[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in said) == "".join(words)
    assert [c.finish_reason for c in said if c.finish_reason] == ["stop"]
    usage = [chunk.usage for chunk in chunks if chunk.usage is not None]
    if wants_usage:
        (counted,) = usage
        assert (counted.prompt_tokens, counted.completion_tokens) == (11, 5)
        assert chunks[-1].choices == []
    else:
        assert usage == []
        assert all(chunk.choices for chunk in chunks)
    assert upstream.asked(word).body["stream"] is True


@EITHER
@pytest.mark.parametrize("streamed", [True, False])
def test_parallel_tools_and_their_results(
    gpt: openai.OpenAI, upstream: Upstream, model: str, streamed: bool
) -> None:
    """The model asks for two tools at once; their results go back; it answers."""
    word = upstream.will(
        Say.tool_calls(("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "Rome"}'))
    )
    wish: Any = {
        "model": model,
        "messages": asking(word),
        "tools": [WEATHER],
        "tool_choice": "required",
    }
    if streamed:
        with gpt.chat.completions.stream(**wish) as stream:
            for _ in stream:
                pass
            completion: Any = stream.get_final_completion()
    else:
        completion = gpt.chat.completions.create(**wish)

    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [(c.type, c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        ("function", "get_weather", {"city": "Oslo"}),
        ("function", "get_weather", {"city": "Rome"}),
    ]
    assert len({call.id for call in calls}) == 2
    asked = upstream.asked(word)
    assert asked.tool_names == ["get_weather"]
    assert asked.tool_is_forced

    reply = upstream.will(Say(texts=("Cold and warm.",)))
    history: Any = [
        *asking("Weather in Oslo and Rome?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in calls
            ],
        },
        {"role": "tool", "tool_call_id": calls[0].id, "content": "2 degrees"},
        {"role": "tool", "tool_call_id": calls[1].id, "content": "19 degrees"},
        *asking(reply),
    ]
    answer = gpt.chat.completions.create(model=model, messages=history, tools=[WEATHER])

    assert answer.choices[0].message.content == "Cold and warm."
    assert upstream.asked(reply).tool_results == {
        calls[0].id: "2 degrees",
        calls[1].id: "19 degrees",
    }
    assert [json.loads(a) for a in upstream.asked(reply).past_tool_arguments] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]


@EITHER
def test_an_image_reaches_the_model(gpt: openai.OpenAI, upstream: Upstream, model: str) -> None:
    word = upstream.will(Say(texts=("A pixel.",)))
    content: Any = [
        {"type": "text", "text": word},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    completion = gpt.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}]
    )
    assert completion.choices[0].message.content == "A pixel."
    assert upstream.asked(word).images == [PIXEL]


@EITHER
@pytest.mark.parametrize("said", ["length", "stop"])
def test_why_it_stopped(gpt: openai.OpenAI, upstream: Upstream, model: str, said: str) -> None:
    word = upstream.will(Say(texts=("Cut",), finish=said))
    completion = gpt.chat.completions.create(model=model, max_tokens=1, messages=asking(word))
    assert completion.choices[0].finish_reason == said


def test_unknown_fields_reach_the_vendor(gpt: openai.OpenAI, upstream: Upstream) -> None:
    word = upstream.will(Say(texts=("ok",)))
    gpt.chat.completions.create(
        model="gpt-5-mini",
        messages=asking(word),
        seed=7,
        extra_body={"some_new_field": {"a": [1]}, "routing_hint": {"min_quality": "good"}},
    )
    asked = upstream.asked(word)
    assert asked.body["some_new_field"] == {"a": [1]}
    assert asked.body["seed"] == 7
    assert "routing_hint" not in asked.body
    assert asked.headers["authorization"] == "Bearer sk-standin"


def test_the_vendor_is_sent_its_own_name_for_a_model(
    gpt: openai.OpenAI, upstream: Upstream
) -> None:
    """A slug and the vendor's id name the same model."""
    for name in ("gpt-5-5", "gpt-5.5"):
        word = upstream.will(Say(texts=("ok",)))
        completion = gpt.chat.completions.create(model=name, messages=asking(word))
        assert upstream.asked(word).body["model"] == "gpt-5.5"
        assert completion.model == "gpt-5.5"


def test_models_are_listed_in_the_vendors_shape(gpt: openai.OpenAI) -> None:
    models = {model.id: model for model in gpt.models.list()}
    assert {"ainfera-inference", "claude-opus-4-7", "gpt-5.5", "gpt-5-mini"} <= set(models)
    assert not {"ainfera-mithril", "ainfera-auto", "ainfera/auto"} & set(models)
    listed: Any = models["claude-opus-4-7"]
    assert (listed.object, listed.type, listed.provider) == ("model", "model", "anthropic")
    assert listed.slug == "claude-opus-4-7"
    assert float(listed.input_cost_per_million_usd) == 15
    assert float(listed.output_cost_per_million_usd) == 75
    assert "tools" in listed.capabilities
    router: Any = models["ainfera-inference"]
    assert (router.type, router.routable_status) == ("router", "routable")
    inactive: Any = models["gemini-3.1-pro-preview"]
    assert inactive.routable_status == "inactive"
