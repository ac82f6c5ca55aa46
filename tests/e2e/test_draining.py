"""An ingress that is stopped under its clients, and a fleet that has no worker."""

import re
from dataclasses import replace
from typing import Any

import httpx

from shared.lanes import QueueKeys
from shared.queue import INFERENCE_QUEUE, UNSERVED_AFTER_S, UNSERVED_RETRY_S
from tests.e2e.calls import PATHS, call, frames_of
from tests.e2e.readers import Reader, asking_for, following
from tests.e2e.stack import Stack, free_port, wait_until_ready
from tests.e2e.test_anthropic_sdk import asking
from tests.e2e.test_crashes import LOCKSTEP, WORDS, Start, own_stack, settled_once, steps
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import eventually

__all__ = ["own_stack"]  # the fixture

LAST_WORD = re.compile(rb"(event: error\n|data: {\"error\")")


def test_who_is_cut_off_hears_it_and_reads_on_elsewhere(
    own_stack: Start, upstream: Upstream
) -> None:
    stack, witness, api_key = own_stack("web", "inference", DRAIN_GRACE_SECONDS="3")
    words = {dialect: upstream.will(LOCKSTEP) for dialect in (*PATHS, "folded")}
    streams = {dialect: asking_for(stack, api_key, dialect, words[dialect]) for dialect in PATHS}
    folded = asking_for(stack, api_key, "native", words["folded"], stream=False)
    for reader in streams.values():
        reader.has(b"word0")
    upstream.asked(words["folded"])
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=30) as client:
        # its connection is there before the ingress begins to stop
        assert client.get("/health").status_code == 200
        stack.processes["web"].terminate()
        refuses_new_calls(stack, client, api_key)
    assert stack.processes["web"].wait(30) is not None

    for dialect, reader in streams.items():
        check_last_word(reader, dialect)
    folded.to_the_end()
    assert (folded.status, folded.broke) == (503, False)
    assert b"draining" in folded.content
    assert int(folded.headers["retry-after"]) >= 1
    # a client that sends it again has another call: this one is stopped, as for one that leaves
    eventually(lambda: upstream.asked(words["folded"]).hung_up, "the folded call stopped")

    port = free_port()
    other = replace(stack, url=f"http://127.0.0.1:{port}")
    stack.start("web", PORT=str(port))
    for dialect in PATHS:
        steps(upstream, words[dialect], len(WORDS) - 1)
    wait_until_ready(other)
    for dialect, reader in streams.items():
        rest = following(other, api_key, reader.inference_id, reader.last_id).to_the_end()
        whole = following(other, api_key, reader.inference_id).to_the_end()
        assert LAST_WORD.split(reader.content)[0] + rest == whole
        assert all(text.encode() in whole for text in WORDS)
        settled_once(witness, reader.inference_id)
        assert len(upstream.all_asked(words[dialect])) == 1


def refuses_new_calls(stack: Stack, client: httpx.Client, api_key: str) -> None:
    eventually(lambda: client.get("/ready").status_code == 503, "not ready any more")
    headers = {"authorization": f"Bearer {api_key}"}
    body = {"model": "gpt-5-mini", "max_tokens": 9, "messages": asking("Hello.")}
    for answer in (
        client.post("/v1/inference", json=body, headers=headers),
        stack.request("POST", "/v1/chat/completions", json=body, headers=headers),
    ):
        assert answer.status_code == 503
        assert "draining" in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["connection"] == "close"
    assert stack.request("GET", "/ready").json()["failing"] == "draining"


def check_last_word(reader: Reader, dialect: str) -> None:
    """One error, in its dialect, that says where it goes on; and the response itself is whole."""
    content = reader.to_the_end()
    assert not reader.broke
    names = [name for name, _ in frames_of(content)]
    assert len(LAST_WORD.findall(content)) == 1
    assert names.count("error") == (0 if dialect == "openai" else 1)
    assert not {"completed", "message_stop"} & {str(name) for name in names}
    last = LAST_WORD.split(content)[-1]
    assert f"/v1/inferences/{reader.inference_id}/events".encode() in last
    assert b"Last-Event-ID" in last
    assert (b"overloaded_error" if dialect == "anthropic" else b"draining") in last


def test_without_a_worker_a_call_is_given_up_and_the_next_are_refused(
    own_stack: Start, upstream: Upstream
) -> None:
    stack, witness, api_key = own_stack("web", START_DEADLINE_SECONDS="1")
    word = upstream.will(Say(texts=WORDS))
    late = call(stack, api_key, "native", word, model="ainfera-inference")
    assert (late.status, late.error_code) == (504, "deadline_exceeded")
    assert "not started" in late.body["message"]
    assert "Nothing was charged" in late.body["message"]

    served: Any = witness.redis
    served.hincrby(QueueKeys(INFERENCE_QUEUE).served, "seen", -int(2e6 * UNSERVED_AFTER_S))
    refused = call(stack, api_key, "native", word)
    assert (refused.status, refused.error_code) == (503, "overloaded")
    assert refused.headers["retry-after"] == str(UNSERVED_RETRY_S)
    kept = call(stack, api_key, "native", upstream.will(Say(texts=WORDS)), background=True)
    assert kept.status == 202

    stack.start("inference")
    (capture,) = eventually(lambda: witness.captures(late.inference_id), "the capture")
    assert capture["outcome_status"] == "expired"
    assert upstream.all_asked(word) == []
    assert call(stack, api_key, "native", word).status == 200
    for inference_id in (kept.body["inference_id"], late.inference_id):
        witness.inference(inference_id)
    settled_once(witness, late.inference_id)
