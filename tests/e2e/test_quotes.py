"""A quote says what a call does, and the call that names it gets the very choice and prices."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID

import ainfera
import httpx
import orjson
import pytest

from shared.control import CATALOG, CONTROL_CHANNEL
from shared.receipt_verifier import check, read_keys
from tests.e2e.calls import EVERY_DIALECT, Answer, call
from tests.e2e.conftest import EU_ONLY, Signup
from tests.e2e.stack import Stack
from tests.e2e.test_books import check_replay, get
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually

ONLY_MINI: Any = {"routing_hint": {"allow": ["gpt-5-mini"]}}
Reprice = Callable[[str, str], None]


def ask(
    stack: Stack, api_key: str, prompt: str, dialect: str = "native", **fields: Any
) -> httpx.Response:
    """A quote of the call that `tests.e2e.calls.call` makes of the same words."""
    body = {
        "model": "ainfera-inference",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": prompt}],
        "stream": False,
        **fields,
    }
    path = f"/v1/quote?dialect={dialect}"
    return stack.request("POST", path, json=body, headers={"authorization": f"Bearer {api_key}"})


def held(stack: Stack, api_key: str, prompt: str, **fields: Any) -> dict[str, Any]:
    answer = ask(stack, api_key, prompt, hold_for_s=60, **fields)
    assert answer.status_code == 200, answer.text
    quote: dict[str, Any] = answer.json()
    return quote


def ranked(decision: dict[str, Any]) -> list[str]:
    """The models that could be asked, in the rule's order."""
    places = {each["rank"]: each["model_slug"] for each in decision["candidates"]}
    places.pop(None, None)
    return [places[place] for place in sorted(places)]


def by_quote(quote: dict[str, Any]) -> dict[str, str]:
    return {"x-ainfera-quote": quote["quote_id"]}


@pytest.fixture
def reprice(stack: Stack, witness: Witness) -> Iterator[Reprice]:
    """Make a model dearer, as a catalogue that is applied does; afterwards all is as it was."""
    before = witness.rows("SELECT slug, price_in, price_out FROM models")

    def told(slug: str, price: Decimal) -> bool:
        listed = stack.request("GET", "/v1/models").json()
        (found,) = [each for each in listed if each["slug"] == slug]
        return Decimal(found["output_cost_per_million_usd"]) == price

    def change(slug: str, price_in: Decimal, price_out: Decimal) -> None:
        witness.rows(
            "UPDATE models SET price_in = $2, price_out = $3 WHERE slug = $1",
            slug,
            price_in,
            price_out,
        )
        witness.redis.publish(CONTROL_CHANNEL, orjson.dumps({"type": CATALOG}))
        eventually(lambda: told(slug, price_out), f"the new price of {slug}")

    yield lambda slug, price: change(slug, Decimal(price), Decimal(price))
    for row in before:
        if row["slug"] in ("gpt-5-mini", "gpt-5-nano"):
            change(row["slug"], row["price_in"], row["price_out"])


@EVERY_DIALECT
@pytest.mark.parametrize("model", ["ainfera-inference", "gpt-5-mini"])
def test_a_quote_says_what_the_call_does_and_asks_nobody(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    model: str,
) -> None:
    word = upstream.will(Say(input_tokens=100, output_tokens=20))
    quote = ask(stack, agent.api_key, word, dialect, model=model).json()
    assert upstream.all_asked(word) == []
    assert (quote["quote_id"], quote["expires_at"]) == (None, None)

    answer = call(stack, agent.api_key, dialect, word, model=model)
    inference = witness.inference(answer.inference_id)
    routed = witness.events(answer.inference_id)[0]
    assert (routed["model"], routed["provider"]) == (quote["model"], quote["provider"])
    assert Decimal(routed["cost_projected"]) == Decimal(quote["projected_cost_usd"])
    assert inference["hold_usd"] == Decimal(quote["held_usd"])
    assert answer.headers["x-ainfera-router"] == quote["router"]
    assert answer.headers["x-ainfera-model"] == quote["model_used"]
    if model == "gpt-5-mini":
        assert (quote["decision"], quote["router"]) == (None, "direct")
        return
    receipt = get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision").json()
    differs = {"inference_id", "seed", "inputs", "cost_actual", "observed_latency_ms", "ttft_ms"}
    differs |= {"outcome_status", "audit_event", "audit_proof", "signature"}
    assert quote["decision"].keys() == receipt.keys()
    for name in receipt.keys() - differs:
        assert quote["decision"][name] == receipt[name], name
    chain = [each["model"] for each in quote["fallbacks"]]
    assert [quote["model"], *chain] == ranked(quote["decision"])[: len(chain) + 1]
    check_replay(quote["decision"])
    keys = read_keys(stack.request("GET", "/.well-known/jwks.json").json())
    told = {each.name: each.proved for each in check(quote["decision"], keys)}
    assert (told.pop("event"), told.pop("log")) == (None, None)  # nothing has happened yet
    assert set(told.values()) == {True}


