"""What was observed, and exploring: what holds of them for every catalogue, request and policy."""

import ast
import json
import random
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain import (
    candidate,
    conditions,
    evidence,
    exploration,
    pricing,
    routing,
    task_type,
    task_words,
)
from shared.domain.candidate import Catalog
from shared.domain.capture import columns
from shared.domain.evidence import Empirical, Evidence
from shared.domain.exploration import drawn
from shared.domain.routing import CandidateOutcome, Decision, Rule, decide, replay
from shared.domain.routing_policy import CallerPolicy, RequestFeatures
from tests.domain import routing_cases as cases
from tests.domain.routing_cases import ANCHORS, asked, decided
from tests.domain.test_routing_properties import told

steady = settings(max_examples=30, deadline=None)
seeds = st.uuids(version=4).map(str)


@steady
@given(
    cases.catalogs,
    cases.requests,
    cases.policies | cases.exploring,
    cases.evidence,
    seeds,
    st.randoms(),
)
def test_neither_order_nor_replay_changes_a_byte(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    seen: Evidence,
    seed: str,
    dice: random.Random,
) -> None:
    shuffled = list(catalog.candidates)
    dice.shuffle(shuffled)
    decision = decide(features, catalog, policy, cases.ALL_ACTIVE, True, seed, seen)
    again = decide(features, Catalog.of(shuffled), policy, cases.ALL_ACTIVE, True, seed, seen)
    assert told(again) == told(decision)
    replayed = replay(json.loads(json.dumps(decision.inputs)))
    assert told(replayed) == told(decision)
    assert replayed.catalog.hash == catalog.hash


@steady
@given(cases.catalogs, cases.requests, cases.exploring, cases.evidence, seeds)
def test_exploring_only_moves_one_of_the_ranked_to_the_front(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, seen: Evidence, seed: str
) -> None:
    still = replace(policy, exploration_share=Decimal(0))
    calm = decide(features, catalog, still, cases.ALL_ACTIVE, False, seed, seen)
    bold = decide(features, catalog, policy, cases.ALL_ACTIVE, False, seed, seen)
    assert bold.outcomes == calm.outcomes
    assert bold.min_quality == calm.min_quality
    order = [calm.chosen, *calm.fallbacks]
    assert bold.rule == calm.rule
    assert not calm.explored
    if not bold.explored:
        assert told(bold).replace(
            f'"exploration_share":"{policy.to_json()["exploration_share"]}"',
            '"exploration_share":"0"',
        ) == told(calm)
        return
    assert bold.chosen in order[1:]
    assert list(bold.fallbacks) == [c for c in order if c != bold.chosen]
    [outcome] = [o for o in bold.outcomes if o.candidate == bold.chosen]
    assert outcome.projected_cost == bold.projected_cost
    assert outcome.q >= pricing.floor_to_nano(bold.min_quality)
    if features.budget_cap_usd is not None:
        assert bold.projected_cost is not None
        assert bold.projected_cost <= features.budget_cap_usd


def counted(decision: Decision) -> CandidateOutcome:
    """The chosen one's outcome, with the quality that counted."""
    (outcome,) = [o for o in decision.outcomes if o.candidate is decision.chosen]
    return outcome


@steady
@given(
    cases.catalogs,
    cases.requests,
    cases.exploring,
    cases.evidence,
    cases.qualities,
    st.decimals("0", "2", places=4),
    seeds,
)
def test_whatever_is_drawn_clears_floor_and_budget(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    seen: Evidence,
    floor: Decimal,
    budget: Decimal,
    seed: str,
) -> None:
    always = replace(policy, exploration_share=Decimal(1))
    strict = replace(features, min_quality=floor, budget_cap_usd=budget)
    decision = decide(strict, catalog, always, cases.ALL_ACTIVE, False, seed, seen)
    if decision.chosen is None:
        return
    assert decision.explored == (len(decision.fallbacks) > 0)
    for model in (decision.chosen, *decision.fallbacks):
        (outcome,) = [o for o in decision.outcomes if o.candidate is model]
        assert outcome.q >= pricing.floor_to_nano(floor)
        assert outcome.projected_cost is not None
        assert outcome.projected_cost <= budget
    assert counted(decision).projected_cost == decision.projected_cost


