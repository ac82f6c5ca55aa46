"""What another version would have chosen, worked out by the rule on what was recorded."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from shared.domain.policy_change import Comparison, decide_under
from shared.domain.policy_version import BUILT_IN, PolicyVersion
from shared.domain.routing import Decision
from shared.domain.routing_policy import CallerPolicy, RequestFeatures, caller_policy
from tests.domain.routing_cases import ANCHORS, decided

FLAT, TASK_FLOORS = BUILT_IN
FEATURES = RequestFeatures("code", 1000, 1024)


def recorded(features: RequestFeatures = FEATURES, policy: CallerPolicy | None = None) -> Decision:
    return decided(features, policy=policy or CallerPolicy())


def under(version: PolicyVersion, decision: Decision, tokens: int | None = None) -> Decision:
    return decide_under(version, decision.terms(), ANCHORS, tokens)


def test_under_its_own_version_a_decision_is_what_it_was() -> None:
    for version in BUILT_IN:
        policy = caller_policy({"policy_version": version.version}, None)
        decision = recorded(policy=policy)
        assert under(version, decision) == decision


def test_another_version_moves_what_it_gives_a_floor_and_nothing_else() -> None:
    after = under(TASK_FLOORS, recorded())
    assert (after.chosen and after.chosen.slug, after.min_quality) == (
        "gemini-3-1-pro",
        Decimal("0.78"),
    )
    named = recorded(replace(FEATURES, min_quality=Decimal("0.6")))
    assert under(TASK_FLOORS, named).chosen == named.chosen
    of_tenant = recorded(policy=CallerPolicy(tenant_min_quality=Decimal("0.6")))
    assert under(TASK_FLOORS, of_tenant).chosen == of_tenant.chosen


def test_tokens_left_to_the_policy_are_those_of_the_other_version() -> None:
    longer = PolicyVersion("longer", default_output_tokens=2048)
    for asked, tenants, expected in ((1024, None, 2048), (1024, 300, 300), (500, 300, 500)):
        features = replace(FEATURES, reserved_output_tokens=asked)
        after = under(longer, recorded(features), tenants)
        assert after.features.reserved_output_tokens == expected


def test_a_comparison_counts_what_changes_and_what_it_costs() -> None:
    strict = PolicyVersion("strict", floors={"code": Decimal("0.99"), "chat": Decimal("0.78")})
    comparison = Comparison()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("a", {"task_type": "chat"}),
        ("b", {"task_type": "chat", "min_quality": Decimal("0.5")}),
        ("c", {"task_type": "code"}),
    ]
    changed = []
    for name, about in calls:
        before = recorded(replace(FEATURES, **about))
        change = comparison.add(name, before, under(strict, before))
        changed += [] if change is None else [change.to_json()]
    assert [each["inference_id"] for each in changed] == ["a", "c"]
    told = comparison.to_json()
    assert {name: told[name] for name in ("calls", "changed", "refused", "answered")} == {
        "calls": 3,
        "changed": 2,
        "refused": 1,
        "answered": 0,
    }
    # by hand, 1,000 tokens in and 1,024 out: mistral 0.008144, gemini 0.01149; not the refused one
    assert told["projected_usd"] == {
        "before": "0.016288000",
        "after": "0.019634000",
        "difference": "0.003346000",
        "percent": "20.54",
    }
    assert told["moves"] == [
        {"from": "mistral-large-3", "to": "gemini-3-1-pro", "calls": 1},
        {"from": "mistral-large-3", "to": "refused", "calls": 1},
    ]
    assert told["by_task_type"]["code"]["refused"] == 1
    assert [each["inference_id"] for each in told["examples"]] == ["a", "c"]
    assert changed[1]["projected_usd_after"] is None


def test_examples_leave_room_for_rare_moves() -> None:
    strict = PolicyVersion("strict", floors={"code": Decimal("0.99"), "chat": Decimal("0.78")})
    comparison = Comparison()
    for number in range(50):
        before = recorded(replace(FEATURES, task_type="code" if number == 40 else "chat"))
        comparison.add(str(number), before, under(strict, before))
    assert {each.models[1] for each in comparison.examples} == {"gemini-3-1-pro", "refused"}
    assert len(comparison.examples) == 6
