"""What a client says stays between it and the provider, and a tenant's things with the tenant."""

import json
from typing import Any
from uuid import uuid4

import ainfera
import httpx
import orjson
import pytest

from shared.embedded import Servers
from tests.e2e.calls import EVERY_DIALECT, PATHS, Answer, call
from tests.e2e.conftest import Signup
from tests.e2e.stack import Stack
from tests.e2e.test_leaving import ENDLESS, begin, let_go, sent
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually


def confide(
    stack: Stack, api_key: str, dialect: str, secret: str, word: str, more: dict[str, Any]
) -> Answer:
    """A call with the secret in every place where a prompt can stand."""
    tool: dict[str, Any] = {"type": "object", "properties": {secret: {"type": "string"}}}
    history = [
        {"role": "user", "content": f"My secret is {secret}."},
        {"role": "assistant", "content": f"I keep {secret}."},
        {"role": "user", "content": f"Say {word} and {secret}."},
    ]
    fields: dict[str, Any] = {"messages": history, "metadata": {"user_id": secret}}
    if dialect == "openai":
        history.insert(0, {"role": "system", "content": secret})
        function = {"name": "keep", "description": secret, "parameters": tool}
        fields["tools"] = [{"type": "function", "function": function}]
    else:
        fields["system"] = secret
        fields["tools"] = [{"name": "keep", "description": secret, "input_schema": tool}]
    return call(stack, api_key, dialect, "", **{**fields, **more})


@EVERY_DIALECT
def test_a_prompt_is_nowhere_once_its_call_has_ended(
    stack: Stack,
    servers: Servers,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
) -> None:
    """However the call ends: neither in a log, nor under a key of Valkey, nor in a table."""
    secret = f"Xylophon{uuid4().hex}"
    said = Say(texts=("You said ", secret))
    endings: dict[str, dict[str, Any]] = {
        upstream.will(said): {"stream": True},
        upstream.will(said): {"stream": False, "model": "claude-haiku-4-5"},
        upstream.will(Say.tool_calls(("keep", json.dumps({secret: secret})))): {},
        upstream.will(Say(texts=(secret, secret), usage=False)): {"stream": True},
        upstream.will(Say(texts=(secret, secret), broken_after=1)): {"stream": True},
        upstream.will(Say(texts=(secret,), broken_after=1, error=f"Bad {secret}")): {},
        upstream.will(Say(status=500, error=f"It broke on {secret}.")): {},
        upstream.will(Say(status=401, error=f"Your api key met {secret}.")): {},
        upstream.will(Say(status=400, error=f"I cannot read {secret}.")): {"model": "gpt-5-mini"},
    }
    for word, more in endings.items():
        confide(stack, agent.api_key, dialect, secret, word, more)
        assert secret in str(upstream.asked(word).body)
    refusals: list[dict[str, Any]] = [
        {"model": "no-such-model"},
        {"model": "claude-opus-4-7", "max_tokens": 120_000},
        {"routing_hint": {"min_quality": 0.99}},
        {"temperature": secret},
        {"messages": [{"role": secret, "content": secret}]},
        {"agent_id": secret},
        {"routing_hint": {"task_type": secret}},
    ]
    for more in refusals:
        confide(stack, agent.api_key, dialect, secret, "nothing", more)
    headers = {"authorization": f"Bearer {agent.api_key}"}
    broken = b'{"model": "ainfera-inference", "messages": ["' + secret.encode()
    cut_off = stack.request("POST", PATHS[dialect], content=broken, headers=headers)
    assert cut_off.status_code == 400
    left = upstream.will(ENDLESS)
    with sent(stack, agent.api_key, begin(dialect, "gpt-5-mini", f"{left} {secret}", True)):
        eventually(lambda: upstream.asked(left).sent_texts, "the provider speaking")
    let_go(upstream, left)

    open_calls = "SELECT id FROM inferences WHERE agent_id = $1::uuid AND state = 'held'"
    eventually(lambda: not witness.rows(open_calls, agent.agent_id), "the end of every call")
    eventually(lambda: not witness.keys_with(secret), "no key that holds the prompt")
    assert witness.tables_with(secret) == []
    assert secret not in stack.log_text()
    for log in (servers.home / "logs").glob("*.log"):
        assert secret not in log.read_text(errors="replace"), log.name


def test_these_searches_find_what_is_there(
    stack: Stack, agent: ainfera.SignupResult, witness: Witness
) -> None:
    """The test above means something only if a search can find anything at all."""
    assert "public.audit_events" in witness.tables_with(agent.agent_id)
    witness.redis.set("ainfera:payload:made-up", f"hidden {agent.agent_id}")
    assert witness.keys_with(agent.agent_id) == [b"ainfera:payload:made-up"]
    witness.redis.delete("ainfera:payload:made-up")
    inference_id = call(stack, agent.api_key, "native", "Hi.", model="ainfera-auto").inference_id
    assert inference_id
    assert "router_alias_hit" in stack.log_text()