def test_a_held_quote_keeps_its_choice_and_its_prices(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    reprice: Reprice,
) -> None:
    """The quoted model becomes a thousand times dearer: who has the quote does not notice."""
    word = upstream.will(Say(input_tokens=1000, output_tokens=500))
    quote = held(stack, agent.api_key, word)
    old = witness.rows("SELECT price_in, price_out FROM models WHERE slug = $1", quote["model"])[0]
    reprice(quote["model"], "4000")

    def elsewhere() -> Answer | None:
        answer = call(stack, agent.api_key, "native", word)
        return answer if answer.headers["x-ainfera-model"] != quote["model_used"] else None

    other = eventually(elsewhere, "a worker that knows the price")
    assert other is not None
    answer = call(stack, agent.api_key, "native", word, headers=by_quote(quote))
    assert answer.headers["x-ainfera-model"] == quote["model_used"]
    assert Decimal(answer.body["cost_usd"]) == (
        (1000 * old["price_in"] + 500 * old["price_out"]) / 1_000_000
    )
    events = witness.events(answer.inference_id)
    assert Decimal(events[0]["hold_usd"]) == Decimal(quote["held_usd"])

    told = get(stack, agent.api_key, f"/v1/receipts/{answer.body['receipt_id']}").json()
    assert told["quote_id"] == quote["quote_id"]
    decision = get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision").json()
    assert decision["quote_id"] == decision["seed"] == quote["quote_id"]
    assert decision["candidates"] == quote["decision"]["candidates"]
    check_replay(decision)
    assert {e.get("quote_id") for e in events if e["event_type"] != "provider.responded"} == {
        quote["quote_id"]
    }
    unquoted = get(stack, agent.api_key, f"/v1/receipts/{other.body['receipt_id']}").json()
    assert unquoted["quote_id"] is None


