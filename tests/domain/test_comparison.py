"""The report: a hidden difference is found where there is support, refused where there is none."""

import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.catalog import load_catalog
from shared.domain.candidate import Catalog
from shared.domain.comparison import (
    Chooser,
    Compared,
    Gathered,
    Interval,
    Method,
    Recorded,
    Verdict,
    difference,
    held_out,
    mean,
    overall,
)
from shared.domain.evidence import Empirical, Evidence
from shared.domain.learning import NO_EVIDENCE, Terms, unit_weight
from shared.domain.learning_report import as_json, as_text
from shared.domain.routing import decide
from shared.domain.routing_policy import CallerPolicy, RequestFeatures
from tests.bench.learning import (
    CALLS,
    HIDDEN,
    NOTHING_HIDDEN,
    POLICY,
    TERMS,
    Kind,
    a_day,
    the_report,
)
from tests.domain import routing_cases as cases
from tests.domain.routing_cases import steady

CATALOG = load_catalog()
ONE = unit_weight(Decimal(1))

seeds = st.uuids(version=4).map(str)


def report(
    kinds: tuple[Kind, ...], calls: int, seed: int = 7, terms: Terms = TERMS
) -> tuple[Gathered, list[Compared]]:
    day = list(a_day(CATALOG, seed, calls, kinds))
    return the_report(day, {CATALOG.hash: CATALOG.to_json()}, terms)


@pytest.fixture(scope="module")
def hidden() -> tuple[Gathered, list[Compared]]:
    return report(HIDDEN, CALLS)


def test_a_hidden_difference_is_found_where_there_is_support(
    hidden: tuple[Gathered, list[Compared]],
) -> None:
    found, judged = hidden
    (code,) = [each for each in judged if each.switch.task_type == "code"]
    assert (code.verdict, code.method) == (Verdict.BETTER, Method.DRAWN)
    assert code.reward.lower <= Decimal("0.31") <= code.reward.upper
    assert overall(judged).is_supported
    text = as_text(found, judged, 50)
    assert text.startswith("**Supported.**")
    assert as_json(found, judged, 50)["supported"] is True


def test_it_is_refused_where_there_is_none(hidden: tuple[Gathered, list[Compared]]) -> None:
    found, judged = hidden
    (rare,) = [each for each in judged if each.switch.task_type == "tool_use"]
    assert rare.verdict is Verdict.TOO_FEW
    assert "50 of each are needed" in as_text(found, judged, 50)


def test_answers_that_cannot_be_checked_change_nothing(
    hidden: tuple[Gathered, list[Compared]],
) -> None:
    found, judged = hidden
    assert "chat" not in found.qualities
    assert not [each for each in judged if each.switch.task_type == "chat"]


@pytest.mark.parametrize("seed", range(2))
def test_where_nothing_is_hidden_nothing_is_found(seed: int) -> None:
    found, judged = report(NOTHING_HIDDEN, 2_500, seed)
    assert Verdict.BETTER not in {each.verdict for each in judged}
    assert "**Supported" not in as_text(found, judged, 50)


def test_a_short_day_says_that_there_is_too_little() -> None:
    found, judged = report(HIDDEN, 150)
    assert judged == []
    assert as_text(found, judged, 50).startswith("**Not supported: too few.**")
    assert as_text(*report(HIDDEN, 0), 50).startswith("**Not supported: too few.**")


def test_without_exploration_the_same_cell_has_to_do_and_the_report_says_so() -> None:
    """Here some calls went to the better model because their callers asked for more."""
    day = []
    for call in a_day(CATALOG, 7, 6_500, (Kind("code", 1, 0.62, 0.93),)):
        policy = {**call.terms["policy"], "exploration_share": "0"}
        day.append(replace(call, terms={**call.terms, "policy": policy}))
    found, judged = the_report(day, {CATALOG.hash: CATALOG.to_json()})
    (code,) = judged
    assert (code.method, code.verdict) == (Method.MATCHED, Verdict.BETTER)
    assert "nobody drew which calls each model got" in as_text(found, judged, 50)


# What a policy that counts on observed qualities had: the prior's own choice is below the floor.
OBSERVED = Evidence(empirical={"gemini-3-1-pro": Empirical(Decimal("0.6"), Decimal("0.5"), 900)})
EMPIRICAL = replace(POLICY, q_source="empirical", exploration_share=Decimal("0.2"))


def an_empirical_day(calls: int, worst: float, others: float) -> list[Recorded]:
    kinds = (Kind("code", 1, worst, others),)
    return list(a_day(CATALOG, 7, calls, kinds, EMPIRICAL, OBSERVED))


def test_an_empirical_policy_is_compared_as_it_was_in_force() -> None:
    day = an_empirical_day(3_500, 0.62, 0.93)
    (code,) = the_report(day, {CATALOG.hash: CATALOG.to_json()})[1]
    assert code.switch.old != "gemini-3-1-pro"  # what the priors alone would choose
    assert code.switch.old == Counter(call.chosen for call in day).most_common(1)[0][0]
    assert "gemini-3-1-pro" not in {call.chosen for call in day}
    assert (code.method, code.verdict) == (Method.DRAWN, Verdict.BETTER)
    assert code.reward.lower <= Decimal("0.31") <= code.reward.upper
    others = len(Chooser({CATALOG.hash: CATALOG.to_json()}).choice(day[0]).ranked) - 1
    held = [call for call in day if held_out(call.inference_id, "1", 50)]
    drawn = sum(call.chosen == code.switch.new for call in held)
    weight = Decimal(others) / Decimal("0.2")
    assert code.switch.drawn_new.number == weight * drawn


