"""Processes and stores that fail under a call, and what its client and the books see of it."""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import ainfera
import pytest

from shared.embedded import APP_ROLE, Servers, postgres_url
from tests.e2e.calls import EVERY_DIALECT, call, frames_of
from tests.e2e.conftest import new_database, two_providers
from tests.e2e.readers import Reader, asking_for, following, whole_events
from tests.e2e.stack import Stack, free_port, running_stack, wait_until_ready
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Backstage, Row, Witness, eventually

WORDS = tuple(f"word{n} " for n in range(8))
LOCKSTEP = Say(texts=WORDS, in_lockstep=True)
_numbers = itertools.count(1)

Start = Callable[..., tuple[Stack, Witness, str]]


PINGS = rb'(?m)^: ping\n\n|^event: ping\ndata: {"type": "ping"}\n\n'


@pytest.fixture
def own_stack(
    servers: Servers, template: str, backstage: Backstage, upstream: Upstream, tmp_path: Path
) -> Iterator[Start]:
    """Starts processes of this test's own: `(stack, witness, an agent's key)`."""
    with ExitStack() as opened:

        def begin(*names: str) -> tuple[Stack, Witness, str]:
            name = f"crashes_{next(_numbers)}"
            backstage.run(new_database(servers, template, name))
            changes = {
                **two_providers(upstream),
                "REPLAY_SECONDS": "60",
                "LEASE_SECONDS": "1",
            }
            stack = opened.enter_context(
                running_stack(
                    tmp_path,
                    postgres_url(servers.sockets, APP_ROLE, name),
                    postgres_url(servers.sockets, "postgres", name),
                    f"{servers.redis_url}?db=4",
                    changes,
                    names,
                )
            )
            witness = Witness(backstage, stack.superuser_url, stack.redis_url)
            opened.callback(witness.close)
            witness.redis.flushdb()
            client = opened.enter_context(ainfera.AinferaClient("", base_url=stack.url))
            return stack, witness, client.agents.signup(agent_handle="tester").api_key

        yield begin


def steps(upstream: Upstream, word: str, count: int) -> None:
    for _ in range(count):
        upstream.asked(word).step()


def settled_once(witness: Witness, inference_id: str) -> Row:
    """The call's row; one settlement, one hold that is gone, and books that balance."""
    inference = witness.inference(inference_id)
    assert len(witness.receipts(inference_id)) <= 1
    assert witness.ledger_sum() == 0
    assert witness.unbalanced_wallets() == []
    assert witness.value("SELECT sum(held) FROM accounts") == 0
    return inference


@EVERY_DIALECT
def test_an_ingress_dies_and_the_stream_goes_on_at_another(
    own_stack: Start, upstream: Upstream, dialect: str
) -> None:
    stack, witness, api_key = own_stack("web", "inference")
    word = upstream.will(LOCKSTEP)
    reader = asking_for(stack, api_key, dialect, word)
    reader.has(b"word0")
    steps(upstream, word, 3)
    reader.has(b"word3")
    stack.kill("web")
    had = whole_events(reader.to_the_end())
    assert reader.broke

    # the worker does not mind, whether or not anybody listens
    steps(upstream, word, 2)
    eventually(lambda: len(upstream.asked(word).sent_texts) == 6, "the provider going on")
    port = free_port()
    other = replace(stack, url=f"http://127.0.0.1:{port}")
    stack.start("web", PORT=str(port))
    wait_until_ready(other)
    rest = following(other, api_key, reader.inference_id, reader.last_id)
    rest.has(b"word5")
    steps(upstream, word, 2)
    together = had + rest.to_the_end()

    assert together == following(other, api_key, reader.inference_id).to_the_end()
    assert all(text.encode() in together for text in WORDS)
    settled_once(witness, reader.inference_id)
    (receipt,) = witness.receipts(reader.inference_id)
    assert not receipt["usage_estimated"]
    assert len(upstream.all_asked(word)) == 1


