"""Recorded streams: the vendor's SDK and we must make the same of them."""

import hashlib
import re

import pytest

from shared.domain.dialects import DIALECTS, anthropic, openai
from shared.domain.inference import (
    Completed,
    Dialect,
    FinishReason,
    Started,
    ToolCallStarted,
    Usage,
)
from tests.domain.dialects.answers import ANTHROPIC_WORDS, gist, parsed, rendered
from tests.domain.dialects.vendors import (
    CALL,
    RECORDED,
    openai_chunks,
    read_with_anthropic,
    read_with_openai,
    sample,
    sample_frames,
    samples,
    without_nothing,
)

# the SDK itself cannot accumulate these: one holds arguments that are no JSON, the other
# ends by length, which its accumulator reports as an exception
UNREADABLE = {"tool_use_invalid_json", "length"}
BOTH = [(Dialect.ANTHROPIC, n) for n in samples("anthropic")] + [
    (Dialect.OPENAI, n) for n in samples("openai")
]


def test_every_sample_has_a_named_source() -> None:
    readme = (RECORDED / "README.md").read_text()
    stored = {path.name for path in RECORDED.glob("*/*") if path.name != "README.md"}
    assert stored
    assert stored == set(re.findall(r"^\| `([a-z_]+\.sse)` \|", readme, re.MULTILINE))


def test_openai_samples_are_what_their_source_named_them() -> None:
    readme = (RECORDED / "README.md").read_text()
    named = dict(re.findall(r"`([a-z_]+)\.sse` \| `([0-9a-f]{64})`", readme))
    assert named == {
        name: hashlib.sha256(sample("openai", name)).hexdigest() for name in samples("openai")
    }


@pytest.mark.parametrize("name", sorted(set(samples("anthropic")) - UNREADABLE))
def test_fold_is_what_the_anthropic_sdk_accumulates(name: str) -> None:
    told = read_with_anthropic(sample("anthropic", name))
    body = anthropic.fold(sample_frames("anthropic", name), CALL, None, None)
    assert body.pop("ainfera")["inference_id"] == CALL.inference_id
    body["usage"].pop("iterations", None)  # a field that the SDK's accumulator drops
    assert without_nothing(body) == without_nothing(told)


@pytest.mark.parametrize("name", sorted(set(samples("openai")) - UNREADABLE))
def test_fold_is_what_the_openai_sdk_accumulates(name: str) -> None:
    told = read_with_openai(sample("openai", name))
    for call in told["choices"][0]["message"].get("tool_calls") or ():
        del call["index"]  # the SDK keeps the stream's numbering, the API's own body has none
    body = openai.fold(sample_frames("openai", name), CALL, None, None)
    assert body.pop("ainfera")["receipt_id"] == CALL.receipt_id
    assert without_nothing(body) == without_nothing(told)


def test_an_answer_cut_off_by_its_length() -> None:
    chunks = openai_chunks(sample("openai", "length"))
    body = openai.fold(sample_frames("openai", "length"), CALL, None, None)
    choice = body["choices"][0]
    assert choice["message"]["content"] == chunks[1]["choices"][0]["delta"]["content"] == '{"'
    assert choice["finish_reason"] == "length"
    assert body["usage"] == chunks[-1]["usage"]


