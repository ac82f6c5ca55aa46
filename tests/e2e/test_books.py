"""What a call leaves behind: its capture, its settlement, its audit trail, its receipts."""

import json
from decimal import Decimal
from typing import Any
from uuid import uuid4

import ainfera
import httpx
import pytest

from shared.domain.audit import canonical_json
from shared.domain.routing import RULESET_HASH, replay
from shared.receipt_verifier import check, read_keys
from tests.e2e.calls import EVERY_DIALECT, STREAMED_OR_NOT, call
from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness

# gpt-5-mini, the cheapest active model: USD per million tokens
PRICE_IN, PRICE_OUT = Decimal("0.25"), Decimal("2.00")


def get(stack: Stack, api_key: str, path: str) -> httpx.Response:
    return stack.request("GET", path, headers={"authorization": f"Bearer {api_key}"})


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_a_routed_call_leaves_one_of_each(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
) -> None:
    word = upstream.will(Say(texts=("Seven.",), input_tokens=100, output_tokens=7))
    answer = call(stack, agent.api_key, dialect, word, stream=stream)
    cost = (100 * PRICE_IN + 7 * PRICE_OUT) / 1_000_000

    # at once: the end was told after the settlement
    (capture,) = witness.captures(answer.inference_id)
    assert capture["outcome_status"] == "succeeded"
    assert capture["chosen_model_slug"] == "gpt-5-mini"
    assert (capture["input_tokens"], capture["output_tokens"]) == (100, 7)
    assert capture["cost_actual"] == cost
    assert capture["agent_id"] == agent.agent_id
    assert capture["ttft_ms"] <= capture["observed_latency_ms"]

    (receipt,) = witness.receipts(answer.inference_id)
    assert receipt["cost_usd"] == cost
    assert (receipt["usage_estimated"], receipt["simulated"]) == (False, False)

    inference = witness.inference(answer.inference_id)
    assert (inference["state"], inference["hold_state"]) == ("settled", "posted")
    assert inference["settled_usd"] == cost
    assert inference["hold_usd"] >= cost
    (transfer,) = witness.transfers(answer.inference_id)
    assert (transfer["kind"], transfer["amount"]) == ("usage", cost)
    wallet = witness.wallet(agent.agent_id)
    assert (wallet["balance"], wallet["held"]) == (5 - cost, 0)
    assert wallet["grant_inferences_left"] == 99

    routed, responded, created = witness.events(answer.inference_id)
    assert routed["event_type"] == "inference.routed"
    assert routed["router"] == "ainfera-inference"
    assert Decimal(responded["cost_usd"]) == Decimal(created["cost_usd"]) == cost
    assert created["receipt_id"] == receipt["receipt_id"]
    assert witness.ledger_sum() == 0


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_a_pinned_call_leaves_no_capture(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
) -> None:
    """Not even when it is streamed, and it is asked of the model that was named."""
    word = upstream.will(Say(texts=("Seven.",), input_tokens=100, output_tokens=7))
    answer = call(stack, agent.api_key, dialect, word, model="claude-sonnet-4-6", stream=stream)

    assert upstream.asked(word).body["model"] == "claude-sonnet-4-6"
    assert witness.captures(answer.inference_id) == []
    (receipt,) = witness.receipts(answer.inference_id)
    assert receipt["model_slug"] == "claude-sonnet-4-6"
    assert receipt["cost_usd"] == (100 * Decimal(3) + 7 * Decimal(15)) / 1_000_000
    assert {event["router"] for event in witness.events(answer.inference_id)} == {"direct"}
    missing = get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision")
    unknown = get(stack, agent.api_key, f"/v1/inferences/{uuid4()}/decision")
    assert (missing.status_code, missing.content) == (404, unknown.content)