def test_where_an_empirical_policy_chose_well_nothing_changes() -> None:
    found, judged = the_report(an_empirical_day(600, 0.93, 0.93), {CATALOG.hash: CATALOG.to_json()})
    assert judged == []
    assert found.same == found.held


@settings(max_examples=30, deadline=None)
@given(cases.catalogs, cases.requests, cases.exploring, cases.evidence, seeds)
def test_the_old_choice_is_the_recorded_decision_less_the_exploration(
    catalog: Catalog, features: RequestFeatures, policy: CallerPolicy, seen: Evidence, seed: str
) -> None:
    decision = decide(features, catalog, policy, cases.ALL_ACTIVE, False, seed, seen)
    chosen = decision.chosen.slug if decision.chosen else ""
    terms = json.loads(json.dumps(decision.terms()))
    cell = (features.task_type, "balanced", chosen, chosen, (), 1, True, 0)
    call = Recorded(seed, *cell, terms, catalog.hash)
    old = Chooser({catalog.hash: catalog.to_json()}).choice(call)
    assert list(old.ranked) == [o.candidate.slug for o in decision.outcomes if o.rank]
    assert old.slug == (old.ranked[0] if old.ranked else None)
    assert decision.explored == bool(chosen and chosen != old.slug)


@pytest.mark.parametrize("what", ["planned anew", "quoted"])
def test_what_was_not_left_to_chance_does_not_count_as_drawn(what: str) -> None:
    """Whichever of the models they went to, and although all other calls explore."""

    def conditional(call: Recorded) -> Recorded:
        if what == "quoted":
            return replace(call, quoted=True)
        still = {**call.terms["policy"], "exploration_share": "0"}
        return replace(call, terms={**call.terms, "policy": still})

    day = an_empirical_day(1_200, 0.62, 0.93)
    mixed = [conditional(call) if number % 2 else call for number, call in enumerate(day)]
    (code,) = the_report(mixed, {CATALOG.hash: CATALOG.to_json()})[1]
    left = [call for call in day[::2] if held_out(call.inference_id, "1", 50)]
    for model, drawn in (
        (code.switch.old, code.switch.drawn_old),
        (code.switch.new, code.switch.drawn_new),
    ):
        calls = sum(call.chosen == model for call in left)
        assert calls
        assert drawn.effective == calls  # all of one weight


def test_the_same_day_makes_the_same_report() -> None:
    kinds = (Kind("code", 1, 0.6, 0.9),)
    assert as_text(*report(kinds, 500), 50) == as_text(*report(kinds, 500), 50)


@steady
@given(st.lists(st.integers(), max_size=10), st.text(max_size=5))
def test_a_call_is_held_out_by_its_id_and_the_seed_alone(ids: list[object], seed: str) -> None:
    split = [held_out(str(each), seed, 50) for each in ids]
    assert split == [held_out(str(each), seed, 50) for each in ids]
    assert not any(held_out(str(each), seed, 0) for each in ids)
    assert all(held_out(str(each), seed, 100) for each in ids)
    for each in ids:  # a larger share only adds
        assert held_out(str(each), seed, 30) <= held_out(str(each), seed, 60)


def test_about_as_many_are_held_out_as_were_asked_for_whatever_the_seed() -> None:
    for seed in ("1", "2", "another"):
        held = sum(held_out(str(number), seed, 50) for number in range(4_000))
        assert 1_850 < held < 2_150
    assert [held_out(str(n), "1", 50) for n in range(99)] != [
        held_out(str(n), "2", 50) for n in range(99)
    ]


def test_a_difference_without_answers_can_be_anything() -> None:
    some = NO_EVIDENCE.plus(ONE, 100, 90)
    assert difference(NO_EVIDENCE, some) == Interval(Decimal(0), Decimal(-1), Decimal(1))
    lower, upper = difference(some, NO_EVIDENCE.plus(ONE, 100, 70))[1:]
    assert lower < Decimal("-0.2") < upper < 0


def test_uneven_weights_widen_a_difference() -> None:
    old, even = NO_EVIDENCE.plus(ONE, 200, 100), NO_EVIDENCE.plus(ONE, 200, 160)
    uneven = NO_EVIDENCE.plus(ONE, 100, 80).plus(9 * ONE, 100, 80)
    assert difference(old, even).value == difference(old, uneven).value
    assert difference(old, even).lower > difference(old, uneven).lower


def test_means() -> None:
    assert mean([]) == mean([0]) == Interval(*[Decimal(0)] * 3)
    assert mean([5, 5, 5]) == Interval(*[Decimal(5)] * 3)
    value, lower, upper = mean([0, 10] * 50)
    assert value == 5
    # 2.575829 standard errors of 0.5025
    assert (round(lower, 2), round(upper, 2)) == (Decimal("3.71"), Decimal("6.29"))