def test_unknown_fields_of_a_provider_survive_the_fold() -> None:
    body = anthropic.fold(sample_frames("anthropic", "thinking"), CALL, None, None)
    assert body["usage"]["iterations"][0]["type"] == "message"
    assert body["stop_details"]["fallback_credit_token"] == "tok_synthetic_fixture_a"
    searched = anthropic.fold(sample_frames("anthropic", "web_search"), CALL, None, None)
    assert [b["type"] for b in searched["content"][:2]] == [
        "server_tool_use",
        "web_search_tool_result",
    ]
    logged = openai.fold(sample_frames("openai", "logprobs"), CALL, None, None)
    tokens = logged["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["Foo", "!"]


def test_folding_leaves_the_frames_as_they_were() -> None:
    for dialect, name in BOTH:
        frames = sample_frames(dialect.value, name)
        DIALECTS[dialect].fold(frames, CALL, None, None)
        assert frames == sample_frames(dialect.value, name)


ENDS = {
    "basic": (FinishReason.STOP, "end_turn", Usage(11, 6)),
    "incomplete_partial_json": (FinishReason.LENGTH, "max_tokens", Usage(450, 124)),
    "message_delta_fields": (FinishReason.STOP, "end_turn", Usage(40, 8, 7, 12)),
    "message_delta_omitted_usage": (FinishReason.STOP, "end_turn", Usage(25, 8, 5, 10)),
    "server_tool_use": (FinishReason.STOP, "end_turn", Usage(9281, 97)),
    "thinking": (FinishReason.CONTENT_FILTER, "refusal", Usage(28, 106)),
    "tool_use": (FinishReason.TOOL_CALLS, "tool_use", Usage(377, 65)),
    "unknown_events": (FinishReason.STOP, "end_turn", Usage(11, 6)),
    "length": (FinishReason.LENGTH, "length", Usage(79, 1)),
    "logprobs": (FinishReason.STOP, "stop", Usage(9, 2)),
    "parallel_tools": (FinishReason.TOOL_CALLS, "tool_calls", Usage(149, 60)),
    "text": (FinishReason.STOP, "stop", Usage(14, 30)),
}


@pytest.mark.parametrize(("dialect", "name"), [b for b in BOTH if b[1] in ENDS])
def test_how_a_recorded_stream_ends(dialect: Dialect, name: str) -> None:
    events = parsed(sample_frames(dialect.value, name), dialect)
    assert isinstance(events[0], Started)
    assert events[0].upstream_id.startswith(("msg_", "chatcmpl-"))
    end = events[-1]
    assert isinstance(end, Completed)
    assert (end.finish_reason, end.finish_reason_native, end.usage) == ENDS[name]
    assert sum(isinstance(event, Started | Completed) for event in events) == 2


def test_what_the_tool_streams_say() -> None:
    one = gist(parsed(sample_frames("anthropic", "tool_use"), Dialect.ANTHROPIC))
    assert one.text == "I'll check the current weather in Paris for you."
    assert one.tools == [("toolu_01NRLabsLyVHZPKxbKvkfSMn", "get_weather", {"location": "Paris"})]
    two = parsed(sample_frames("openai", "parallel_tools"), Dialect.OPENAI)
    assert [e for e in two if isinstance(e, ToolCallStarted)] == [
        ToolCallStarted(0, "call_JMW1whyEaYG438VE1OIflxA2", "GetWeatherArgs"),
        ToolCallStarted(1, "call_DNYTawLBoN8fj3KN6qU9N1Ou", "get_stock_price"),
    ]
    assert [arguments for _, _, arguments in gist(two).tools] == [
        {"city": "Edinburgh", "country": "GB", "units": "c"},
        {"ticker": "AAPL", "exchange": "NASDAQ"},
    ]


def test_refusals_of_both_vendors_mean_the_same() -> None:
    for dialect in (Dialect.ANTHROPIC, Dialect.OPENAI):
        end = parsed(sample_frames(dialect.value, "refusal"), dialect)[-1]
        assert isinstance(end, Completed)
        assert end.finish_reason is FinishReason.CONTENT_FILTER
    said = gist(parsed(sample_frames("openai", "refusal"), Dialect.OPENAI)).text
    assert said == "I'm sorry, I can't assist with that request."


@pytest.mark.parametrize("name", samples("openai"))
def test_an_openai_answer_reaches_an_anthropic_client_whole(name: str) -> None:
    events = parsed(sample_frames("openai", name), Dialect.OPENAI)
    want, got = gist(events), read_with_anthropic(rendered(events, Dialect.ANTHROPIC))
    blocks = got["content"]
    assert "".join(b["text"] for b in blocks if b["type"] == "text") == want.text
    tools = [(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"]
    assert tools == want.tools
    assert want.finish is not None
    assert got["stop_reason"] == ANTHROPIC_WORDS[want.finish]
    assert want.usage is not None
    assert got["usage"]["input_tokens"] == want.usage.input_tokens
    assert got["usage"]["output_tokens"] == want.usage.output_tokens


WHOLE = sorted(set(samples("anthropic")) - {"incomplete_partial_json", "tool_use_invalid_json"})


@pytest.mark.parametrize("name", WHOLE)
def test_an_anthropic_answer_reaches_an_openai_client_whole(name: str) -> None:
    events = parsed(sample_frames("anthropic", name), Dialect.ANTHROPIC)
    want = gist(events)
    chunks = openai_chunks(rendered(events, Dialect.OPENAI))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == want.text
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == want.thinking
    assert want.finish is not None
    assert chunks[-2]["choices"][0]["finish_reason"] == want.finish.value
    assert want.usage is not None
    assert chunks[-1]["usage"]["prompt_tokens"] == want.usage.total_input
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == (
        want.usage.cache_read_tokens
    )


def test_arguments_that_are_no_json_are_passed_on_as_the_model_wrote_them() -> None:
    events = parsed(sample_frames("anthropic", "tool_use_invalid_json"), Dialect.ANTHROPIC)
    body = openai.fold(rendered(events, Dialect.OPENAI), CALL, None, None)
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"location": "Paris", "unit": celsius}'
    message = anthropic.fold(rendered(events, Dialect.ANTHROPIC), CALL, None, None)
    assert message["content"][1]["input"] == {
        "INVALID_JSON": '{"location": "Paris", "unit": celsius}'
    }