@EVERY_DIALECT
def test_a_worker_dies_in_mid_stream(own_stack: Start, upstream: Upstream, dialect: str) -> None:
    """No second call to the provider, no second voice: one error, and what was told is paid."""
    stack, witness, api_key = own_stack("web", "inference")
    word = upstream.will(LOCKSTEP)
    reader = asking_for(stack, api_key, dialect, word, model="ainfera-inference")
    reader.has(b"word0")
    steps(upstream, word, 3)
    reader.has(b"word3")
    eventually(lambda: witness.keys_with("word3"), "the replay written")
    stack.kill("inference")
    stack.start("inference")
    # pings of the wait for another worker are no part of what was told
    whole = re.sub(PINGS, b"", reader.to_the_end())

    assert reader.words == "".join(WORDS[:4])
    check_broken(reader, dialect)
    inference = settled_once(witness, reader.inference_id)
    assert inference["attempt"] == 2
    assert 0 < inference["settled_usd"] <= inference["hold_usd"]
    (receipt,) = witness.receipts(reader.inference_id)
    assert receipt["usage_estimated"]
    # four characters a token
    assert receipt["output_tokens"] == len("".join(WORDS[:4])) // 4
    assert receipt["model_slug"] == "gpt-5-mini"
    (capture,) = witness.captures(reader.inference_id)
    assert capture["outcome_status"] == "failed_midstream"
    assert [e["event_type"] for e in witness.events(reader.inference_id)][1:] == [
        "provider.failed",
        "receipt.created",
    ]
    assert witness.events(reader.inference_id)[1]["outcome"] == "failed_midstream"
    assert len(upstream.all_asked(word)) == 1
    assert following(stack, api_key, reader.inference_id).to_the_end() == whole
    for boundary in (1, 2):
        rest = following(stack, api_key, reader.inference_id, str(boundary)).to_the_end()
        assert whole.endswith(rest)
        assert b"error" in rest
    after = following(stack, api_key, reader.inference_id, reader.last_id)
    assert after.to_the_end() == b""
    assert after.status == 204


def check_broken(reader: Reader, dialect: str) -> None:
    names = [name for name, _ in frames_of(reader.content)]
    assert names.count("error") == (0 if dialect == "openai" else 1)
    assert not {"completed", "message_stop", "message_delta"} & {str(name) for name in names}
    assert b"provider_error" in reader.content


@pytest.mark.parametrize("stream", [True, False])
def test_a_worker_dies_before_the_first_word(
    own_stack: Start, upstream: Upstream, stream: bool
) -> None:
    """Nobody has heard anything, so another worker may ask again."""
    stack, witness, api_key = own_stack("web", "inference")
    word = upstream.will(Say(texts=("At", " last."), in_lockstep=True, first_waits=True))
    url = f"{stack.url}/v1/inference"
    reader = Reader(url, api_key, "native", word, stream=stream).begin()
    upstream.asked(word)
    stack.kill("inference")
    stack.start("inference")
    eventually(lambda: len(upstream.all_asked(word)) == 2, "the second attempt")
    steps(upstream, word, 2)
    assert b"At last." in reader.to_the_end()
    assert reader.status == 200
    assert settled_once(witness, reader.inference_id)["attempt"] == 2
    assert len(upstream.all_asked(word)) == 2


@pytest.mark.parametrize("followed", [True, False])
def test_a_worker_dies_under_a_call_in_the_background(
    own_stack: Start, upstream: Upstream, followed: bool
) -> None:
    """What nobody has read was told to nobody: another worker may start anew."""
    stack, witness, api_key = own_stack("web", "inference", "books")
    word = upstream.will(LOCKSTEP)
    accepted = call(stack, api_key, "native", word, background=True)
    assert accepted.status == 202
    inference_id = accepted.body["inference_id"]
    eventually(lambda: witness.keys_with("word0"), "the first word in the replay")
    reader = following(stack, api_key, inference_id) if followed else None
    if reader is not None:
        reader.has(b"word0")
    stack.kill("inference")
    stack.start("inference")
    if reader is not None:
        reader.to_the_end()
        check_broken(reader, "native")
    else:
        eventually(lambda: len(upstream.all_asked(word)) == 2, "the second attempt")
        steps(upstream, word, len(WORDS) - 1)
    settled_once(witness, inference_id)
    assert len(upstream.all_asked(word)) == (1 if followed else 2)
    if not followed:
        again = following(stack, api_key, inference_id)
        again.to_the_end()
        assert again.words == "".join(WORDS)


@pytest.mark.parametrize("stream", [True, False])
def test_the_queue_is_lost_while_a_call_waits_in_it(
    own_stack: Start, upstream: Upstream, stream: bool
) -> None:
    stack, witness, api_key = own_stack("web")
    word = upstream.will(Say(texts=WORDS))
    url = f"{stack.url}/v1/inference"
    reader = Reader(url, api_key, "native", word, stream=stream).begin()
    eventually(lambda: witness.keys_with(word), "the call in the queue")
    witness.redis.flushdb()
    assert witness.keys_with(word) == []
    stack.start("inference")
    assert "".join(WORDS).encode() in reader.to_the_end()
    assert settled_once(witness, reader.inference_id)["attempt"] == 2
    assert len(upstream.all_asked(word)) == 1
    key = {"x-ainfera-internal-key": stack.internal_key}
    metrics = stack.request("GET", "/metrics", headers=key).text
    assert "ainfera_reenqueued_total 1.0" in metrics