def test_no_answer_costs_more_than_the_maximum(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    """A request without a limit is answered with as much as the model says: its hold grows."""
    asking: Any = {"model": "gpt-5-mini", "max_tokens": None}
    word = upstream.will(Say(texts=("word " * 5000,), input_tokens=100, output_tokens=5000))
    quote = ask(stack, agent.api_key, word, **asking).json()
    answer = call(stack, agent.api_key, "native", word, **asking)
    cost = Decimal(answer.body["cost_usd"])
    assert Decimal(quote["held_usd"]) < cost < Decimal(quote["maximum_cost_usd"])


def test_a_quote_is_for_what_the_headers_said(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    """A brand for public data is not sent other data because a quote for public data names it."""
    said = {"x-ainfera-data-class": "public", "x-ainfera-region": "eu"}
    asking: Any = {"routing_hint": {"allow": [EU_ONLY]}}
    word = upstream.will(Say())
    body = {"model": "ainfera-inference", "max_tokens": 64, "stream": False, **asking}
    body |= {"messages": [{"role": "user", "content": word}], "hold_for_s": 60}
    key = {"authorization": f"Bearer {agent.api_key}"}
    quote = stack.request("POST", "/v1/quote", json=body, headers=key | said).json()
    assert quote["model"] == EU_ONLY
    for changed in (
        {"x-ainfera-data-class": "restricted"},
        {"x-ainfera-region": "us"},
        {"x-ainfera-priority": "quality"},
    ):
        headers = {**said, **changed, **by_quote(quote)}
        other = call(stack, agent.api_key, "native", word, headers=headers, **asking)
        assert (other.status, other.error_code) == (409, "quote_mismatch")
    assert upstream.all_asked(word) == []
    same = call(stack, agent.api_key, "native", word, headers=said | by_quote(quote), **asking)
    assert same.status == 200


def test_a_withdrawn_quote_says_so_in_its_receipt(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    word = upstream.will(Say())
    quote = held(stack, agent.api_key, word, **ONLY_MINI)
    verdict = "UPDATE models SET verdict = $2 WHERE slug = $1"
    told = orjson.dumps({"type": CATALOG})

    def everywhere(status: int) -> bool:
        """Whether the ingress and a worker have heard of it."""
        asked = ask(stack, agent.api_key, word, **ONLY_MINI)
        called = call(stack, agent.api_key, "native", word, **ONLY_MINI)
        return (asked.status_code, called.status) == (status, status)

    witness.rows(verdict, quote["model"], "VETO")
    try:
        witness.redis.publish(CONTROL_CHANNEL, told)
        eventually(lambda: everywhere(422), "the veto")
        answer = call(stack, agent.api_key, "native", word, headers=by_quote(quote), **ONLY_MINI)
    finally:
        witness.rows(verdict, quote["model"], "PASS")
        witness.redis.publish(CONTROL_CHANNEL, told)
        eventually(lambda: everywhere(200), "the model back")
    assert (answer.status, answer.error_code) == (422, "model_unavailable")
    (capture,) = witness.captures(answer.inference_id)
    assert capture["outcome_status"] == "rejected_not_enrolled"
    decision = get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision").json()
    assert (decision["decision_rule"], decision["chosen_model_slug"]) == (
        "no_candidate_enrolled",
        None,
    )
    assert decision["quote_id"] == decision["seed"] == quote["quote_id"]
    (mini,) = [c for c in decision["candidates"] if c["model_slug"] == quote["model"]]
    assert mini["drop_reason"] == "m_allowed_veto"
    check_replay(decision)


def test_a_pinned_quote_keeps_its_prices(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, reprice: Reprice
) -> None:
    word = upstream.will(Say(input_tokens=1000, output_tokens=500))
    pinned: Any = {"model": "gpt-5-mini"}
    quote = held(stack, agent.api_key, word, **pinned)
    before = call(stack, agent.api_key, "native", word, **pinned)
    reprice("gpt-5-mini", "50")

    def dearer() -> bool:
        answer = call(stack, agent.api_key, "native", word, **pinned)
        return Decimal(answer.body["cost_usd"]) > 10 * Decimal(before.body["cost_usd"])

    eventually(dearer, "a worker that knows the price")
    hint: Any = {"routing_hint": {"quote_id": quote["quote_id"]}}
    answer = call(stack, agent.api_key, "native", word, **pinned, **hint)
    assert answer.body["cost_usd"] == before.body["cost_usd"]
    assert answer.headers["x-ainfera-router"] == "direct"


def test_a_quote_is_good_for_one_call_of_its_own_request(
    stack: Stack,
    signup: Signup,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
) -> None:
    word, stranger = upstream.will(Say()), signup("stranger")
    quote = held(stack, agent.api_key, word)
    naming = by_quote(quote)
    other = call(stack, agent.api_key, "native", f"{word} please", headers=naming)
    in_openai = call(stack, agent.api_key, "openai", word, headers=naming)
    assert (other.status, other.error_code) == (409, "quote_mismatch")
    assert (in_openai.status, in_openai.error_code) == (409, "quote_mismatch")
    theirs = call(stack, stranger.api_key, "native", word, headers=naming)
    nobodys = call(
        stack, agent.api_key, "native", word, headers={"x-ainfera-quote": str(UUID(int=7))}
    )
    assert (theirs.status, theirs.body) == (nobodys.status, nobodys.body)
    assert (theirs.status, theirs.error_code) == (404, "not_found")
    assert upstream.all_asked(word) == []

    used = call(stack, agent.api_key, "native", word, headers=naming)
    again = call(stack, agent.api_key, "native", word, headers=naming)
    assert used.status == 200
    assert (again.status, again.error_code) == (409, "quote_used")
    assert again.headers["x-should-retry"] == "false"
    assert len(upstream.all_asked(word)) == 1

    late = held(stack, agent.api_key, word)
    witness.rows("UPDATE quotes SET expires_at = now() WHERE id = $1::uuid", late["quote_id"])
    expired = call(stack, agent.api_key, "native", word, headers=by_quote(late))
    assert (expired.status, expired.error_code) == (410, "quote_expired")


def test_a_call_that_was_refused_has_not_used_its_quote(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    """A quote holds no money: there may be too little, and later enough."""
    word = upstream.will(Say())
    dear: Any = {"model": "claude-opus-4-7", "max_tokens": 120_000}
    quote = held(stack, agent.api_key, word, **dear)
    funds = quote["funds"]
    assert not funds["allowed"]
    assert funds["required_usd"] == quote["held_usd"] == quote["maximum_cost_usd"]
    poor = call(stack, agent.api_key, "native", word, headers=by_quote(quote), **dear)
    assert poor.status == funds["refusal"]["status"] == 402
    assert poor.body["message"] == funds["refusal"]["message"]
    assert funds["refusal"]["detail"].items() <= poor.body.items()
    topup = {"agent_id": agent.agent_id, "amount_usd": "20"}
    key = {"authorization": f"Bearer {agent.api_key}"}
    stack.request("POST", "/v1/wallets/topup", json=topup, headers=key).raise_for_status()
    rich = call(stack, agent.api_key, "native", word, headers=by_quote(quote), **dear)
    assert rich.status == 200


def test_an_idempotent_repeat_is_no_second_use(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    word = upstream.will(Say())
    quote = held(stack, agent.api_key, word)
    headers = {**by_quote(quote), "idempotency-key": word}
    first = call(stack, agent.api_key, "native", word, headers=headers)
    witness.rows("UPDATE quotes SET expires_at = now() WHERE id = $1::uuid", quote["quote_id"])
    second = call(stack, agent.api_key, "native", word, headers=headers)
    assert (first.status, second.status) == (200, 200)
    assert (second.inference_id, second.body) == (first.inference_id, first.body)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(upstream.all_asked(word)) == 1


def test_many_at_once_with_one_key_and_one_quote_are_one_call(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    word = upstream.will(Say())
    quote = held(stack, agent.api_key, word)
    headers = {**by_quote(quote), "idempotency-key": word}
    with ThreadPoolExecutor(8) as pool:
        told = [
            pool.submit(call, stack, agent.api_key, "native", word, headers=headers)
            for _ in range(8)
        ]
        answers = [each.result() for each in told]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.inference_id for answer in answers}) == 1
    assert len(upstream.all_asked(word)) == 1
    unkeyed = call(stack, agent.api_key, "native", word, headers=by_quote(quote))
    assert (unkeyed.status, unkeyed.error_code) == (409, "quote_used")
    witness.rows(
        "UPDATE kept_calls SET accepted_at = accepted_at - interval '25 hours'"
        " WHERE inference_id = $1::uuid",
        answers[0].inference_id,
    )
    later = call(stack, agent.api_key, "native", word, headers=headers)
    assert (later.status, later.error_code) == (409, "quote_used")


def test_a_quote_falls_back_at_the_quoted_prices(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
) -> None:
    word = upstream.will(Say(status=500))
    quote = held(stack, agent.api_key, word)
    answer = call(stack, agent.api_key, "native", word, headers=by_quote(quote))
    assert answer.status == 502
    (capture,) = witness.captures(answer.inference_id)
    assert capture["outcome_status"] == "failed_provider"
    asked = [each["model"] for each in capture["fallback_chain"]]
    quoted = [quote["model"], *[each["model"] for each in quote["fallbacks"]]]
    assert asked == quoted[: len(asked)]
