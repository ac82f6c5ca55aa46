"""The `ainfera` package, as it is published, against a running stack."""

import asyncio
from decimal import Decimal
from uuid import uuid4

import ainfera
import httpx
import pytest
from joserfc import jws
from joserfc.jwk import OKPKey

from tests.e2e.conftest import Signup
from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")

HELLO = [{"role": "user", "content": "Say hello."}]
GRANT = Decimal("5.00")
SIGNED_UP = ["agent.registered", "wallet.topped_up"]


def test_signup_returns_a_working_identity(stack: Stack, signup: Signup) -> None:
    result = signup(
        "weather-bot",
        owner_handle="meteo",
        owner_source="github",
        per_call_cap_usd="1.5",
        daily_cap_usd="20",
        metadata={"team": "forecast"},
    )

    assert result.agent_handle == "weather-bot"
    assert result.owner_handle == "meteo"
    assert result.api_key.startswith("ainfera_")
    assert result.canonical_uri
    assert result.did_web
    assert result.did_web.startswith("did:web:")
    with ainfera.AinferaClient(result.api_key, base_url=stack.url) as client:
        agent = client.agents.retrieve(result.agent_id)
        assert (agent.agent_id, agent.tenant_id) == (result.agent_id, result.tenant_id)
        assert (agent.name, agent.status) == ("weather-bot", "active")
        assert agent.public_key_ed25519
        assert agent.public_key_ed25519.startswith("-----BEGIN PUBLIC KEY-----")
        assert agent.refresh().name == "weather-bot"
        assert agent.wallet.balance_usd == GRANT
        assert agent.audit_chain.verify()
        assert [event.event_type for event in agent.audit_chain.events()] == SIGNED_UP


def test_the_key_is_stored_as_a_hash_only(witness: Witness, agent: ainfera.SignupResult) -> None:
    assert witness.tables_with(agent.api_key) == []
    assert witness.keys_with(agent.api_key) == []


def test_register_adds_an_agent_with_a_wallet_of_its_own(
    stack: Stack, agent: ainfera.SignupResult
) -> None:
    with ainfera.AinferaClient(agent.api_key, base_url=stack.url) as client:
        second = client.agents.register(tenant_id=agent.tenant_id, name="second")

        assert second.agent_id != agent.agent_id
        assert client.agents.retrieve(second.agent_id).name == "second"
        assert second.wallet.balance_usd == 0
        assert second.wallet.topup(Decimal("0.75")).balance_usd == Decimal("0.75")
        answer = second.inference(model="ainfera-inference", messages=HELLO)
        assert answer.content
        assert second.refresh().wallet.balance_usd == Decimal("0.75") - answer.cost_usd


def test_nobody_registers_agents_for_another_tenant(stack: Stack, signup: Signup) -> None:
    mine, theirs = signup("mine"), signup("theirs")
    with (
        ainfera.AinferaClient(mine.api_key, base_url=stack.url) as client,
        pytest.raises(ainfera.APIError) as refused,
    ):
        client.agents.register(tenant_id=theirs.tenant_id, name="intruder")
    assert refused.value.status_code == 404


def test_an_inference_is_answered_charged_and_audited(
    ours: ainfera.Agent, upstream: Upstream, witness: Witness
) -> None:
    word = upstream.will(Say(texts=("Good ", "morning."), input_tokens=40, output_tokens=8))
    before = ours.wallet.balance_usd

    answer = ours.inference(
        model="ainfera-inference", messages=[{"role": "user", "content": word}], max_tokens=64
    )

    assert answer.content == "Good morning."
    assert answer.text == answer.content
    assert (answer.model_used, answer.provider) == ("gpt-5-mini", "openai")
    assert (answer.finish_reason, answer.finish_reason_native) == ("stop", "stop")
    assert (answer.input_tokens, answer.output_tokens) == (40, 8)
    # gpt-5-mini: 0.25 and 2.00 USD per million tokens
    assert answer.cost_usd == (40 * Decimal("0.25") + 8 * Decimal("2.00")) / 1_000_000
    assert ours.refresh().wallet.balance_usd == before - answer.cost_usd
    assert [event["event_type"] for event in witness.events(answer.inference_id)] == [
        "inference.routed",
        "provider.responded",
        "receipt.created",
    ]
    assert witness.receipts(answer.inference_id)[0]["receipt_id"] == answer.receipt_id


