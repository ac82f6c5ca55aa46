"""Plans of quotes: what is promised, what ends a promise, and which request it is for."""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from shared.domain.candidate import Candidate, Catalog
from shared.domain.dialects import DIALECTS
from shared.domain.dialects.wishes import hear_headers
from shared.domain.inference import Dialect, InferenceRequest
from shared.domain.planning import (
    HeldQuote,
    Planned,
    Situation,
    hold_for,
    maximum_for,
    plan,
    plan_for_quote,
    plan_quoted,
    terms_of,
)
from shared.domain.request_hash import request_hash
from shared.domain.routing import DropReason, Rule, replay
from tests.domain.routing_cases import ALL_ACTIVE, ANCHORS, FLAT, asked

BODY = {"model": "ainfera-inference", "messages": [{"role": "user", "content": "Hello."}]}
NOW = Situation(ANCHORS, FLAT, ALL_ACTIVE, False, 2, "a-tenant")
CHEAPEST = "mistral-large-3"
ELSEWHERE = ALL_ACTIVE - {"mistral"}
WITHOUT = Catalog.of(each for each in ANCHORS.candidates if each.slug != CHEAPEST)


def request(headers: Mapping[str, str] | None = None, **fields: Any) -> InferenceRequest:
    parsed = DIALECTS[Dialect.NATIVE].parse_request({**BODY, **fields})
    return hear_headers(parsed, headers or {})


def held(planned: Planned, now: Situation = NOW) -> HeldQuote:
    """The quote as it comes back from where it is kept."""
    kept = json.loads(json.dumps([terms_of(planned), now.catalog.to_json()]))
    return HeldQuote("q", planned.decision is not None, planned.candidates[0].slug, *kept)


def changed(slug: str, **fields: Any) -> Situation:
    listed = [c.to_json() for c in ANCHORS.candidates]
    models = [Candidate.from_json(c | fields if c["slug"] == slug else c) for c in listed]
    return replace(NOW, catalog=Catalog.of(models))


def test_a_quote_does_not_explore_however_often_it_is_asked_for() -> None:
    exploring = replace(NOW, policy=replace(FLAT, exploration_share=Decimal(1)))
    for seed in map(str, range(20)):
        planned = plan_for_quote(request(), exploring, seed)
        assert planned.candidates[0].slug == CHEAPEST
        assert planned.decision is not None
        again = replay(json.loads(json.dumps(planned.decision.inputs)))
        assert (again.chosen, again.rule) == (planned.decision.chosen, Rule.CHEAPEST)
        called = plan(request(), exploring, seed)
        assert called.candidates[0].slug != CHEAPEST


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (replace(NOW, active=ELSEWHERE), DropReason.NO_PROVIDER),
        (changed(CHEAPEST, verdict="VETO"), DropReason.VETO),
        (changed(CHEAPEST, verdict="CONDITIONAL", conditions={"opt_in": True}), DropReason.VETO),
        (replace(changed(CHEAPEST, provider="openai"), active=ELSEWHERE), DropReason.DENIED),
        (replace(NOW, catalog=WITHOUT), None),
    ],
)
def test_a_withdrawn_quote_chooses_nobody_and_says_why(
    now: Situation, reason: DropReason | None
) -> None:
    """Its receipt says what its outcome says, and replays on the catalogue of now."""
    withdrawn = plan_quoted(held(plan_for_quote(request(), NOW, "q")), now)
    assert (withdrawn.candidates, withdrawn.failure is not None) == ((), True)
    decision = withdrawn.decision
    assert decision is not None
    assert (decision.chosen, decision.rule) == (None, Rule.NONE_ENROLLED)
    assert decision.catalog.hash == now.catalog.hash
    assert decision.seed == "q"
    why = {each.candidate.slug: each.drop_reason for each in decision.outcomes}
    assert why.get(CHEAPEST) == reason
    again = replay(json.loads(json.dumps(decision.inputs)))
    assert (again.outcomes, again.rule) == (decision.outcomes, decision.rule)


def test_the_maximum_is_one() -> None:
    """A request without a limit may be answered with all that the model can say."""
    planned = plan_for_quote(request(), NOW, "q")
    model, features = planned.candidates[0], planned.features
    assert features.reserved_output_tokens < model.max_output_tokens
    everything = replace(features, reserved_output_tokens=model.max_output_tokens)
    assert maximum_for(features, model, None) == hold_for(everything, model)
    assert maximum_for(features, model, 10**9) == hold_for(everything, model)
    limited = asked(1000, 20)
    assert maximum_for(limited, model, 20) == hold_for(limited, model)


SAID: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"x-ainfera-priority": "balanced"}, True),
    ({"x-ainfera-priority": "whatever"}, True),
    ({"x-ainfera-priority": "quality"}, False),
    ({"x-ainfera-data-class": "public"}, False),
    ({"x-ainfera-region": "eu"}, False),
]


@pytest.mark.parametrize(("headers", "same"), SAID)
def test_what_headers_say_is_part_of_a_request(headers: dict[str, str], same: bool) -> None:
    assert (request_hash(request(headers)) == request_hash(request())) is same


def test_a_body_wins_over_headers_and_speaks_of_its_quote_without_a_change() -> None:
    hint = {"data_class": "public"}
    plain = request_hash(request(routing_hint=hint))
    overruled = request({"x-ainfera-data-class": "restricted"}, routing_hint=hint)
    naming = request(routing_hint={**hint, "quote_id": "q"}, hold_for_s=5)
    assert request_hash(overruled) == plain == request_hash(naming)
    elsewhere = replace(request(routing_hint=hint), dialect=Dialect.OPENAI)
    assert request_hash(elsewhere) != plain
