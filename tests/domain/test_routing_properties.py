"""What holds of the rule for every catalogue, request and policy."""

import json
import random
from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.audit import canonical_json
from shared.domain.candidate import Candidate, Catalog
from shared.domain.capture import columns
from shared.domain.conditions import Conditions
from shared.domain.routing import Decision, DropReason, Rule, decide, replay
from shared.domain.routing_policy import CallerPolicy, RequestFeatures, resolve_floor
from tests.domain.routing_cases import (
    TENANTS,
    active_sets,
    candidates,
    catalogs,
    policies,
    qualities,
    requests,
    steady,
)


def told(decision: Decision) -> str:
    """All that a decision says, as the bytes it is stored in."""
    return canonical_json(
        {
            "chosen": decision.chosen and decision.chosen.slug,
            "fallbacks": [c.slug for c in decision.fallbacks],
            "outcomes": [
                (o.candidate.slug, o.m_allowed, o.projected, o.drop_reason, o.rank)
                for o in decision.outcomes
            ],
            "rule": decision.rule,
            "min_quality": str(decision.min_quality),
            "source": decision.floor_source,
            "cell": decision.cell,
            "cost": str(decision.projected_cost),
            "stored": columns(decision),
            "inputs": decision.inputs,
        }
    )


@steady
@given(catalogs, requests, policies, active_sets, st.booleans(), st.randoms())
def test_order_of_the_catalogue_does_not_matter(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    active: frozenset[str],
    live: bool,
    dice: random.Random,
) -> None:
    shuffled = list(catalog.candidates)
    dice.shuffle(shuffled)
    one = decide(features, catalog, policy, active, live, "s")
    other = decide(features, Catalog.of(shuffled), policy, active, live, "s")
    assert told(one) == told(other)


@steady
@given(catalogs, requests, policies, active_sets, st.booleans())
def test_replay_of_the_stored_inputs_gives_the_same_bytes(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    active: frozenset[str],
    live: bool,
) -> None:
    decision = decide(features, catalog, policy, active, live, "s")
    again = replay(json.loads(json.dumps(decision.inputs)))
    assert told(again) == told(decision)
    assert again.catalog.hash == catalog.hash


@steady
@given(catalogs, requests, policies, active_sets, st.booleans())
def test_every_candidate_has_exactly_one_fate(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    active: frozenset[str],
    live: bool,
) -> None:
    decision = decide(features, catalog, policy, active, live, "s")
    assert sorted(o.candidate.slug for o in decision.outcomes) == [
        c.slug for c in catalog.candidates
    ]
    ranks = [o.rank for o in decision.outcomes if o.drop_reason is None]
    assert ranks == list(range(1, len(ranks) + 1))
    assert all(o.rank is None for o in decision.outcomes if o.drop_reason is not None)
    assert (decision.chosen is None) == (
        decision.rule in (Rule.NONE_CLEARS_FLOOR, Rule.NONE_ENROLLED)
    )


@steady
@given(catalogs, requests, policies, active_sets, st.booleans())
def test_the_chosen_passes_every_gate_and_none_that_passes_is_cheaper(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    active: frozenset[str],
    live: bool,
) -> None:
    decision = decide(features, catalog, policy, active, live, "s")
    chosen = decision.chosen
    if chosen is None:
        return
    assert chosen.provider in active
    assert chosen.q_prior is not None
    assert chosen.q_prior >= decision.min_quality
    assert features.capabilities <= chosen.capabilities
    assert chosen.verdict in ("PASS", "CONDITIONAL")
    if chosen.verdict == "CONDITIONAL":
        asks = chosen.conditions or Conditions(opt_in=True)
        assert asks.data_class is None or features.data_class in asks.data_class
        assert asks.region is None or features.region in asks.region
        assert asks.tenant is None or features.tenant_id == TENANTS[0]  # by its id or its seal
        names = {chosen.slug, chosen.brand, chosen.provider_model_id}
        assert not asks.opt_in or features.allow & names
    assert not features.deny & {chosen.slug, chosen.brand, chosen.provider_model_id}
    cost = decision.projected_cost
    assert cost is not None
    if features.budget_cap_usd is not None:
        assert cost <= features.budget_cap_usd
    for outcome in decision.outcomes:
        if outcome.drop_reason is None:
            assert outcome.projected_cost is not None
            assert outcome.projected_cost >= cost