def test_tools_survive_the_native_dialect(ours: ainfera.Agent, upstream: Upstream) -> None:
    word = upstream.will(Say.tool_calls(("add", '{"a": 2, "b": 3}'), ("add", '{"a": 4, "b": 5}')))
    adder = {
        "name": "add",
        "description": "Adds two numbers.",
        "input_schema": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        },
    }

    answer = ours.inference(
        model="claude-haiku-4-5", messages=[{"role": "user", "content": word}], tools=[adder]
    )

    assert answer.content == ""
    assert answer.finish_reason == "tool_calls"
    assert answer.content_blocks is not None
    assert [(b["type"], b["name"], b["input"]) for b in answer.content_blocks] == [
        ("tool_use", "add", {"a": 2, "b": 3}),
        ("tool_use", "add", {"a": 4, "b": 5}),
    ]
    assert [tool["name"] for tool in upstream.asked(word).body["tools"]] == ["add"]


def test_the_audit_chain_verifies_here_and_there(ours: ainfera.Agent) -> None:
    ours.inference(model="ainfera-inference", messages=HELLO)
    ours.inference(model="claude-haiku-4-5", messages=HELLO)

    events = list(ours.audit_chain.events())
    assert [event.seq for event in events] == list(range(1, 9))
    assert [event.event_type for event in events] == [
        *SIGNED_UP,
        *["inference.routed", "provider.responded", "receipt.created"] * 2,
    ]
    assert events[0].previous_hash is None
    assert ours.audit_chain.verify()
    remote = ours.audit_chain.verify_remote()
    assert (remote.valid, remote.event_count) == (True, 8)
    assert (remote.failure_seq, remote.failure_reason) == (None, None)


def test_events_are_paged_by_seq(ours: ainfera.Agent) -> None:
    ours.inference(model="ainfera-inference", messages=HELLO)
    assert [event.seq for event in ours.audit_chain.events(limit=2)] == [1, 2]


def test_the_card_is_signed_with_the_published_key(
    stack: Stack, agent: ainfera.SignupResult, ours: ainfera.Agent
) -> None:
    card = ours.get_card()
    assert ours.public_key_ed25519 is not None
    key = OKPKey.import_key(ours.public_key_ed25519)

    for token in (card.jws, agent.agent_card_jws):
        assert token is not None
        verified = jws.deserialize_compact(token, key, algorithms=["EdDSA"])
        assert verified.headers()["alg"] == "EdDSA"
        claims = httpx.Response(200, content=verified.payload).json()
        assert claims["agent_id"] == agent.agent_id
        assert claims["handle"] == "tester"
        assert claims["issued_at"]
    signed = jws.deserialize_compact(card.jws, key, algorithms=["EdDSA"])
    assert httpx.Response(200, content=signed.payload).json() == card.payload
    assert signed.headers()["kid"] == card.kid


def test_anyone_may_have_a_card_verified(stack: Stack, ours: ainfera.Agent) -> None:
    token = ours.get_card().jws
    head, payload, signature = token.split(".")
    forged = f"{head}.{payload}.{signature[:-4]}{'AAAA' if signature[-4:] != 'AAAA' else 'BBBB'}"

    good = stack.request("POST", "/v1/agents/cards/verify", json={"jws": token}).json()
    bad = stack.request("POST", "/v1/agents/cards/verify", json={"jws": forged}).json()

    assert (good["valid"], good["payload"]["agent_id"]) == (True, ours.agent_id)
    assert bad["valid"] is False
    assert bad["reason"]


