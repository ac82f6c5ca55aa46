"""A client that goes away: the provider is let go, what was used is settled, nothing is left."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ainfera
import httpx
import pytest

from tests.e2e.calls import EVERY_DIALECT, PATHS, STREAMED_OR_NOT
from tests.e2e.stack import Stack
from tests.e2e.test_anthropic_sdk import EITHER, asking
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Row, Witness, eventually

# more than anybody waits for: each word after the first waits for a step that never comes
ENDLESS = Say(texts=tuple(f"word{n} " for n in range(1000)), in_lockstep=True)


def begin(dialect: str, model: str, prompt: str, stream: bool) -> dict[str, Any]:
    return {
        "url": PATHS[dialect],
        "json": {"model": model, "max_tokens": 99, "stream": stream, "messages": asking(prompt)},
    }


def last_call(witness: Witness, agent_id: str) -> Row:
    """The one call of this test's agent, as soon as it has ended."""
    query = "SELECT * FROM inferences WHERE agent_id = $1::uuid AND state <> 'held'"
    return eventually(lambda: witness.rows(query, agent_id), "the end of the call")[0]


def let_go(upstream: Upstream, word: str) -> None:
    eventually(lambda: upstream.asked(word).hung_up, "the provider's connection closed")
    assert not upstream.asked(word).finished
    assert len(upstream.all_asked(word)) == 1


@EVERY_DIALECT
@pytest.mark.parametrize("model", ["ainfera-inference", "gpt-5-mini", "claude-haiku-4-5"])
def test_in_the_middle_of_a_stream(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    model: str,
) -> None:
    word = upstream.will(ENDLESS)
    headers = {"authorization": f"Bearer {agent.api_key}"}
    asked = begin(dialect, model, word, True)
    with (
        httpx.Client(base_url=stack.url, headers=headers, timeout=30, verify=False) as client,
        client.stream("POST", asked["url"], json=asked["json"]) as response,
    ):
        heard = b""
        for piece in response.iter_bytes():
            heard += piece
            if b"word0" in heard:
                break
        inference_id = response.headers["x-ainfera-inference-id"]

    let_go(upstream, word)
    inference = witness.inference(inference_id)
    assert (inference["state"], inference["hold_state"]) == ("settled", "posted")
    assert 0 < inference["settled_usd"] <= inference["hold_usd"]
    captures = witness.captures(inference_id)
    assert [c["outcome_status"] for c in captures] == (
        ["cancelled"] if model == "ainfera-inference" else []
    )
    (receipt,) = witness.receipts(inference_id)
    assert receipt["cost_usd"] == inference["settled_usd"]
    assert receipt["usage_estimated"] is True
    responded = witness.events(inference_id)[1]
    assert (responded["event_type"], responded["outcome"]) == ("provider.responded", "cancelled")
    assert witness.wallet(agent.agent_id)["held"] == 0
    assert witness.ledger_sum() == 0


@EITHER
@STREAMED_OR_NOT
@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
def test_before_the_first_word(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    model: str,
    stream: bool,
) -> None:
    word = upstream.will(Say(texts=("Never.",), in_lockstep=True, first_waits=True))
    leave_once_asked(stack, agent.api_key, begin(dialect, model, word, stream), upstream, word)

    let_go(upstream, word)
    inference = last_call(witness, agent.agent_id)
    assert inference["state"] == "settled"
    assert inference["settled_usd"] <= inference["hold_usd"]
    assert witness.wallet(agent.agent_id)["held"] == 0
    assert witness.wallet(agent.agent_id)["balance"] == 5 - inference["settled_usd"]


@EVERY_DIALECT
def test_while_a_folded_answer_is_written(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, dialect: str
) -> None:
    """The client has got nothing, but the provider had begun: what it wrote is paid."""
    word = upstream.will(ENDLESS)
    asked = begin(dialect, "ainfera-inference", word, False)
    leave_once_asked(stack, agent.api_key, asked, upstream, word)

    let_go(upstream, word)
    inference = last_call(witness, agent.agent_id)
    assert inference["settled_usd"] > 0
    (capture,) = witness.captures(inference["id"])
    assert capture["outcome_status"] == "cancelled"


@STREAMED_OR_NOT
def test_while_the_call_waits_in_the_queue(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, stream: bool
) -> None:
    """No worker has it yet, so none can be told to stop: the one that claims it later must know."""
    word = upstream.will(ENDLESS)
    worker = stack.processes["inference"]
    with witness.orders() as heard:
        worker.send_signal(signal.SIGSTOP)
        try:
            with sent(stack, agent.api_key, begin("native", "ainfera-inference", word, stream)):
                eventually(lambda: witness.keys_with(word), "the call in the queue")
            eventually(heard, "the order to stop")
        finally:
            worker.send_signal(signal.SIGCONT)
    check_cancelled_for_nothing(upstream, word, witness, agent.agent_id)


def test_while_no_worker_is_there(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    """Nobody hears the order: it stands where the worker that comes later finds it."""
    word = upstream.will(ENDLESS)
    stack.kill("inference")
    try:
        with witness.orders() as heard:
            with sent(stack, agent.api_key, begin("native", "ainfera-inference", word, True)):
                eventually(lambda: witness.keys_with(word), "the call in the queue")
            eventually(heard, "the order to stop")
    finally:
        stack.start("inference")
    check_cancelled_for_nothing(upstream, word, witness, agent.agent_id)


@STREAMED_OR_NOT
def test_while_money_is_being_held(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, stream: bool
) -> None:
    word = upstream.will(ENDLESS)
    with witness.orders() as heard, witness.locked_wallet(agent.agent_id) as waiting:
        with sent(stack, agent.api_key, begin("native", "ainfera-inference", word, stream)):
            eventually(waiting, "the hold waiting for the wallet")
        eventually(heard, "the order to stop")
    check_cancelled_for_nothing(upstream, word, witness, agent.agent_id)


def check_cancelled_for_nothing(
    upstream: Upstream, word: str, witness: Witness, agent_id: str
) -> None:
    inference = last_call(witness, agent_id)
    (capture,) = witness.captures(inference["id"])
    assert capture["outcome_status"] == "cancelled"
    assert not [asked for asked in upstream.all_asked(word) if asked.sent_texts]
    wallet = witness.wallet(agent_id)
    assert (wallet["balance"], wallet["held"]) == (5, 0)


def leave_once_asked(
    stack: Stack, api_key: str, request: dict[str, Any], upstream: Upstream, word: str
) -> None:
    """Send a request, and close the connection when the provider has been asked."""
    with sent(stack, api_key, request):
        eventually(lambda: upstream.asked(word).sent, "the first frame of the provider's answer")


@contextmanager
def sent(stack: Stack, api_key: str, request: dict[str, Any]) -> Iterator[None]:
    """A request on its way; the connection is closed when the block ends, whatever has come."""
    body = httpx.Request("POST", f"{stack.url}{request['url']}", json=request["json"])
    host, port = stack.url.removeprefix("http://").split(":")
    headers = {**body.headers, **request.get("headers", {}), "authorization": f"Bearer {api_key}"}
    lines = [f"POST {request['url']} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body.read())
        yield
