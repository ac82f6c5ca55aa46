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
from tests.e2e.calls import PATHS, call, frames_of
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
    """Starts processes of this test's own, with these settings: `(stack, witness, a key)`."""
    with ExitStack() as opened:

        def begin(*names: str, **more: str) -> tuple[Stack, Witness, str]:
            name = f"crashes_{next(_numbers)}"
            backstage.run(new_database(servers, template, name))
            changes = {
                **two_providers(upstream),
                "REPLAY_SECONDS": "60",
                "LEASE_SECONDS": "1",
                **more,
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


def test_an_ingress_dies_and_the_stream_goes_on_at_another(
    own_stack: Start, upstream: Upstream
) -> None:
    stack, witness, api_key = own_stack("web", "inference")
    words = {dialect: upstream.will(LOCKSTEP) for dialect in PATHS}
    readers = begun(stack, api_key, words, upstream)
    stack.kill("web")
    had = {dialect: whole_events(reader.to_the_end()) for dialect, reader in readers.items()}
    assert all(reader.broke for reader in readers.values())

    # the worker does not mind, whether or not anybody listens
    for word in words.values():
        steps(upstream, word, 2)
    for word in words.values():
        eventually(lambda word=word: len(upstream.asked(word).sent_texts) == 6, "more words")  # type: ignore[misc]
    port = free_port()
    other = replace(stack, url=f"http://127.0.0.1:{port}")
    stack.start("web", PORT=str(port))
    wait_until_ready(other)
    for dialect, reader in readers.items():
        rest = following(other, api_key, reader.inference_id, reader.last_id)
        rest.has(b"word5")
        steps(upstream, words[dialect], 2)
        together = had[dialect] + rest.to_the_end()
        assert together == following(other, api_key, reader.inference_id).to_the_end()
        assert all(text.encode() in together for text in WORDS)
    for dialect, reader in readers.items():
        settled_once(witness, reader.inference_id)
        (receipt,) = witness.receipts(reader.inference_id)
        assert not receipt["usage_estimated"]
        assert len(upstream.all_asked(words[dialect])) == 1


def begun(
    stack: Stack, api_key: str, words: dict[str, str], upstream: Upstream, **more: str
) -> dict[str, Reader]:
    """A stream in each dialect, of which four words have been heard."""
    readers = {name: asking_for(stack, api_key, name, words[name], **more) for name in words}
    for dialect, reader in readers.items():
        reader.has(b"word0")
        steps(upstream, words[dialect], 3)
    for reader in readers.values():
        reader.has(b"word3")
    return readers


def test_a_worker_dies_in_mid_stream(own_stack: Start, upstream: Upstream) -> None:
    """No second call to the provider, no second voice: one error, and what was told is paid."""
    stack, witness, api_key = own_stack("web", "inference")
    words = {dialect: upstream.will(LOCKSTEP) for dialect in PATHS}
    readers = begun(stack, api_key, words, upstream, model="ainfera-inference")
    eventually(lambda: len(witness.keys_with("word3")) == len(words), "the replays written")
    stack.kill("inference")
    stack.start("inference")
    for reader in readers.values():
        reader.to_the_end()
    for dialect, reader in readers.items():
        check_broken(reader, dialect)
        check_paid(witness, reader)
        assert len(upstream.all_asked(words[dialect])) == 1
        check_read_again(stack, api_key, reader)


def check_paid(witness: Witness, reader: Reader) -> None:
    """For what was told, and for nothing that a second attempt might have said."""
    assert reader.words == "".join(WORDS[:4])
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
    events = witness.events(reader.inference_id)
    assert [e["event_type"] for e in events][1:] == ["provider.failed", "receipt.created"]
    assert events[1]["outcome"] == "failed_midstream"


def check_read_again(stack: Stack, api_key: str, reader: Reader) -> None:
    # pings of the wait for another worker are no part of what was told
    whole = re.sub(PINGS, b"", reader.content)
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


def test_a_worker_dies_before_the_first_word(own_stack: Start, upstream: Upstream) -> None:
    """Nobody has heard anything, so another worker may ask again."""
    stack, witness, api_key = own_stack("web", "inference")
    silent = Say(texts=("At", " last."), in_lockstep=True, first_waits=True)
    words = {stream: upstream.will(silent) for stream in (True, False)}
    readers = [
        asking_for(stack, api_key, "native", word, stream=stream) for stream, word in words.items()
    ]
    for word in words.values():
        upstream.asked(word)
    stack.kill("inference")
    stack.start("inference")
    for word in words.values():
        eventually(lambda word=word: len(upstream.all_asked(word)) == 2, "the second attempt")  # type: ignore[misc]
        steps(upstream, word, 2)
    for reader in readers:
        assert b"At last." in reader.to_the_end()
        assert reader.status == 200
    for reader in readers:
        assert settled_once(witness, reader.inference_id)["attempt"] == 2
    assert all(len(upstream.all_asked(word)) == 2 for word in words.values())


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
