"""A brand's conditions, from a client's headers or body to the receipt, and for a pinned model."""

from typing import Any

import ainfera
import pytest

from tests.e2e.calls import EVERY_DIALECT, PATHS, call
from tests.e2e.conftest import EU_ONLY
from tests.e2e.stack import Stack
from tests.e2e.test_books import check_replay, get
from tests.e2e.upstream import Say, Upstream

PUBLIC_EU = {"x-ainfera-data-class": "public", "x-ainfera-region": "eu"}
ASKED: dict[str, Any] = {"allow": [EU_ONLY]}


def decision_of(stack: Stack, agent: ainfera.SignupResult, inference: str) -> dict[str, Any]:
    found = get(stack, agent.api_key, f"/v1/inferences/{inference}/decision")
    assert found.status_code == 200
    body: dict[str, Any] = found.json()
    return body


@EVERY_DIALECT
def test_headers_meet_the_conditions_of_a_brand(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, dialect: str
) -> None:
    word = upstream.will(Say(texts=("ok",)))
    answer = call(stack, agent.api_key, dialect, word, headers=PUBLIC_EU, routing_hint=ASKED)
    assert answer.status == 200
    body = decision_of(stack, agent, answer.inference_id)
    assert body["chosen_model_slug"] == EU_ONLY
    features = body["inputs"]["features"]
    assert (features["data_class"], features["region"]) == ("public", "eu")
    assert features["tenant_id"] == agent.tenant_id
    (careful,) = [c for c in body["inputs"]["candidates"] if c["slug"] == EU_ONLY]
    assert careful["conditions"] == {"data_class": ["public"], "region": ["eu"]}
    check_replay(body)
    (asked,) = upstream.all_asked(word)
    assert not [name for name in asked.headers if name.lower().startswith("x-ainfera-")]


def test_where_one_fails_the_brand_is_vetoed(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    hint = {**ASKED, "data_class": "confidential"}  # the body wins over the header
    answer = call(stack, agent.api_key, "openai", "Hi.", headers=PUBLIC_EU, routing_hint=hint)
    assert (answer.status, answer.error_code) == (422, "no_candidate_enrolled")
    body = decision_of(stack, agent, answer.inference_id)
    (careful,) = [c for c in body["candidates"] if c["model_slug"] == EU_ONLY]
    assert (careful["drop_reason"], careful["m_allowed"]) == ("m_allowed_veto", False)
    assert EU_ONLY not in body["m_allowed_set"]
    check_replay(body)


def test_a_pinned_model_keeps_its_conditions(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    word = upstream.will(Say(texts=("ok",)))
    met = call(stack, agent.api_key, "openai", word, model=EU_ONLY, headers=PUBLIC_EU)
    assert met.status == 200
    elsewhere = {**PUBLIC_EU, "x-ainfera-region": "us"}
    unmet = call(stack, agent.api_key, "openai", "Hi.", model=EU_ONLY, headers=elsewhere)
    assert (unmet.status, unmet.error_code) == (422, "model_unavailable")
    assert "region eu" in unmet.body["error"]["message"]


@pytest.mark.parametrize("dialect", PATHS)
def test_an_unknown_word_is_refused_before_anything_is_queued(
    stack: Stack, agent: ainfera.SignupResult, dialect: str
) -> None:
    said = {"x-ainfera-data-class": "secret"}
    answer = call(stack, agent.api_key, dialect, "Hi.", headers=said)
    assert answer.status == 400
    assert b"x-ainfera-data-class: must be one of public, internal" in answer.content
    assert "x-ainfera-inference-id" not in answer.headers


def test_the_priority_header_is_the_preference(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream
) -> None:
    word = upstream.will(Say(texts=("ok",)))
    said = {"x-ainfera-priority": "quality"}
    answer = call(stack, agent.api_key, "anthropic", word, headers=said)
    body = decision_of(stack, agent, answer.inference_id)
    assert body["inputs"]["features"]["routing_preference"] == "quality"
