"""What a provider does wrong, and what the client, the books and the next model make of it."""

from decimal import Decimal

import ainfera
import anthropic
import openai
import pytest

from tests.e2e.calls import EVERY_DIALECT, STREAMED_OR_NOT, Answer, call
from tests.e2e.stack import Stack
from tests.e2e.test_anthropic_sdk import EITHER, VENDORS, asking
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Row, Witness

# asked again at once: how long to wait is not what is tested
BROKEN = Say(status=500, error="It broke.", headers=(("retry-after", "0"),))
WORDS = ("One ", "two ", "three ", "four.")
HAIKU_IN, HAIKU_OUT = Decimal(1), Decimal(5)


def settled_fairly(witness: Witness, answer: Answer, agent_id: str) -> Row:
    """The hold is gone and covered the charge, the books balance; the call's row."""
    inference = witness.inference(answer.inference_id)
    assert inference["state"] == "settled"
    assert inference["settled_usd"] <= inference["hold_usd"]
    wallet = witness.wallet(agent_id)
    assert wallet["held"] == 0
    assert wallet["balance"] == 5 - inference["settled_usd"]
    assert witness.ledger_sum() == 0
    return inference


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_before_the_first_token_the_next_model_answers(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
) -> None:
    fine = Say(texts=WORDS, input_tokens=20, output_tokens=60)
    word = upstream.will(BROKEN, on_anthropic=fine)
    answer = call(stack, agent.api_key, dialect, word, stream=stream)

    assert answer.status == 200
    assert answer.text == "".join(WORDS)
    assert answer.headers["x-ainfera-model"] == "claude-haiku-4-5"
    # asked twice, as one retry is allowed, then another model once
    assert [asked.wire for asked in upstream.all_asked(word)] == ["openai", "openai", "anthropic"]
    cost = (20 * HAIKU_IN + 60 * HAIKU_OUT) / 1_000_000
    assert settled_fairly(witness, answer, agent.agent_id)["settled_usd"] == cost
    (capture,) = witness.captures(answer.inference_id)
    assert (capture["outcome_status"], capture["provider"]) == ("succeeded", "anthropic")
    (vain,) = capture["fallback_chain"]
    assert (vain["model"], vain["upstream_status"]) == ("gpt-5-mini", 500)
    (receipt,) = witness.receipts(answer.inference_id)
    assert receipt["model_slug"] == "claude-haiku-4-5"
    kinds = [event["event_type"] for event in witness.events(answer.inference_id)]
    assert kinds == [
        "inference.routed",
        "provider.fallback",
        "provider.responded",
        "receipt.created",
    ]


@EVERY_DIALECT
@STREAMED_OR_NOT
@pytest.mark.parametrize("model", ["ainfera-inference", "gpt-5-mini", "claude-haiku-4-5"])
def test_when_nobody_answers_it_is_a_502_and_costs_nothing(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
    model: str,
) -> None:
    word = upstream.will(BROKEN)
    answer = call(stack, agent.api_key, dialect, word, model=model, stream=stream)

    assert (answer.status, answer.error_code) == (502, "provider_error")
    assert "It broke." in answer.content.decode()
    assert len(upstream.all_asked(word)) == (6 if model == "ainfera-inference" else 2)
    inference = settled_fairly(witness, answer, agent.agent_id)
    assert (inference["hold_state"], inference["settled_usd"]) == ("voided", 0)
    captures = witness.captures(answer.inference_id)
    assert [c["outcome_status"] for c in captures] == (
        ["failed_provider"] if model == "ainfera-inference" else []
    )
    if dialect == "native":
        assert answer.body["upstream_status"] == 500


@pytest.mark.parametrize("status", [429, 529])
def test_a_providers_own_limits(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, upstream: Upstream, status: int
) -> None:
    """They are the gateway's trouble, not the client's quota; when to come again is passed on."""
    word = upstream.will(Say(status=status, error="Slow down.", headers=(("retry-after", "7"),)))
    with pytest.raises(anthropic.InternalServerError) as refused:
        claude.messages.create(model="claude-haiku-4-5", max_tokens=9, messages=asking(word))
    with pytest.raises(openai.InternalServerError) as refused_too:
        gpt.chat.completions.create(model="gpt-5-mini", messages=asking(word))
    for response in (refused.value.response, refused_too.value.response):
        assert response.status_code == 502
        assert response.headers["retry-after"] == "7"
        assert response.json()["ainfera"]["upstream_status"] == status
    # it asked for more patience than is worth a second attempt
    assert len(upstream.all_asked(word)) == 2


@EITHER
def test_the_vendors_wording_survives(
    claude: anthropic.Anthropic, upstream: Upstream, model: str
) -> None:
    """Clients' own recovery matches it."""
    wording = "prompt is too long: 210000 tokens > 200000 maximum"
    word = upstream.will(Say(status=400, error=wording, error_type="invalid_request_error"))
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(model=model, max_tokens=9, messages=asking(word))
    assert wording in refused.value.message
    assert len(upstream.all_asked(word)) == 1


