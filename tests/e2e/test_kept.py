"""Calls that are kept: in the background, or with an idempotency key, with real clients."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import ainfera
import anthropic
import httpx
import openai
import pytest

from tests.e2e.calls import EVERY_DIALECT, PATHS, STREAMED_OR_NOT, Answer, call
from tests.e2e.conftest import Signup
from tests.e2e.stack import Stack
from tests.e2e.test_anthropic_sdk import asking
from tests.e2e.test_leaving import ENDLESS, begin, let_go, sent
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Row, Witness, eventually

WORDS = ("One ", "two ", "three.")
OVER = {"succeeded", "failed", "cancelled", "expired"}


def key() -> dict[str, str]:
    return {"idempotency-key": f"key {uuid4()}"}


class Ours:
    """One agent's key on one stack, for the endpoints about inferences."""

    def __init__(self, stack: Stack, api_key: str) -> None:
        self.stack = stack
        self.auth = {"authorization": f"Bearer {api_key}"}

    def get(self, inference_id: str) -> dict[str, Any]:
        answer = self.stack.request("GET", f"/v1/inferences/{inference_id}", headers=self.auth)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def cancel(self, inference_id: str) -> httpx.Response:
        path = f"/v1/inferences/{inference_id}/cancel"
        return self.stack.request("POST", path, headers=self.auth)

    def ended(self, inference_id: str) -> dict[str, Any]:
        """The call, once it is over."""

        def look() -> dict[str, Any] | None:
            found = self.get(inference_id)
            return found if found["status"] in OVER else None

        found = eventually(look, f"the end of {inference_id}")
        assert found is not None
        return found


@pytest.fixture
def mine(stack: Stack, agent: ainfera.SignupResult) -> Ours:
    return Ours(stack, agent.api_key)


def in_background(
    stack: Stack, api_key: str, dialect: str, prompt: str, **more: Any
) -> dict[str, Any]:
    """The 202's body, its headers checked."""
    answer = call(stack, api_key, dialect, prompt, background=True, **more)
    assert answer.status == 202, answer.content
    said = answer.body
    assert answer.headers["x-ainfera-inference-id"] == said["inference_id"]
    assert answer.headers["x-ainfera-receipt-id"] == said["receipt_id"]
    assert said["url"] == f"{stack.url}/v1/inferences/{said['inference_id']}"
    assert said["events_url"] == f"{said['url']}/events"
    return said


def charged_once(witness: Witness, inference_id: str, agent_id: str) -> Row:
    """One settlement, one receipt, the wallet in order; the call's row."""
    inference = witness.inference(inference_id)
    assert inference["state"] == "settled"
    assert len(witness.receipts(inference_id)) == 1
    assert len([t for t in witness.transfers(inference_id) if t["kind"] == "usage"]) == 1
    wallet = witness.wallet(agent_id)
    assert (wallet["held"], wallet["balance"]) == (0, 5 - inference["settled_usd"])
    assert witness.ledger_sum() == 0
    return inference


# -- in the background ---------------------------------------------------------------------------


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_a_call_in_the_background_is_polled_to_its_result(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    mine: Ours,
    dialect: str,
    stream: bool,
) -> None:
    word = upstream.will(Say(texts=WORDS, in_lockstep=True, first_waits=True))
    said = in_background(stack, agent.api_key, dialect, word, stream=stream)
    assert said["status"] == "queued"
    eventually(lambda: upstream.asked(word).sent, "the provider asked")
    running = mine.get(said["inference_id"])
    assert (running["status"], running["result"]) == ("running", None)
    for _ in WORDS:
        upstream.asked(word).step()

    done = mine.ended(said["inference_id"])
    assert done["status"] == "succeeded"
    assert done["receipt_id"] == said["receipt_id"]
    body = Answer(200, httpx.Headers(), httpx.Response(200, json=done["result"]).content)
    assert body.text == "".join(WORDS)
    (receipt,) = witness.receipts(said["inference_id"])
    assert done["model_used"] == receipt["model_used"]
    assert float(done["cost_usd"]) == float(receipt["cost_usd"])
    assert done["finished_at"] >= done["created_at"]
    charged_once(witness, said["inference_id"], agent.agent_id)
    assert len(upstream.all_asked(word)) == 1