@steady
@given(catalogs, requests, policies, active_sets, candidates)
def test_a_dominated_candidate_changes_nothing(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    active: frozenset[str],
    other: Candidate,
) -> None:
    """One that is dearer and no better than the chosen never takes its place."""
    decision = decide(features, catalog, policy, active, False, "s")
    chosen = decision.chosen
    if chosen is None:
        return
    assert chosen.price_in is not None
    assert chosen.price_out is not None
    worse = replace(
        other,
        slug="zz",
        provider_model_id="zz-id",
        price_in=chosen.price_in + 1,
        price_out=chosen.price_out + 1,
        max_output_tokens=chosen.max_output_tokens,
        q_prior=chosen.q_prior,
    )
    again = decide(features, Catalog.of([*catalog.candidates, worse]), policy, active, False, "s")
    assert again.chosen == chosen
    assert again.rule is decision.rule
    assert again.projected_cost == decision.projected_cost
    assert again.cell == decision.cell
    assert [c for c in again.fallbacks if c.slug != "zz"] == list(decision.fallbacks)
    fates = [(o.candidate, o.drop_reason) for o in again.outcomes if o.candidate.slug != "zz"]
    assert fates == [(o.candidate, o.drop_reason) for o in decision.outcomes]


@steady
@given(catalogs, requests, policies, active_sets, qualities, qualities)
def test_a_higher_floor_never_lowers_the_quality_or_the_price(
    catalog: Catalog,
    features: RequestFeatures,
    policy: CallerPolicy,
    active: frozenset[str],
    one: Decimal,
    other: Decimal,
) -> None:
    low, high = sorted((one, other))
    below = decide(replace(features, min_quality=low), catalog, policy, active, False, "s")
    above = decide(replace(features, min_quality=high), catalog, policy, active, False, "s")
    if above.chosen is None:
        return
    assert below.chosen is not None
    assert below.projected_cost is not None
    assert above.projected_cost is not None
    assert above.projected_cost >= below.projected_cost
    assert above.chosen.q_prior is not None
    assert above.chosen.q_prior >= high
    assert above.chosen.q_nano >= below.chosen.q_nano


@steady
@given(catalogs, requests, policies, active_sets)
def test_balanced_changes_nothing_live_or_not(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, active: frozenset[str]
) -> None:
    balanced = replace(features, routing_preference="balanced")
    off = decide(balanced, catalog, policy, active, False, "s")
    on = decide(balanced, catalog, policy, active, True, "s")
    assert told(on).replace('"preference_live":true', '"preference_live":false') == told(off)


@steady
@given(requests, policies, qualities)
def test_the_dial_never_overrides_an_explicit_floor(
    features: RequestFeatures, policy: CallerPolicy, floor: Decimal
) -> None:
    explicit = replace(features, min_quality=floor)
    assert resolve_floor(explicit, policy, True) == (floor, "request")


@steady
@given(requests, policies)
def test_the_dial_moves_a_floor_one_way_only(
    features: RequestFeatures, policy: CallerPolicy
) -> None:
    unasked = replace(features, min_quality=None)
    still, _ = resolve_floor(unasked, policy, False)
    better, _ = resolve_floor(replace(unasked, routing_preference="quality"), policy, True)
    cheaper, _ = resolve_floor(replace(unasked, routing_preference="cost"), policy, True)
    assert cheaper <= still <= better
    assert better - still <= Decimal("0.10")
    assert still - cheaper <= Decimal("0.10")


@steady
@given(catalogs, requests, policies, active_sets)
def test_only_what_is_not_allowed_is_dropped_as_vetoed(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, active: frozenset[str]
) -> None:
    for outcome in decide(features, catalog, policy, active, False, "s").outcomes:
        if outcome.drop_reason is DropReason.VETO:
            assert not outcome.m_allowed
        if outcome.drop_reason is None:
            assert outcome.m_allowed