@EITHER
def test_the_gateways_own_key_is_never_the_clients_trouble(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, model: str
) -> None:
    """Vendors repeat a part of a key that they refuse."""
    word = upstream.will(Say(status=401, error="Incorrect API key provided: sk-sta***din."))
    answer = call(stack, agent.api_key, "openai", word, model=model)
    assert (answer.status, answer.error_code) == (502, "provider_error")
    assert "sk-sta" not in answer.content.decode()


@EVERY_DIALECT
@EITHER
@pytest.mark.parametrize("error", ["", "Overloaded inside."], ids=["cut", "error-inside"])
def test_a_stream_that_breaks_ends_in_an_error_and_is_settled(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    model: str,
    error: str,
) -> None:
    """After the first token: an error event in the dialect, nothing spliced, partial usage paid."""
    word = upstream.will(
        Say(texts=WORDS, broken_after=2, break_waits=True, error=error, input_tokens=40)
    )
    answer = call(
        stack,
        agent.api_key,
        dialect,
        word,
        model=model,
        stream=True,
        after=(b"two ", lambda: upstream.asked(word).step()),
    )

    assert answer.status == 200
    assert answer.text == "One two "
    assert answer.error_code == "provider_error"
    check_end(answer, dialect)
    inference = settled_fairly(witness, answer, agent.agent_id)
    assert inference["settled_usd"] > 0
    (receipt,) = witness.receipts(answer.inference_id)
    assert receipt["usage_estimated"] is True
    assert receipt["cost_usd"] == inference["settled_usd"]
    assert receipt["output_tokens"] > 0
    assert receipt["provider"] == VENDORS[model]
    kinds = [event["event_type"] for event in witness.events(answer.inference_id)]
    assert kinds == ["inference.routed", "provider.failed", "receipt.created"]
    assert len(upstream.all_asked(word)) == 1


def check_end(answer: Answer, dialect: str) -> None:
    """The error is the last that is said, but for OpenAI's own last word."""
    names = [name for name, _ in answer.frames]
    if dialect == "openai":
        assert names[-1] == "[DONE]"
        assert "error" in answer.frames[-2][1]
    else:
        assert names[-1] == "error"
    assert not {"completed", "message_stop", "message_delta"} & {str(name) for name in names}


@EVERY_DIALECT
def test_a_folded_answer_that_breaks_is_a_502_and_is_settled(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, dialect: str
) -> None:
    """Routed: the capture says that it broke in the middle, and no other model is asked."""
    word = upstream.will(Say(texts=WORDS, broken_after=2))
    answer = call(stack, agent.api_key, dialect, word)
    assert (answer.status, answer.error_code) == (502, "provider_error")
    (capture,) = witness.captures(answer.inference_id)
    assert capture["outcome_status"] == "failed_midstream"
    assert settled_fairly(witness, answer, agent.agent_id)["settled_usd"] > 0
    assert len(upstream.all_asked(word)) == 1


def test_the_sdks_raise_what_breaks_a_stream(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, upstream: Upstream
) -> None:
    word = upstream.will(Say(texts=WORDS, broken_after=2))
    heard: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError),
        claude.messages.stream(model="gpt-5-mini", max_tokens=99, messages=asking(word)) as stream,
    ):
        heard.extend(stream.text_stream)
    assert "".join(heard) == "One two "

    chunks = gpt.chat.completions.create(
        model="claude-haiku-4-5", messages=asking(word), stream=True
    )
    said: list[str] = []
    with pytest.raises(openai.APIError) as broken:
        said.extend(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert "".join(said) == "One two "
    assert broken.value.code == "provider_error"


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_an_error_inside_a_200_before_any_word_moves_on(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, dialect: str, stream: bool
) -> None:
    word = upstream.will(
        Say(texts=WORDS, broken_after=0, error="Overloaded inside."),
        on_anthropic=Say(texts=("Mine.",)),
    )
    answer = call(stack, agent.api_key, dialect, word, stream=stream)
    assert (answer.status, answer.text) == (200, "Mine.")
    pinned = call(stack, agent.api_key, dialect, word, model="gpt-5-mini", stream=stream)
    assert (pinned.status, pinned.error_code) == (502, "provider_error")


@EVERY_DIALECT
@EITHER
@STREAMED_OR_NOT
def test_usage_that_is_missing_is_estimated_and_said_so(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    model: str,
    stream: bool,
) -> None:
    word = upstream.will(Say(texts=WORDS, usage=False))
    answer = call(stack, agent.api_key, dialect, word, model=model, stream=stream)

    assert answer.status == 200
    assert answer.text == "".join(WORDS)
    (receipt,) = witness.receipts(answer.inference_id)
    assert receipt["usage_estimated"] is True
    assert receipt["input_tokens"] > 0
    # four characters a token, never fewer tokens than the words themselves make
    assert receipt["output_tokens"] >= len("".join(WORDS)) // 4
    assert settled_fairly(witness, answer, agent.agent_id)["settled_usd"] == receipt["cost_usd"]
