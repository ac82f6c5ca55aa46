"""The contract's headers, and the end of a stream, in every dialect."""

from typing import Any

import ainfera
import pytest

from tests.e2e.calls import EVERY_DIALECT, STREAMED_OR_NOT, call, models_told
from tests.e2e.stack import Stack
from tests.e2e.test_books import get
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness

ALIASES = ["ainfera-mithril", "ainfera-auto", "ainfera/auto"]


@EVERY_DIALECT
@STREAMED_OR_NOT
@pytest.mark.parametrize("model", ["ainfera-inference", "gpt-5-mini", "claude-haiku-4-5"])
def test_an_answer_says_which_call_it_was(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
    model: str,
) -> None:
    word = upstream.will(Say(texts=("Well", " met.")))
    answer = call(stack, agent.api_key, dialect, word, model=model, stream=stream)

    assert answer.status == 200
    assert answer.text == "Well met."
    (receipt,) = witness.receipts(answer.inference_id)
    headers = answer.headers
    assert headers["x-ainfera-receipt-id"] == receipt["receipt_id"]
    assert headers["x-ainfera-agent-id"] == agent.agent_id
    assert headers["x-ainfera-audit-url"] == f"{stack.url}/v1/audit/{agent.agent_id}/verify"
    assert headers["x-ainfera-model"] == receipt["model_used"]
    assert headers.get("x-ainfera-stream-mode") == ("native" if stream else None)
    assert "x-ainfera-simulated" not in headers
    assert headers["content-type"].partition(";")[0] == (
        "text/event-stream" if stream else "application/json"
    )
    if stream:
        assert headers["x-accel-buffering"] == "no"
        assert (
            answer.frames[-1][0]
            == {
                "native": "completed",
                "anthropic": "message_stop",
                "openai": "[DONE]",
            }[dialect]
        )


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_a_model_named_by_slug_is_told_by_the_vendors_id(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
) -> None:
    """The provider is asked for that id; header, body and receipt all have it."""
    word = upstream.will(Say(texts=("ok",)))
    answer = call(stack, agent.api_key, dialect, word, model="gpt-5-5", stream=stream)
    assert answer.status == 200
    assert upstream.asked(word).body["model"] == "gpt-5.5"
    assert answer.headers["x-ainfera-model"] == "gpt-5.5"
    assert models_told(answer) == {"gpt-5.5"}
    (receipt,) = witness.receipts(answer.inference_id)
    assert (receipt["model_used"], receipt["model_slug"]) == ("gpt-5.5", "gpt-5-5")


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_a_refusal_says_so_too(
    stack: Stack, agent: ainfera.SignupResult, dialect: str, stream: bool
) -> None:
    answer = call(stack, agent.api_key, dialect, "Hi.", model="no-such-model", stream=stream)
    assert (answer.status, answer.error_code) == (422, "model_unavailable")
    assert answer.headers["x-ainfera-inference-id"]
    assert answer.headers["x-ainfera-agent-id"] == agent.agent_id
    assert "x-ainfera-model" not in answer.headers


@EVERY_DIALECT
@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_routed_and_never_repeated(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    alias: str,
) -> None:
    """Answers, receipts and audit events say `ainfera-inference` or the model that answered."""
    word = upstream.will(Say(texts=("ok",)))
    answer = call(stack, agent.api_key, dialect, word, model=alias)

    assert answer.status == 200
    assert len(witness.captures(answer.inference_id)) == 1
    kept: list[Any] = [
        witness.inference(answer.inference_id),
        witness.captures(answer.inference_id),
        witness.events(answer.inference_id),
        get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision").json(),
        answer.content.decode(),
        dict(answer.headers),
        upstream.asked(word).body,
    ]
    assert not [record for record in kept if alias in str(record)]
    lines = [line for line in stack.log_text().splitlines() if "router_alias_hit" in line]
    assert [line for line in lines if f'"{alias}"' in line and '"ainfera-inference"' in line]


def test_no_alias_stands_on_a_public_page(stack: Stack) -> None:
    for path in ("/", "/v1/models", "/v1/providers", "/.well-known/agent-card.json", "/llms.txt"):
        page = stack.request("GET", path)
        assert page.status_code == 200, path
        assert not [alias for alias in ALIASES if alias in page.text], path


def test_models_without_a_key_are_a_bare_list(stack: Stack) -> None:
    models = stack.request("GET", "/v1/models").json()
    assert isinstance(models, list)
    assert {"ainfera-inference", "claude-opus-4-7"} <= {model["id"] for model in models}


def test_a_trace_id_goes_all_the_way(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    """From the client's `traceparent` to the provider."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    word = upstream.will(Say(texts=("ok",)))
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    call(stack, agent.api_key, "openai", word, headers=headers)
    assert upstream.asked(word).headers["traceparent"].split("-")[1] == trace


@EVERY_DIALECT
def test_whom_a_call_is_for_is_kept_beside_it_and_its_receipt_names_the_rule(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
) -> None:
    said = {
        "x-claude-code-session-id": "session-7",
        "x-claude-code-agent-id": "agent-7",
        "x-ainfera-parent-agent-id": "parent-7",
    }
    kept = []
    for headers in (said, {}):
        word = upstream.will(Say(texts=("Well", " met.")))
        answer = call(stack, agent.api_key, dialect, word, headers=headers)
        query = """SELECT session_id, client_agent_id, parent_agent_id FROM call_attributions
                    WHERE inference_id = $1::uuid"""
        kept += [tuple(row.values()) for row in witness.rows(query, answer.inference_id)]
    assert kept == [("session-7", "agent-7", "parent-7")]
    path = f"/v1/receipts/{answer.headers['x-ainfera-receipt-id']}"
    assert get(stack, agent.api_key, path).json()["billing"] == {
        "rule": "partial-work-v1",
        "basis": "provider_usage",
        "outcome": "succeeded",
    }