def test_a_decision_receipt_is_complete_and_replays(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    word = upstream.will(Say(texts=("ok",), input_tokens=30, output_tokens=3))
    answer = call(
        stack,
        agent.api_key,
        "openai",
        word,
        routing_hint={"min_quality": "strong", "task_type": "chat", "deny": ["gpt-5-mini"]},
    )
    body = get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision").json()

    assert set(body) >= {
        "inference_id", "task_type", "cell", "decision_rule", "policy_version", "ruleset_hash",
        "min_quality", "candidates", "m_allowed_set", "q_prior_used", "chosen_model_slug",
        "cost_projected", "cost_actual", "observed_latency_ms", "ttft_ms", "outcome_status",
        "fallback_chain", "seed", "router", "inputs", "dashboard_candidates",
    }  # fmt: skip
    assert body["inference_id"] == answer.inference_id
    assert (body["task_type"], body["min_quality"]) == ("chat", 0.7)
    assert body["decision_rule"] == "cheapest_clearing_floor"
    assert body["chosen_model_slug"] == "claude-haiku-4-5"
    assert body["cell"] == "chat:claude-haiku-4-5:balanced"
    assert (body["router"], body["outcome_status"]) == ("ainfera-inference", "succeeded")
    assert body["q_prior_used"] == 0.7
    assert Decimal(body["cost_actual"]) == (30 * Decimal(1) + 3 * Decimal(5)) / 1_000_000
    check_candidates(body)
    check_replay(body)
    check_receipt(stack, body)


def check_candidates(body: dict[str, Any]) -> None:
    by_slug = {candidate["model_slug"]: candidate for candidate in body["candidates"]}
    assert set(by_slug["gpt-5-mini"]) == {
        "model_slug", "brand_slug", "q_prior", "price_in_per_mtok_usd", "price_out_per_mtok_usd",
        "m_allowed", "projected_cost_usd", "drop_reason", "rank",
    }  # fmt: skip
    assert by_slug["gpt-5-mini"]["drop_reason"] == "denied_by_request"
    assert by_slug["grok-4"]["drop_reason"] == "not_enrolled_no_provider"
    assert by_slug["claude-haiku-4-5"]["rank"] == 1
    assert by_slug["claude-haiku-4-5"]["drop_reason"] is None
    assert Decimal(by_slug["claude-haiku-4-5"]["projected_cost_usd"]) == Decimal(
        body["cost_projected"]
    )
    for shown in body["dashboard_candidates"]:
        assert set(shown) == {
            "model_slug", "brand_slug", "q_prior", "projected_cost_usd", "chosen", "excluded",
        }  # fmt: skip
        assert shown["chosen"] == (shown["model_slug"] == body["chosen_model_slug"])
        assert shown["excluded"] == by_slug[shown["model_slug"]]["drop_reason"]


def check_receipt(stack: Stack, body: dict[str, Any]) -> None:
    """As a client does it who has the published keys and the verifier, and nothing else."""
    keys = read_keys(stack.request("GET", "/.well-known/jwks.json").json())
    told = {each.name: (each.proved, each.what) for each in check(body, keys)}
    log, _ = told.pop("log")  # the event may be under a checkpoint already, or soon
    assert log is not False
    assert {proved for proved, _ in told.values()} == {True}, told


def check_replay(body: dict[str, Any]) -> None:
    """The rule, run offline on the receipt's own inputs, as they came over the wire."""
    again = replay(json.loads(json.dumps(body["inputs"])))
    assert again.ruleset_hash == body["ruleset_hash"] == RULESET_HASH
    assert (again.chosen.slug if again.chosen else None) == body["chosen_model_slug"]
    assert (again.rule.value, again.cell) == (body["decision_rule"], body["cell"])
    assert canonical_json(again.inputs) == canonical_json(body["inputs"])
    told = {
        c["model_slug"]: (c["drop_reason"], c["rank"], c["projected_cost_usd"])
        for c in body["candidates"]
    }
    found = {}
    for outcome in again.outcomes:
        projected = outcome.projected_cost
        found[outcome.candidate.slug] = (
            outcome.drop_reason.value if outcome.drop_reason else None,
            outcome.rank,
            None if projected is None else f"{projected:f}",
        )
    assert found == told


def test_wallet_and_ledger_tell_the_same_story(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    costs = []
    for tokens in (10, 2000, 333):
        word = upstream.will(Say(texts=("ok",), input_tokens=tokens, output_tokens=tokens))
        answer = call(stack, agent.api_key, "native", word, max_tokens=4000)
        costs.append(Decimal(answer.body["cost_usd"]))
    wallet = get(stack, agent.api_key, f"/v1/wallets/{agent.agent_id}").json()
    ledger = get(stack, agent.api_key, f"/v1/ledger/{agent.agent_id}").json()

    assert set(wallet) == {"agent_id", "balance_usd", "available_usd", "held_usd"}
    assert Decimal(wallet["balance_usd"]) == 5 - sum(costs)
    assert Decimal(wallet["held_usd"]) == 0
    assert wallet["available_usd"] == wallet["balance_usd"] == ledger["balance_usd"]
    entries = ledger["entries"]
    assert set(entries[0]) == {
        "id", "agent_id", "amount_usd", "balance_after_usd", "kind", "memo", "inference_id",
        "created_at",
    }  # fmt: skip
    assert [entry["kind"] for entry in entries] == ["usage", "usage", "usage", "grant"]
    assert [Decimal(entry["amount_usd"]) for entry in entries] == [*(-c for c in costs[::-1]), 5]
    assert entries[0]["balance_after_usd"] == wallet["balance_usd"]
    newest = get(stack, agent.api_key, f"/v1/ledger/{agent.agent_id}?limit=1").json()
    assert newest["entries"] == entries[:1]
    assert witness.unbalanced_wallets() == []


def test_a_doctored_chain_is_found_out(
    stack: Stack, agent: ainfera.SignupResult, witness: Witness
) -> None:
    """Past the triggers, as only a superuser can go: both verifications see it."""
    call(stack, agent.api_key, "native", "Hi.")
    witness.rows("SET session_replication_role = replica")
    witness.rows("ALTER TABLE audit_events DISABLE TRIGGER append_only")
    try:
        witness.rows(
            'UPDATE audit_events SET payload = replace(payload, \'"cost_usd":"\', '
            '\'"cost_usd":"1\') WHERE agent_id = $1::uuid AND seq = 4',
            agent.agent_id,
        )
    finally:
        witness.rows("ALTER TABLE audit_events ENABLE ALWAYS TRIGGER append_only")
        witness.rows("RESET session_replication_role")

    with ainfera.AinferaClient(agent.api_key, base_url=stack.url) as client:
        chain = client.agents.retrieve(agent.agent_id).audit_chain
        with pytest.raises(ainfera.AuditChainBroken) as broken:
            chain.verify()
        assert broken.value.broken_at_seq == 4
        remote = chain.verify_remote()
        assert (remote.valid, remote.failure_seq) == (False, 4)
        assert remote.failure_reason


def test_the_application_is_neither_superuser_nor_owner(witness: Witness) -> None:
    """Every connection that the processes hold, by what Postgres says of it."""
    sessions = witness.rows(
        "SELECT usename, rolsuper, rolcreaterole, rolbypassrls FROM pg_stat_activity "
        "JOIN pg_roles ON rolname = usename "
        "WHERE datname = current_database() AND application_name LIKE 'ainfera%'"
    )
    assert sessions
    assert not [s for s in sessions if s["rolsuper"] or s["rolcreaterole"] or s["rolbypassrls"]]
    owned = "SELECT count(*) FROM pg_tables WHERE tableowner = $1"
    assert {s["usename"] for s in sessions} <= {"ainfera_app", "ainfera_caller"}
    assert [witness.value(owned, role) for role in ("ainfera_app", "ainfera_caller")] == [0, 0]