def test_no_key_is_in_a_log(stack: Stack, agent: ainfera.SignupResult) -> None:
    call(stack, agent.api_key, "anthropic", "Hi.")
    call(stack, f"{agent.api_key}x", "anthropic", "Hi.")
    text = stack.log_text()
    assert agent.api_key not in text
    assert "sk-ant-standin" not in text
    assert stack.internal_key not in text


def test_every_log_line_is_one_json_object(stack: Stack, agent: ainfera.SignupResult) -> None:
    """All processes, whoever speaks: uvicorn, arq and SQLAlchemy too."""
    call(stack, agent.api_key, "anthropic", "Hi.")
    lines = [line for line in stack.log_text().splitlines() if line]
    assert lines
    for line in lines:
        assert isinstance(orjson.loads(line), dict), line


# -- tenants -------------------------------------------------------------------------------------

PATHS_OF_AN_AGENT = [
    ("GET", "/v1/agents/{}", None),
    ("GET", "/v1/agents/{}/card", None),
    ("POST", "/v1/agents/{}/card", None),
    ("PATCH", "/v1/agents/{}/spend-policy", {"daily_cap_usd": "1"}),
    ("GET", "/v1/wallets/{}", None),
    ("GET", "/v1/ledger/{}", None),
    ("GET", "/v1/audit/{}", None),
    ("POST", "/v1/wallets/topup", {"agent_id": "{}", "amount_usd": "1"}),
    ("POST", "/v1/agents/register", {"tenant_id": "{}", "name": "mine"}),
    ("POST", "/v1/inference", {"agent_id": "{}", "model": "gpt-5-mini", "messages": "HELLO"}),
    ("POST", "/v1/messages", {"agent_id": "{}", "model": "gpt-5-mini", "messages": "HELLO"}),
    ("GET", "/v1/inferences/{}", None),
    ("POST", "/v1/inferences/{}/cancel", None),
    ("GET", "/v1/inferences/{}/decision", None),
    ("GET", "/v1/inferences/{}/events", None),
    ("GET", "/v1/receipts/{}", None),
]


def ask_about(
    stack: Stack, api_key: str, method: str, path: str, body: Any, some_id: str
) -> httpx.Response:
    said = json.dumps(body).replace("{}", some_id)
    said = said.replace('"HELLO"', json.dumps([{"role": "user", "content": "Hi."}]))
    return stack.request(
        method,
        path.replace("{}", some_id),
        content=said if body is not None else None,
        headers={"authorization": f"Bearer {api_key}", "content-type": "application/json"},
    )


@pytest.mark.parametrize(("method", "path", "body"), PATHS_OF_AN_AGENT)
def test_another_tenants_id_is_as_unknown_as_a_made_up_one(
    stack: Stack, signup: Signup, method: str, path: str, body: Any
) -> None:
    """The very same answer, byte for byte, so that ids cannot be probed."""
    victim, intruder = signup("victim"), signup("intruder")
    answer = call(stack, victim.api_key, "native", "Hi.")
    theirs = {
        "/v1/agents/register": victim.tenant_id,
        "/v1/inferences/{}": answer.inference_id,
        "/v1/inferences/{}/cancel": answer.inference_id,
        "/v1/inferences/{}/decision": answer.inference_id,
        "/v1/inferences/{}/events": answer.inference_id,
        "/v1/receipts/{}": answer.headers["x-ainfera-receipt-id"],
    }.get(path, victim.agent_id)

    own = ask_about(stack, victim.api_key, method, path, body, theirs)
    assert own.status_code == 200, own.text
    probes = [
        ask_about(stack, intruder.api_key, method, path, body, some_id)
        for some_id in (theirs, str(uuid4()), "no-id-at-all")
    ]
    assert [probe.status_code for probe in probes] == [404, 404, 404]
    assert len({probe.content for probe in probes}) == 1
    assert theirs not in probes[0].text


@EVERY_DIALECT
def test_nobody_spends_from_anothers_wallet(
    stack: Stack, signup: Signup, upstream: Upstream, witness: Witness, dialect: str
) -> None:
    victim, intruder = signup("victim"), signup("intruder")
    word = upstream.will(Say())
    headers = {"X-Ainfera-Agent-Id": victim.agent_id}
    answer = call(stack, intruder.api_key, dialect, word, headers=headers)
    assert (answer.status, answer.error_code) == (404, "not_found")
    assert upstream.all_asked(word) == []
    assert witness.wallet(victim.agent_id)["balance"] == 5


def test_the_public_feed_tells_no_ids(stack: Stack, agent: ainfera.SignupResult) -> None:
    answer = call(stack, agent.api_key, "native", "Hi.")
    feed = stack.request("GET", "/v1/audit/public")
    assert feed.status_code == 200
    events = feed.json()["events"]
    assert "receipt.created" in {event["event_type"] for event in events}
    assert set(events[0]) == {
        "seq", "event_type", "owner_handle", "agent_name", "canonical_uri", "event_hash",
        "created_at",
    }  # fmt: skip
    for some_id in (agent.agent_id, agent.tenant_id, answer.inference_id):
        assert some_id not in feed.text
