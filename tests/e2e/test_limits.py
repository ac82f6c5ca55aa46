"""Limits of a key as the official SDKs meet them, with a real worker behind."""

from collections.abc import Callable
from typing import Any

import ainfera
import anthropic
import httpx
import openai
import pytest

from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream

MakeKey = Callable[..., str]


@pytest.fixture
def make_key(stack: Stack, agent: ainfera.SignupResult) -> MakeKey:
    """A key of the test's tenant with these limits."""

    def make(**limits: int) -> str:
        answer = httpx.post(
            f"{stack.url}/v1/keys",
            json={"scopes": ["call"], "limits": limits},
            headers={"x-api-key": agent.api_key},
        )
        assert answer.status_code == 201, answer.text
        key: str = answer.json()["api_key"]
        return key

    return make


def ask(client: anthropic.Anthropic, word: str) -> Any:
    return client.messages.with_raw_response.create(
        model="claude-haiku-4-5", max_tokens=50, messages=[{"role": "user", "content": word}]
    )


def test_the_anthropic_sdk_sees_what_is_left_and_then_a_rate_limit(
    any_claude: anthropic.Anthropic, upstream: Upstream, make_key: MakeKey
) -> None:
    claude = any_claude.with_options(api_key=make_key(requests_per_minute=1))
    taken = ask(claude, upstream.will(Say(texts=("Yes.",))))
    assert taken.headers["anthropic-ratelimit-requests-limit"] == "1"
    assert taken.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert taken.headers["x-ainfera-inference-id"]
    word = upstream.will(Say(texts=("Never said.",)))
    with pytest.raises(anthropic.RateLimitError) as refused:
        ask(claude, word)
    assert refused.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60


def test_a_stream_tells_what_is_left_and_its_end_says_what_it_used(
    any_gpt: openai.OpenAI, upstream: Upstream, make_key: MakeKey
) -> None:
    gpt = any_gpt.with_options(api_key=make_key(tokens_per_minute=100_000))

    def left(tokens: int) -> int:
        word = upstream.will(Say(texts=("One", " two"), input_tokens=tokens, output_tokens=5))
        with gpt.chat.completions.with_raw_response.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": word}], stream=True
        ).parse() as stream:
            told = int(stream.response.headers["x-ratelimit-remaining-tokens"])
            assert list(stream)
        return told

    # before it is known what the calls use, a little over a thousand tokens are reserved for each
    assert 98_000 < left(60_000) < 99_000
    after = left(10)
    for _ in range(20):  # the end of a job is written right after its client has heard it
        if after < 60_000:
            break
        after = left(10)
    assert 30_000 < after < 60_000


def test_an_sdk_that_waits_as_it_is_told_gets_its_turn(
    any_claude: anthropic.Anthropic, upstream: Upstream, make_key: MakeKey
) -> None:
    claude = any_claude.with_options(api_key=make_key(concurrent_calls=1))
    first = upstream.will(Say(texts=("Long", " answer."), in_lockstep=True))
    second = upstream.will(Say(texts=("Short.",)))
    with claude.messages.stream(
        model="claude-haiku-4-5", max_tokens=50, messages=[{"role": "user", "content": first}]
    ) as stream:
        assert stream.response.headers["x-ainfera-concurrent-remaining"] == "0"
        with pytest.raises(anthropic.RateLimitError) as refused:
            ask(claude, second)
        assert refused.value.response.headers["retry-after-ms"] == "1000"
        upstream.asked(first).step()
        assert stream.get_final_text() == "Long answer."
    patient = claude.with_options(max_retries=5)
    assert ask(patient, second).parse().content[0].text == "Short."