@steady
@given(
    cases.catalogs,
    cases.requests,
    cases.policies,
    cases.evidence,
    cases.qualities,
    cases.qualities,
    seeds,
)
def test_a_higher_floor_never_lowers_the_quality_that_counted(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    seen: Evidence,
    one: Decimal,
    other: Decimal,
    seed: str,
) -> None:
    """Of the rule's own choice, whether priors count or what was observed."""

    def under(floor: Decimal) -> Decision:
        strict = replace(features, min_quality=floor)
        return decide(strict, catalog, policy, cases.ALL_ACTIVE, False, seed, seen)

    low, high = map(under, sorted((one, other)))
    if high.chosen is None:
        return
    assert counted(high).q >= counted(low).q
    assert (counted(high).projected or 0) >= (counted(low).projected or 0)


def test_a_draw_may_fall_on_less_under_a_higher_floor_but_never_below_it() -> None:
    """Why that holds of the rule's own choice alone: there are fewer to draw from."""
    catalog = Catalog.of(
        [
            cases.model("cheap", "1", "1", "0.55"),
            cases.model("good", "2", "2", "0.9"),
            cases.model("fair", "3", "3", "0.7"),
        ]
    )
    policy = CallerPolicy(exploration_share=Decimal(1))

    def chosen(floor: str, seed: str) -> CandidateOutcome:
        features = asked(min_quality=Decimal(floor))
        return counted(decide(features, catalog, policy, cases.ALL_ACTIVE, False, seed))

    drawn_of = {
        seed: (chosen("0.5", seed).candidate.slug, chosen("0.6", seed).candidate.slug)
        for seed in map(str, range(20))
    }
    assert ("good", "fair") in drawn_of.values()
    assert {high for _, high in drawn_of.values()} == {"fair"}


def test_the_share_is_kept_and_no_alternative_is_preferred() -> None:
    """Over ids as they are minted: fixed ones, so that the counts are always the same."""
    ids = [f"00000000-0000-7000-8000-{n:012d}" for n in range(10_000)]
    draws = Counter(drawn(seed, Decimal("0.2"), 4) for seed in ids)
    explored = len(ids) - draws.pop(None)
    assert explored == pytest.approx(2000, abs=120)  # three standard deviations
    assert set(draws) == {0, 1, 2, 3}
    assert all(count == pytest.approx(explored / 4, abs=60) for count in draws.values())


def test_no_share_never_draws_and_all_of_it_always() -> None:
    assert drawn("s", Decimal(0), 4) is None
    assert drawn("s", Decimal(1), 0) is None
    assert all(drawn(str(n), Decimal(1), 3) is not None for n in range(50))


@steady
@given(cases.catalogs, cases.requests, cases.policies, cases.evidence)
def test_only_what_was_looked_at_is_recorded(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, seen: Evidence
) -> None:
    inputs = decide(features, catalog, policy, cases.ALL_ACTIVE, False, "s", seen).inputs
    slugs = {c.slug for c in catalog.candidates}
    timed = slugs & seen.latencies.keys() if features.latency_cap_ms is not None else set()
    measured = slugs & seen.empirical.keys() if policy.q_source == "empirical" else set()
    assert inputs["latencies"].keys() == timed
    assert inputs["empirical"].keys() == measured


@steady
@given(cases.catalogs, cases.requests, cases.evidence)
def test_what_was_observed_changes_nothing_where_nobody_asks_for_it(
    catalog: Catalog, features: RequestFeatures, seen: Evidence
) -> None:
    unasked = replace(features, latency_cap_ms=None)
    bare = decide(unasked, catalog, cases.FLAT, cases.ALL_ACTIVE, False, "s")
    full = decide(unasked, catalog, cases.FLAT, cases.ALL_ACTIVE, False, "s", seen)
    assert told(full) == told(bare)


