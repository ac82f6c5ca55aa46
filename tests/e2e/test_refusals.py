"""A call that is turned down leaves one row and a receipt that can be read, and takes nothing."""

from dataclasses import dataclass, field
from typing import Any

import ainfera
import pytest

from tests.e2e.calls import EVERY_DIALECT, call
from tests.e2e.conftest import Signup
from tests.e2e.stack import Stack
from tests.e2e.test_books import check_receipt, check_replay, get
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness


@dataclass(frozen=True)
class Refused:
    """How a routed call is refused, and what must be told and kept."""

    outcome: str
    status: int
    code: str
    event: str
    rule: str
    wish: dict[str, Any]
    signup: dict[str, Any] = field(default_factory=dict)


REFUSED = [
    Refused(
        "rejected_floor",
        422,
        "no_candidate_clears_floor",
        "inference.rejected_floor",
        "no_candidate_clears_floor",
        {"routing_hint": {"min_quality": 0.99}},
    ),
    Refused(
        "rejected_not_enrolled",
        422,
        "no_candidate_enrolled",
        "inference.rejected_floor",
        "no_candidate_enrolled",
        {"routing_hint": {"allow": ["mistral"]}},
    ),
    Refused(
        "rejected_cap",
        403,
        "spend_policy_exceeded",
        "inference.rejected_cap_violation",
        "cheapest_clearing_floor",
        {"max_tokens": 60_000},
        {"per_call_cap_usd": "0.01"},
    ),
    Refused(
        "rejected_cap",
        403,
        "spend_policy_exceeded",
        "inference.rejected_cap_violation",
        "cheapest_clearing_floor",
        {"max_tokens": 60_000},
        {"daily_cap_usd": "0.01"},
    ),
    Refused(
        "rejected_funds",
        402,
        "insufficient_funds",
        "inference.rejected_insufficient_funds",
        "cheapest_clearing_floor",
        {"max_tokens": 120_000, "routing_hint": {"allow": ["claude-opus-4-7"]}},
    ),
]


@EVERY_DIALECT
@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{r.outcome}-{len(r.signup)}")
def test_a_refused_call(
    stack: Stack,
    signup: Signup,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    refused: Refused,
) -> None:
    agent = signup("refused", **refused.signup)
    word = upstream.will(Say())
    answer = call(stack, agent.api_key, dialect, word, **refused.wish)

    assert (answer.status, answer.error_code) == (refused.status, refused.code)
    inference = witness.inference(answer.inference_id)
    assert inference["state"] == "refused"
    assert (inference["settled_usd"], inference["hold_usd"]) == (None, 0)
    (capture,) = witness.captures(answer.inference_id)
    assert capture["outcome_status"] == refused.outcome
    assert capture["cost_actual"] is None
    assert witness.receipts(answer.inference_id) == []
    assert witness.transfers(answer.inference_id) == []
    (event,) = witness.events(answer.inference_id)
    assert event["event_type"] == refused.event
    wallet = witness.wallet(agent.agent_id)
    assert (wallet["balance"], wallet["held"], wallet["grant_inferences_left"]) == (5, 0, 100)
    assert upstream.all_asked(word) == []

    receipt = get(stack, agent.api_key, f"/v1/inferences/{answer.inference_id}/decision")
    assert receipt.status_code == 200
    body = receipt.json()
    assert body["outcome_status"] == refused.outcome
    assert body["decision_rule"] == refused.rule
    assert body["candidates"]
    check_replay(body)
    check_receipt(stack, body)


@pytest.mark.parametrize("model", ["claude-opus-4-7", "grok-4"])
def test_a_refused_pinned_call_leaves_no_capture(
    stack: Stack, agent: ainfera.SignupResult, witness: Witness, model: str
) -> None:
    answer = call(stack, agent.api_key, "native", "Hi.", model=model, max_tokens=120_000)
    assert answer.status == (402 if model == "claude-opus-4-7" else 422)
    assert witness.inference(answer.inference_id)["state"] == "refused"
    assert witness.captures(answer.inference_id) == []
    (event,) = witness.events(answer.inference_id)
    assert event["router"] == "direct"


def test_a_refusal_names_what_would_help(stack: Stack, agent: ainfera.SignupResult) -> None:
    """Not only that it failed: the floor, the money, the cap."""
    floor = call(stack, agent.api_key, "native", "Hi.", routing_hint={"min_quality": 0.99})
    funds = call(stack, agent.api_key, "native", "Hi.", model="claude-opus-4-7", max_tokens=120_000)
    assert "0.99" in floor.body["message"]
    assert (floor.body["model"], floor.body["provider"]) == ("ainfera-inference", None)
    assert {"balance_usd", "available_usd", "required_usd"} <= set(funds.body)


def test_a_daily_cap_counts_what_was_spent(
    stack: Stack, signup: Signup, upstream: Upstream, witness: Witness
) -> None:
    """Calls go through until the next one might pass the cap."""
    agent = signup("frugal", daily_cap_usd="0.02")
    word = upstream.will(Say(texts=("ok",), input_tokens=10, output_tokens=5000))
    answers = [
        call(stack, agent.api_key, "openai", word, model="gpt-5-mini", max_tokens=5000)
        for _ in range(3)
    ]
    assert [answer.status for answer in answers] == [200, 403, 403]
    assert (
        witness.wallet(agent.agent_id)["spent_today"]
        == 5 - witness.wallet(agent.agent_id)["balance"]
    )