def test_the_vendors_sdks_ask_in_the_background_with_an_extra_field(
    claude: anthropic.Anthropic, gpt: openai.OpenAI, mine: Ours
) -> None:
    extra = {"background": True}
    asked = claude.messages.with_raw_response.create(
        model="claude-haiku-4-5", max_tokens=9, messages=asking("Hi."), extra_body=extra
    )
    asked_too = gpt.chat.completions.with_raw_response.create(
        model="gpt-5-mini", messages=asking("Hi."), extra_body=extra
    )
    for response in (asked, asked_too):
        assert response.status_code == 202
        done = mine.ended(response.headers["x-ainfera-inference-id"])
        assert done["status"] == "succeeded"
    message = anthropic.types.Message.model_validate(
        mine.get(asked.headers["x-ainfera-inference-id"])["result"]
    )
    assert message.stop_reason == "end_turn"
    completion = openai.types.chat.ChatCompletion.model_validate(
        mine.get(asked_too.headers["x-ainfera-inference-id"])["result"]
    )
    assert completion.choices[0].message.content == "Hello there."


def test_what_fails_in_the_background_says_why(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, mine: Ours
) -> None:
    broken = Say(status=400, error="I cannot read this.", error_type="invalid_request_error")
    said = in_background(
        stack, agent.api_key, "native", upstream.will(broken), model="claude-haiku-4-5"
    )
    failed = mine.ended(said["inference_id"])
    assert (failed["status"], failed["result"]) == ("failed", None)
    assert failed["error"]["status"] == 400
    assert "I cannot read this." in failed["error"]["message"]