@steady
@given(cases.catalogs, cases.requests, cases.policies, st.booleans())
def test_a_receipt_of_before_replays(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, live: bool
) -> None:
    """Without the keys that came later, as a store still has it."""
    features = replace(features, tenant_id=None, data_class=None, region=None)
    policy = replace(policy, q_source="prior")
    decision = decide(features, catalog, policy, cases.ALL_ACTIVE, live, "s")
    inputs = json.loads(json.dumps(decision.inputs))
    for name in ("latencies", "empirical"):
        del inputs[name]
    for name in ("tenant_id", "data_class", "region"):
        del inputs["features"][name]
    for name in ("q_source", "exploration_share"):
        del inputs["policy"][name]
    assert told(replay(inputs)) == told(decision)


@steady
@given(cases.catalogs, cases.requests, cases.exploring, cases.evidence, st.sampled_from(["a", "b"]))
def test_no_dial_position_moves_a_decision_with_an_explicit_floor(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, seen: Evidence, seed: str
) -> None:
    explicit = replace(features, min_quality=Decimal("0.6"))
    decisions = [
        decide(
            replace(explicit, routing_preference=position),
            catalog,
            policy,
            cases.ALL_ACTIVE,
            True,
            seed,
            seen,
        )
        for position in ("balanced", "quality", "cost")
    ]
    assert len({(d.chosen, d.fallbacks, d.outcomes, d.rule, d.min_quality) for d in decisions}) == 1


class TestEmpirical:
    def test_measured_quality_alone_records_no_latency_and_the_reverse(self) -> None:
        found = Evidence({"gpt-5-5": 5}, {"gpt-5-5": Empirical(Decimal(1), Decimal(1), 9)})
        measured = decided(asked(), policy=CallerPolicy(q_source="empirical"), evidence=found)
        timed = decided(asked(latency_cap_ms=9), evidence=found)
        assert (list(measured.inputs["latencies"]), list(timed.inputs["latencies"])) == (
            [],
            ["gpt-5-5"],
        )
        assert (list(measured.inputs["empirical"]), list(timed.inputs["empirical"])) == (
            ["gpt-5-5"],
            [],
        )

    def test_does_not_enrol_a_model_without_a_prior(self) -> None:
        bare = cases.model("bare", "1", "1", None)
        found = Evidence(empirical={"bare": Empirical(Decimal(1), Decimal(1), 9)})
        policy = CallerPolicy(q_source="empirical")
        decision = decided(asked(), Catalog.of([bare]), policy, evidence=found)
        assert decision.outcomes[0].drop_reason == "not_enrolled_no_q_prior"

    def test_a_veto_is_named_by_the_quality_that_counts(self) -> None:
        veto = cases.model("veto", "0.1", "0.1", "0.2", verdict="VETO")
        catalog = Catalog.of([*ANCHORS.candidates, veto])
        found = Evidence(empirical={"veto": Empirical(Decimal("0.9"), Decimal("0.8"), 9)})
        by_prior = decided(asked(), catalog, evidence=found)
        measured = decided(asked(), catalog, CallerPolicy(q_source="empirical"), evidence=found)
        assert by_prior.rule is Rule.CHEAPEST
        assert measured.rule is Rule.VETO_APPLIED


def numbers(value: Any) -> list[float]:
    """The floats in a JSON value."""
    if isinstance(value, dict):
        return [found for each in value.values() for found in numbers(each)]
    if isinstance(value, list | tuple):
        return [found for each in value for found in numbers(each)]
    return [value] if isinstance(value, float) else []


@steady
@given(cases.catalogs, cases.requests, cases.exploring, cases.evidence, seeds)
def test_no_float_is_in_a_decision(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, seen: Evidence, seed: str
) -> None:
    decision = decide(features, catalog, policy, cases.ALL_ACTIVE, True, seed, seen)
    assert numbers([decision.inputs, columns(decision), *map(tuple, decision.outcomes)]) == []


@pytest.mark.parametrize(
    "module",
    [candidate, conditions, evidence, exploration, pricing, routing, task_type, task_words],
)
def test_no_float_is_in_the_rule(module: Any) -> None:
    """No decimal point outside of a text, no `float`, and no division that makes one."""
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float))
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
        assert not (isinstance(node, ast.Name) and node.id == "float")
