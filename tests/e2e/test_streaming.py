"""Streams are handed on as they come: nothing is collected and replayed."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any

import ainfera
import aiohttp
import anthropic
import httpx
import openai
import pytest

from tests.e2e.calls import EVERY_DIALECT, PATHS, Answer, frames_of
from tests.e2e.stack import Stack, running_stack
from tests.e2e.test_anthropic_sdk import EITHER, asking
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually

WORDS = tuple(f"word{n} " for n in range(10))
CROWD = 200
WORDS_EACH = 12


def arrivals(words: Any) -> list[tuple[float, str]]:
    """When each piece of text was in the client's hands."""
    return [(time.monotonic(), text) for text in words if text]


def gpt_words(client: openai.OpenAI, model: str, prompt: str) -> Any:
    stream = client.chat.completions.create(model=model, messages=asking(prompt), stream=True)
    return (c.delta.content for chunk in stream for c in chunk.choices)


def claude_words(client: anthropic.Anthropic, model: str, prompt: str) -> Any:
    with client.messages.stream(model=model, max_tokens=99, messages=asking(prompt)) as stream:
        yield from stream.text_stream


@EITHER
@pytest.mark.parametrize("sdk", ["anthropic", "openai"])
def test_each_token_is_there_before_the_next_is_sent(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, upstream: Upstream, model: str, sdk: str
) -> None:
    """The provider speaks a word only after the client has got the one before it."""
    word = upstream.will(Say(texts=WORDS, in_lockstep=True))
    words = claude_words(claude, model, word) if sdk == "anthropic" else gpt_words(gpt, model, word)

    heard = []
    for text in words:
        if text:
            heard.append(text)
            assert len(upstream.asked(word).sent_texts) == len(heard)
            upstream.asked(word).step()
    assert tuple(heard) == WORDS


@EITHER
def test_tokens_that_come_100_ms_apart_arrive_100_ms_apart(
    gpt: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    """By the provider's own log of what it sent when; the machine's pace does not matter."""
    word = upstream.will(Say(texts=WORDS, gap_s=0.1))
    came = word_by_word(arrivals(gpt_words(gpt, model, word)))

    sent = [(at, text) for at, text in upstream.asked(word).sent if text]
    assert [text for _, text in sent] == list(WORDS)
    assert all(at > left for at, (left, _) in zip(came, sent, strict=True))
    # more than half of the words were there before the provider had sent the next
    prompt = [at < left for at, (left, _) in zip(came, sent[1:], strict=False)]
    assert sum(prompt) > len(prompt) // 2
    assert came[0] < sent[-1][0]
    assert came[-1] - came[0] > (sent[-1][0] - sent[0][0]) / 2


def word_by_word(came: list[tuple[float, str]]) -> list[float]:
    """When each of `WORDS` came; where a machine stands still for a while, two come as one text."""
    found: list[float] = []
    for at, text in came:
        left = text
        while left:
            word = WORDS[len(found)]
            assert left.startswith(word)
            left = left[len(word) :]
            found.append(at)
    return found


@EVERY_DIALECT
async def test_a_crowd_of_streams(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, dialect: str
) -> None:
    """200 open at once, each with words of its own: all whole, in order, settled and captured."""
    said = {upstream.will(Say(texts=text_of(n), in_lockstep=True)): n for n in range(CROWD)}
    before = witness.wallet(agent.agent_id)["balance"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        calls = [
            asyncio.create_task(streamed(http, stack, agent.api_key, dialect, word))
            for word in said
        ]
        await asyncio.to_thread(all_have_begun, upstream, list(said))
        for word in said:
            for _ in range(WORDS_EACH):
                upstream.asked(word).step()
        answers = await asyncio.gather(*calls)

    assert len({answer.inference_id for answer in answers}) == CROWD
    for answer, n in zip(answers, said.values(), strict=True):
        assert answer.text == "".join(text_of(n))
        assert answer.error_code is None
    outcomes = witness.rows(
        "SELECT outcome_status, count(*) AS calls, sum(cost_actual) AS cost "
        "FROM routing_outcomes WHERE agent_id = $1::uuid GROUP BY 1",
        agent.agent_id,
    )
    assert [(o["outcome_status"], o["calls"]) for o in outcomes] == [("succeeded", CROWD)]
    wallet = witness.wallet(agent.agent_id)
    # the crowd is larger than the grant: at a full minute the books take back what is left of it
    ended = "SELECT coalesce(sum(amount), 0) FROM transfers WHERE debit_account = $1 AND kind = $2"
    returned = witness.value(ended, wallet["id"], "grant_return")
    assert (wallet["balance"], wallet["held"]) == (before - outcomes[0]["cost"] - returned, 0)
    assert witness.ledger_sum() == 0
    assert witness.unbalanced_wallets() == []
    async with ainfera.AsyncAinferaClient(agent.api_key, base_url=stack.url) as client:
        chain = (await client.agents.retrieve(agent.agent_id)).audit_chain
        assert await chain.verify()
        assert (await chain.verify_remote()).event_count == 2 + CROWD * 3


def text_of(n: int) -> tuple[str, ...]:
    return tuple(f"{n}.{i} " for i in range(WORDS_EACH))


def all_have_begun(upstream: Upstream, words: list[str]) -> None:
    for word in words:
        eventually(lambda word=word: upstream.asked(word).sent_texts, f"a first word for {word}")  # type: ignore[misc]


async def streamed(
    http: aiohttp.ClientSession, stack: Stack, api_key: str, dialect: str, prompt: str
) -> Answer:
    body = {
        "model": "ainfera-inference",
        "max_tokens": 64,
        "stream": True,
        "messages": asking(prompt),
    }
    headers = {"authorization": f"Bearer {api_key}"}
    async with http.post(f"{stack.url}{PATHS[dialect]}", json=body, headers=headers) as response:
        content = await response.read()
        assert response.status == 200, content
        return Answer(200, httpx.Headers(response.headers), content, list(frames_of(content)))


@pytest.fixture(scope="module")
def patient_web(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A second ingress of the same stack, one that pings after a short silence."""
    database_url = stack.superuser_url.replace("//postgres@", "//ainfera_app@")
    home = tmp_path_factory.mktemp("patient")
    changes = {"PING_INTERVAL_SECONDS": "0.2"}
    with running_stack(
        home, database_url, stack.superuser_url, stack.redis_url, changes, ("web",)
    ) as web:
        yield web


@EVERY_DIALECT
def test_silence_is_filled_with_pings(
    patient_web: Stack, agent: ainfera.SignupResult, upstream: Upstream, dialect: str
) -> None:
    """A stream that waits long is opened before the first word, and kept alive until it comes."""
    word = upstream.will(Say(texts=("At", " last."), in_lockstep=True, first_waits=True))
    body = {"model": "gpt-5-mini", "max_tokens": 9, "stream": True, "messages": asking(word)}
    headers = {"authorization": f"Bearer {agent.api_key}"}
    url = f"{patient_web.url}{PATHS[dialect]}"
    with httpx.stream(
        "POST", url, json=body, headers=headers, timeout=30, verify=False
    ) as response:
        assert response.status_code == 200
        assert response.headers["x-ainfera-stream-mode"] == "native"
        assert "x-ainfera-model" not in response.headers
        lines = response.iter_lines()
        pings = [line for line in itertools.islice(lines, 6) if "ping" in line]
        assert len(pings) >= 2
        for _ in range(2):
            upstream.asked(word).step()
        rest = "\n".join(lines)
    frames = list(frames_of(rest.encode()))
    assert Answer(200, response.headers, b"", frames).text == "At last."