def test_the_receipt_says_what_was_charged(stack: Stack, agent: ainfera.SignupResult) -> None:
    with ainfera.AinferaClient(agent.api_key, base_url=stack.url) as client:
        answer = client.agents.retrieve(agent.agent_id).inference(
            model="claude-haiku-4-5", messages=HELLO
        )
        receipt = client.receipts.retrieve(answer.receipt_id)
    assert receipt.inference_id == answer.inference_id
    assert receipt.audit_url == f"{stack.url}/v1/audit/{agent.agent_id}/verify"
    assert receipt.cost_usd == pytest.approx(float(answer.cost_usd))
    assert httpx.get(receipt.audit_url).json()["valid"] is True


def test_an_empty_wallet_is_a_402_until_it_is_topped_up(
    ours: ainfera.Agent, witness: Witness
) -> None:
    # 5 USD of grant; a hold for 80,000 output tokens of opus at 75 USD per million is 6 USD
    wish = {"model": "claude-opus-4-7", "messages": HELLO, "max_tokens": 80_000}
    with pytest.raises(ainfera.WalletInsufficient) as refused:
        ours.inference(**wish)  # type: ignore[arg-type]
    assert refused.value.status_code == 402
    assert refused.value.body["code"] == "insufficient_funds"
    assert Decimal(refused.value.body["balance_usd"]) == GRANT

    assert ours.wallet.topup(Decimal("2.00")).balance_usd == Decimal("7.00")
    assert ours.inference(**wish).content  # type: ignore[arg-type]
    assert witness.wallet(ours.agent_id)["held"] == 0
    assert ours.audit_chain.verify()


def test_a_cap_is_a_403_and_comes_before_funds(stack: Stack, signup: Signup) -> None:
    careful = signup("careful", per_call_cap_usd="0.01")
    with ainfera.AinferaClient(careful.api_key, base_url=stack.url) as client:
        agent = client.agents.retrieve(careful.agent_id)
        with pytest.raises(ainfera.SpendPolicyExceeded) as refused:
            agent.inference(model="claude-opus-4-7", messages=HELLO, max_tokens=80_000)
        assert refused.value.status_code == 403
        assert refused.value.body["code"] == "spend_policy_exceeded"
        assert agent.inference(model="claude-haiku-4-5", messages=HELLO, max_tokens=50).content


@pytest.mark.parametrize("model", ["no-such-model", "grok-4"])
def test_a_model_nobody_serves_is_a_422(ours: ainfera.Agent, model: str) -> None:
    with pytest.raises(ainfera.ModelUnavailable) as refused:
        ours.inference(model=model, messages=HELLO)
    assert refused.value.status_code == 422
    assert refused.value.model == model
    assert refused.value.provider == ("xai" if model == "grok-4" else None)
    assert ours.refresh().wallet.balance_usd == GRANT


def test_a_wrong_key_is_a_401(stack: Stack, agent: ainfera.SignupResult) -> None:
    with (
        ainfera.AinferaClient("ainfera_wrong", base_url=stack.url) as client,
        pytest.raises(ainfera.APIError) as refused,
    ):
        client.agents.retrieve(agent.agent_id)
    assert refused.value.status_code == 401
    assert refused.value.body["code"] == "invalid_api_key"


def test_an_unknown_agent_is_a_404(stack: Stack, agent: ainfera.SignupResult) -> None:
    with (
        ainfera.AinferaClient(agent.api_key, base_url=stack.url) as client,
        pytest.raises(ainfera.APIError) as refused,
    ):
        client.agents.retrieve(str(uuid4()))
    assert refused.value.status_code == 404


async def test_the_async_client_does_the_same(stack: Stack) -> None:
    async with ainfera.AsyncAinferaClient(api_key="", base_url=stack.url) as stranger:
        result = await stranger.agents.signup(agent_handle="async-bot")
    async with ainfera.AsyncAinferaClient(result.api_key, base_url=stack.url) as client:
        agent = await client.agents.retrieve(result.agent_id)
        answers = await asyncio.gather(
            *[agent.inference(model="ainfera-inference", messages=HELLO) for _ in range(4)]
        )
        wallet = await agent.wallet()
        assert wallet.balance_usd == GRANT - sum(answer.cost_usd for answer in answers)
        assert await agent.audit_chain.verify()
        assert (await agent.audit_chain.verify_remote()).event_count == 2 + 4 * 3