def test_who_does_not_wait_for_the_202_loses_nothing(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    word = upstream.will(Say(texts=WORDS, in_lockstep=True, first_waits=True))
    request = begin("native", "ainfera-inference", word, False)
    request["json"]["background"] = True
    with sent(stack, agent.api_key, request):
        eventually(lambda: upstream.asked(word).sent, "the provider asked")
    for _ in WORDS:
        upstream.asked(word).step()
    query = "SELECT inference_id FROM kept_calls WHERE agent_id = $1::uuid"
    (row,) = witness.rows(query, agent.agent_id)
    assert mine.ended(row["inference_id"])["status"] == "succeeded"


# -- with a key ----------------------------------------------------------------------------------


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_the_same_again_is_the_same_answer(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
) -> None:
    word, headers = upstream.will(Say(texts=WORDS)), key()
    first, again = (
        call(stack, agent.api_key, dialect, word, stream=stream, headers=headers) for _ in range(2)
    )
    assert first.status == again.status == 200
    assert first.text == "".join(WORDS)
    assert again.content == first.content
    assert first.headers.get("idempotent-replayed") is None
    assert again.headers["idempotent-replayed"] == "true"
    for name in (
        *("x-ainfera-inference-id", "x-ainfera-receipt-id", "x-ainfera-agent-id"),
        *("x-ainfera-model", "x-ainfera-audit-url", "content-type"),
    ):
        assert again.headers[name] == first.headers[name]
    assert len(upstream.all_asked(word)) == 1
    charged_once(witness, first.inference_id, agent.agent_id)


@STREAMED_OR_NOT
def test_fifty_at_once_are_one_inference(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, stream: bool
) -> None:
    word, headers = upstream.will(Say(texts=WORDS, gap_s=0.3)), key()

    def one(_: int) -> Answer:
        return call(stack, agent.api_key, "openai", word, stream=stream, headers=headers)

    with ThreadPoolExecutor(50) as crowd:
        answers = list(crowd.map(one, range(50)))

    assert {answer.status for answer in answers} == {200}
    assert {answer.text for answer in answers} == {"".join(WORDS)}
    (inference_id,) = {answer.inference_id for answer in answers}
    assert len([a for a in answers if "idempotent-replayed" not in a.headers]) == 1
    assert len(upstream.all_asked(word)) == 1
    charged_once(witness, inference_id, agent.agent_id)
    mine = "SELECT count(*) FROM inferences WHERE agent_id = $1::uuid"
    assert witness.value(mine, agent.agent_id) == 1


def test_another_request_with_the_key_is_a_conflict(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, signup: Signup
) -> None:
    word, headers = upstream.will(Say()), key()
    assert call(stack, agent.api_key, "native", word, headers=headers).status == 200
    for dialect in PATHS:
        other = call(stack, agent.api_key, dialect, f"{word} other", headers=headers)
        expected = (409, "idempotency_conflict") if dialect == "native" else (200, None)
        assert (other.status, other.error_code) == expected
        assert other.headers.get("x-should-retry") == ("false" if other.status == 409 else None)
    # the key is the tenant's: somebody else's same key is another one
    assert (
        call(stack, signup("other").api_key, "native", f"{word} x", headers=headers).status == 200
    )
    assert len(upstream.all_asked(word)) == 4


def test_the_same_key_for_another_agent_is_a_conflict(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    auth = {"authorization": f"Bearer {agent.api_key}"}
    body = {"tenant_id": agent.tenant_id, "name": "second"}
    second = stack.request("POST", "/v1/agents/register", headers=auth, json=body)
    assert second.status_code == 200, second.text
    word, headers = upstream.will(Say()), key()
    assert call(stack, agent.api_key, "native", word, headers=headers).status == 200
    chosen = {**headers, "x-ainfera-agent-id": second.json()["id"]}
    assert call(stack, agent.api_key, "native", word, headers=chosen).status == 409


@pytest.mark.parametrize("bad", ["", "x" * 256, "tab\there", "caf\xe9"])
def test_a_key_that_is_none_is_refused(stack: Stack, agent: ainfera.SignupResult, bad: str) -> None:
    headers = {"idempotency-key": bad.encode("latin-1")}
    answer = call(stack, agent.api_key, "native", "Hi.", headers=headers)  # type: ignore[arg-type]
    assert (answer.status, answer.error_code) == (400, "invalid_request")
    assert "Idempotency-Key" in answer.body["message"]


def test_what_was_never_accepted_keeps_no_key(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    word, headers = upstream.will(Say()), key()
    assert call(stack, "wrong", "native", word, headers=headers).status == 401
    wrong = call(stack, agent.api_key, "native", word, headers=headers, temperature="hot")
    assert wrong.status == 400
    kept = "SELECT count(*) FROM kept_calls WHERE agent_id = $1::uuid"
    assert witness.value(kept, agent.agent_id) == 0
    assert call(stack, agent.api_key, "native", word, headers=headers).status == 200


def test_a_failure_of_the_provider_is_the_answer_to_the_same_again(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    """It was asked, and may have been paid: a new attempt needs a new key."""
    broken = Say(status=500, error="It broke.", headers=(("retry-after", "0"),))
    word, headers = upstream.will(broken), key()
    first, again = (
        call(stack, agent.api_key, "native", word, model="gpt-5-mini", headers=headers)
        for _ in range(2)
    )
    assert (first.status, again.status) == (502, 502)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert len(upstream.all_asked(word)) == 2  # as one call asks


def test_a_refusal_is_the_answer_to_the_same_again(
    stack: Stack, agent: ainfera.SignupResult, mine: Ours
) -> None:
    headers = key()
    first, again = (
        call(
            stack, agent.api_key, "native", "Hi.", headers=headers,
            routing_hint={"min_quality": 0.99},
        )
        for _ in range(2)
    )  # fmt: skip
    assert (first.status, first.error_code) == (422, "no_candidate_clears_floor")
    assert again.content == first.content
    assert mine.get(first.inference_id)["status"] == "failed"


@STREAMED_OR_NOT
def test_a_client_that_lost_its_connection_comes_back_for_its_answer(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, stream: bool
) -> None:
    word, headers = upstream.will(Say(texts=WORDS, in_lockstep=True, first_waits=True)), key()
    body = {"model": "ainfera-inference", "max_tokens": 64, "messages": asking(word)}
    lost = {"url": PATHS["native"], "json": {**body, "stream": stream}, "headers": headers}
    left = clients_left(stack)
    with sent(stack, agent.api_key, lost):
        eventually(lambda: upstream.asked(word).sent, "the provider asked")
    eventually(lambda: clients_left(stack) > left, "the ingress having seen that the client left")

    with ThreadPoolExecutor(1) as one:
        again = one.submit(
            call, stack, agent.api_key, "native", word, stream=stream, headers=headers
        )
        for _ in WORDS:
            upstream.asked(word).step()
        answer = again.result()
    assert answer.text == "".join(WORDS)
    assert answer.headers["idempotent-replayed"] == "true"
    assert len(upstream.all_asked(word)) == 1
    charged_once(witness, answer.inference_id, agent.agent_id)


@pytest.mark.parametrize("words", [0, 2])
def test_joined_streams_hear_all_of_it(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, words: int
) -> None:
    """Joined before the first word, or in the middle: the very same bytes."""
    word, headers = upstream.will(Say(texts=WORDS, in_lockstep=True, first_waits=True)), key()

    def one() -> Answer:
        return call(stack, agent.api_key, "anthropic", word, stream=True, headers=headers)

    with ThreadPoolExecutor(2) as both:
        first = both.submit(one)
        asked = eventually(lambda: upstream.all_asked(word), "the provider asked")[0]
        for _ in range(words):
            asked.step()
        eventually(lambda: len(asked.sent_texts) >= words, "the words so far")
        second = both.submit(one)
        for _ in range(len(WORDS) - words):
            asked.step()
        answers = [first.result(), second.result()]
    assert answers[0].text == "".join(WORDS)
    assert answers[0].content.replace(b": ping\n\n", b"") == answers[1].content
    assert len(upstream.all_asked(word)) == 1
    charged_once(witness, answers[0].inference_id, agent.agent_id)


def clients_left(stack: Stack) -> float:
    """How many calls the ingress counts whose clients had left before the answer began."""
    headers = {"x-ainfera-internal-key": stack.internal_key}
    text = stack.request("GET", "/metrics", headers=headers).text
    lines = [line for line in text.splitlines() if line.startswith("ainfera_http_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'status="499"' in line)


# -- cancelling ----------------------------------------------------------------------------------


def test_a_running_call_is_cancelled_and_pays_for_what_it_used(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    word = upstream.will(ENDLESS)
    said = in_background(stack, agent.api_key, "native", word, model="gpt-5-mini")
    eventually(lambda: upstream.asked(word).sent_texts, "the provider speaking")

    cancelled = mine.cancel(said["inference_id"])
    assert cancelled.status_code in (200, 202)
    let_go(upstream, word)
    done = mine.ended(said["inference_id"])
    assert done["status"] == "cancelled"
    assert done["error"]["code"] == "cancelled"
    assert charged_once(witness, said["inference_id"], agent.agent_id)["settled_usd"] > 0
    again = mine.cancel(said["inference_id"])
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    charged_once(witness, said["inference_id"], agent.agent_id)


@STREAMED_OR_NOT
def test_an_interactive_call_is_cancelled_from_outside(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    mine: Ours,
    stream: bool,
) -> None:
    """Its client, which still waits, is told."""
    word = upstream.will(ENDLESS)
    with ThreadPoolExecutor(1) as one:
        waiting = one.submit(
            call, stack, agent.api_key, "native", word, model="gpt-5-mini", stream=stream
        )
        asked = eventually(lambda: upstream.all_asked(word), "the provider asked")[0]
        eventually(lambda: asked.sent_texts, "the provider speaking")
        query = "SELECT id FROM inferences WHERE agent_id = $1::uuid"
        inference_id = witness.rows(query, agent.agent_id)[0]["id"]
        assert mine.get(inference_id)["status"] == "running"
        assert mine.cancel(inference_id).status_code in (200, 202)
        answer = waiting.result()
    assert answer.error_code == "cancelled"
    assert answer.status == (200 if stream else 410)
    done = mine.ended(inference_id)
    assert (done["status"], done["result"]) == ("cancelled", None)
    assert done["result_reason"]
    again = mine.cancel(inference_id)
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")


def test_a_finished_call_stays_what_it_was(
    stack: Stack, agent: ainfera.SignupResult, mine: Ours
) -> None:
    for model in ("ainfera-inference", "gpt-5-mini"):
        answer = call(stack, agent.api_key, "native", "Hi.", model=model)
        cancelled = mine.cancel(answer.inference_id)
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "succeeded")
        done = mine.get(answer.inference_id)
        assert (done["status"], done["result"]) == ("succeeded", None)
        assert "Idempotency-Key" in done["result_reason"]
        assert done["receipt_id"] == answer.headers["x-ainfera-receipt-id"]


# -- whose they are ------------------------------------------------------------------------------


def test_another_tenants_call_is_as_unknown_as_a_made_up_one(
    stack: Stack, agent: ainfera.SignupResult, signup: Signup, upstream: Upstream, mine: Ours
) -> None:
    word = upstream.will(ENDLESS)
    said = in_background(stack, agent.api_key, "native", word)
    other = {"authorization": f"Bearer {signup('intruder').api_key}"}
    for method, path in (("GET", ""), ("POST", "/cancel")):
        answers = [
            stack.request(method, f"/v1/inferences/{some_id}{path}", headers=other)
            for some_id in (said["inference_id"], str(uuid4()), "no-id")
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 404]
        assert len({answer.content for answer in answers}) == 1
    eventually(lambda: upstream.asked(word).sent, "the provider asked")
    assert not upstream.asked(word).hung_up
    mine.cancel(said["inference_id"])


def test_what_is_kept_is_sealed(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness, mine: Ours
) -> None:
    secret = f"Xylophon{uuid4().hex}"
    word = upstream.will(Say(texts=("You said ", secret), in_lockstep=True, first_waits=True))
    said = in_background(stack, agent.api_key, "native", f"{word} {secret}")
    keyed = call(stack, agent.api_key, "native", f"Hi {secret}", headers=key(), stream=True)
    eventually(lambda: upstream.asked(word).sent, "the provider asked")
    assert witness.tables_with(secret) == []
    upstream.asked(word).step()
    upstream.asked(word).step()
    assert secret in str(mine.ended(said["inference_id"])["result"])
    assert keyed.status == 200
    assert witness.tables_with(secret) == []
    eventually(lambda: not witness.keys_with(secret), "no key that holds the prompt")
    assert secret not in stack.log_text()
    query = "SELECT envelope FROM kept_calls WHERE agent_id = $1::uuid"
    assert [row["envelope"] for row in witness.rows(query, agent.agent_id)] == [None, None]


def test_a_background_call_sent_twice_is_one_call(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, mine: Ours
) -> None:
    word, headers = upstream.will(Say(texts=WORDS)), key()
    first = in_background(stack, agent.api_key, "native", word, headers=headers)
    assert mine.ended(first["inference_id"])["status"] == "succeeded"
    again = in_background(stack, agent.api_key, "native", word, headers=headers)
    assert again == {**first, "status": "succeeded"}
    assert len(upstream.all_asked(word)) == 1
