"""The rule, decision by decision. The expected values were worked by hand from the contract."""

from decimal import Decimal
from typing import Any

import pytest

from shared.domain.candidate import Catalog
from shared.domain.inference import Failure
from shared.domain.pinning import pinned
from shared.domain.routing import RULESET_HASH, DropReason, Rule, refusal
from shared.domain.routing_policy import CallerPolicy, caller_policy, preference
from tests.domain.routing_cases import ALL_ACTIVE, ANCHORS, asked, decided, model

TASK_FLOORS = CallerPolicy(version="task-floors-1")


def d(text: str) -> Decimal:
    return Decimal(text)


# (what is asked, policy, chosen, rule, projected cost), all of the anchors active.
# At 1,000 in and 1,000 out: mistral .008, gemini .01125, grok and gpt .02, opus .09.
GOLDEN: list[tuple[dict[str, Any], CallerPolicy, str | None, Rule, str | None]] = [
    ({}, CallerPolicy(), "mistral-large-3", Rule.CHEAPEST, "0.008000000"),
    ({"min_quality": d("0.74")}, CallerPolicy(), "mistral-large-3", Rule.CHEAPEST, "0.008"),
    ({"min_quality": d("0.75")}, CallerPolicy(), "gemini-3-1-pro", Rule.CHEAPEST, "0.01125"),
    ({"min_quality": d("0.85")}, CallerPolicy(), "gemini-3-1-pro", Rule.CHEAPEST, "0.01125"),
    ({"min_quality": d("0.88")}, CallerPolicy(), "gpt-5-5", Rule.CHEAPEST, "0.02"),
    ({"min_quality": d("0.91")}, CallerPolicy(), "claude-opus-4-7", Rule.CHEAPEST, "0.09"),
    ({"min_quality": d("0.96")}, CallerPolicy(), None, Rule.NONE_CLEARS_FLOOR, None),
    # long in and short out, gemini's cheaper input wins: .1255 against .2006
    (
        {"input_tokens": 99_900, "output_tokens": 100, "min_quality": d("0")},
        CallerPolicy(),
        "gemini-3-1-pro",
        Rule.CHEAPEST,
        "0.125875",
    ),
    # a tie of price goes to the higher quality, 0.90 before 0.86
    ({"deny": frozenset({"mistral", "google"})}, CallerPolicy(), "gpt-5-5", Rule.CHEAPEST, "0.02"),
    ({"budget_cap_usd": d("0.008")}, CallerPolicy(), "mistral-large-3", Rule.CHEAPEST, "0.008"),
    ({"budget_cap_usd": d("0.007999999")}, CallerPolicy(), None, Rule.NONE_CLEARS_FLOOR, None),
    ({"allow": frozenset({"grok-4"})}, CallerPolicy(), "grok-4", Rule.CHEAPEST, "0.02"),
    ({"allow": frozenset({"nobody"})}, CallerPolicy(), None, Rule.NONE_ENROLLED, None),
    ({"capabilities": frozenset({"audio"})}, CallerPolicy(), None, Rule.NONE_ENROLLED, None),
    ({"input_tokens": 99_001}, CallerPolicy(), None, Rule.NONE_ENROLLED, None),
    # the model's own limit cuts what is reserved: 10,000 of the 50,000 asked for
    ({"output_tokens": 50_000}, CallerPolicy(), "mistral-large-3", Rule.CHEAPEST, "0.062"),
    ({}, CallerPolicy(tenant_min_quality=d("0.85")), "gemini-3-1-pro", Rule.CHEAPEST, "0.01125"),
    (
        {},
        CallerPolicy(agent_min_quality=d("0.9"), tenant_min_quality=d("0.5")),
        "gpt-5-5",
        Rule.CHEAPEST,
        "0.02",
    ),
    (
        {"min_quality": d("0.1")},
        CallerPolicy(agent_min_quality=d("0.9")),
        "mistral-large-3",
        Rule.CHEAPEST,
        "0.008",
    ),
    ({"task_type": "reasoning"}, TASK_FLOORS, "gpt-5-5", Rule.CHEAPEST, "0.02"),
    ({"task_type": "code"}, TASK_FLOORS, "gemini-3-1-pro", Rule.CHEAPEST, "0.01125"),
    ({"task_type": "general"}, TASK_FLOORS, "mistral-large-3", Rule.CHEAPEST, "0.008"),
]


@pytest.mark.parametrize(("wanted", "policy", "chosen", "rule", "cost"), GOLDEN)
def test_golden(
    wanted: dict[str, Any], policy: CallerPolicy, chosen: str | None, rule: Rule, cost: str | None
) -> None:
    decision = decided(asked(**wanted), policy=policy)
    assert (decision.chosen.slug if decision.chosen else None) == chosen
    assert decision.rule is rule
    assert decision.projected_cost == (None if cost is None else d(cost))


def test_the_rest_in_order_is_the_fallback_list() -> None:
    decision = decided(asked())
    assert [c.slug for c in decision.fallbacks] == [
        "gemini-3-1-pro",
        "gpt-5-5",
        "grok-4",
        "claude-opus-4-7",
    ]
    assert [o.rank for o in decision.outcomes] == [1, 2, 3, 4, 5]


def test_equal_price_and_quality_goes_by_slug() -> None:
    twins = Catalog.of([model("b", "1", "1", "0.9"), model("a", "1", "1", "0.9")])
    decision = decided(asked(), twins)
    assert decision.chosen is not None
    assert decision.chosen.slug == "a"


@pytest.mark.parametrize(
    ("field", "value", "wanted", "reason"),
    [
        ("provider", "nowhere", {}, DropReason.NO_PROVIDER),
        ("price_in", None, {}, DropReason.NO_PRICE),
        ("q_prior", None, {}, DropReason.NO_Q_PRIOR),
        ("verdict", "VETO", {}, DropReason.VETO),
        ("verdict", None, {}, DropReason.VETO),
        ("verdict", "CONDITIONAL", {}, DropReason.VETO),
        ("verdict", "CONDITIONAL", {"allow": frozenset({"gpt-5-5"})}, DropReason.VETO),
        ("verdict", "CONDITIONAL", {"allow": frozenset({"odd"})}, None),
        ("verdict", "CONDITIONAL", {"allow": frozenset({"openai"})}, None),
        ("capabilities", [], {"capabilities": frozenset({"tools"})}, DropReason.MISSING_CAPABILITY),
        ("context_window", 1_999, {}, DropReason.MISSING_CAPABILITY),
        ("context_window", 2_000, {}, None),
        ("slug", "odd", {"deny": frozenset({"odd-id"})}, DropReason.DENIED),
        ("slug", "odd", {"allow": frozenset({"google"})}, DropReason.DENIED),
        ("q_prior", "0.49", {}, DropReason.BELOW_FLOOR),
        ("price_in", "30", {"budget_cap_usd": d("0.03")}, DropReason.OVER_BUDGET),
        ("expected_latency_ms", 501, {"latency_cap_ms": 500}, DropReason.TOO_SLOW),
        ("expected_latency_ms", 500, {"latency_cap_ms": 500}, None),
        ("expected_latency_ms", None, {"latency_cap_ms": 1}, None),
    ],
)
def test_drop_reasons(
    field: str, value: object, wanted: dict[str, Any], reason: DropReason | None
) -> None:
    odd = model("odd", "1", "1", "0.9", **{field: value}) if field not in _NAMED else None
    if odd is None:
        prices: dict[str, Any] = {"price_in": "1", "price_out": "1", "q": "0.9"}
        prices |= {{"q_prior": "q"}.get(field, field): value} if field != "slug" else {}
        odd = model("odd", **prices)
    decision = decided(asked(**wanted), Catalog.of([*ANCHORS.candidates, odd]))
    [fate] = [o for o in decision.outcomes if o.candidate.slug == "odd"]
    assert fate.drop_reason is reason
    assert (fate.rank is None) == (reason is not None)


_NAMED = frozenset({"slug", "price_in", "q_prior"})


def test_the_first_reason_that_applies_is_told() -> None:
    worst = model("odd", None, None, None, provider="nowhere", verdict="VETO", capabilities=[])
    decision = decided(asked(min_quality=d("1")), Catalog.of([worst]))
    assert decision.outcomes[0].drop_reason is DropReason.NO_PROVIDER
    assert decision.rule is Rule.NONE_ENROLLED


class TestVeto:
    def test_is_named_where_it_changed_the_answer(self) -> None:
        cheap = model("cheap", "0.1", "0.1", "0.99", verdict="VETO")
        decision = decided(asked(), Catalog.of([*ANCHORS.candidates, cheap]))
        assert decision.rule is Rule.VETO_APPLIED
        assert decision.chosen is not None
        assert decision.chosen.slug == "mistral-large-3"

    @pytest.mark.parametrize(
        ("other", "wanted"),
        [
            ({"price_in": "90"}, {}),
            ({"q": "0.4"}, {}),
            ({"provider": "nowhere"}, {}),
            ({}, {"deny": frozenset({"cheap"})}),
            ({"context_window": 100}, {}),
        ],
    )
    def test_is_not_named_where_the_model_would_have_lost(
        self, other: dict[str, Any], wanted: dict[str, Any]
    ) -> None:
        prices: dict[str, Any] = {"price_in": "0.1", "price_out": "0.1", "q": "0.99"}
        cheap = model("cheap", **(prices | other), verdict="VETO")
        decision = decided(asked(**wanted), Catalog.of([*ANCHORS.candidates, cheap]))
        assert decision.rule is Rule.CHEAPEST


class TestPreference:
    @pytest.mark.parametrize(
        ("dial", "default", "floor"),
        [
            ("quality", "0.50", "0.60"),
            ("quality", "0.80", "0.85"),
            ("quality", "0.90", "0.90"),
            ("quality", "0.30", "0.40"),
            ("cost", "0.85", "0.75"),
            ("cost", "0.55", "0.50"),
            ("cost", "0.50", "0.50"),
            ("cost", "0.30", "0.30"),
            ("balanced", "0.70", "0.70"),
        ],
    )
    def test_moves_a_default_floor(self, dial: str, default: str, floor: str) -> None:
        policy = CallerPolicy(tenant_min_quality=d(default))
        live = decided(asked(routing_preference=dial), policy=policy, preference_live=True)
        assert live.min_quality == d(floor)
        assert live.cell.endswith(f":{dial}")
        gated = decided(asked(routing_preference=dial), policy=policy)
        assert gated.min_quality == d(default)
        assert gated.cell.endswith(":balanced")

    def test_never_moves_an_explicit_floor(self) -> None:
        features = asked(routing_preference="quality", min_quality=d("0.55"))
        assert decided(features, preference_live=True).min_quality == d("0.55")

    def test_an_unknown_word_is_balanced(self) -> None:
        assert [preference(word) for word in (None, "fast", "QUALITY", "cost")] == [
            "balanced",
            "balanced",
            "balanced",
            "cost",
        ]


def test_cell() -> None:
    assert decided(asked(task_type="code")).cell == "code:mistral-large-3:balanced"
    assert decided(asked(min_quality=d("1"))).cell == "general:none:balanced"


def test_ruleset_hash_names_this_rule() -> None:
    # Changes with the rule's description, and with nothing else: bump `version` knowingly.
    assert RULESET_HASH == "eb2a84051199eb23"


def test_refusals_say_what_to_do() -> None:
    floor = refusal(decided(asked(min_quality=d("0.96"))))
    assert (floor.status, floor.code) == (422, "no_candidate_clears_floor")
    assert "0.96" in floor.message
    nobody = refusal(decided(asked(), active=frozenset()))
    assert (nobody.status, nobody.code) == (422, "no_candidate_enrolled")
    for failure in (floor, nobody):
        assert failure.detail["model"] == "ainfera-inference"
        assert failure.detail["provider"] is None
        assert failure.detail["hint"] in failure.message


class TestPinned:
    @pytest.mark.parametrize("name", ["gpt-5-5", "gpt-5-5-id", "gpt-5-5-id-20260423"])
    def test_by_slug_vendor_id_or_dated_snapshot(self, name: str) -> None:
        found = pinned(name, ANCHORS, asked(), ALL_ACTIVE)
        assert found is ANCHORS.names["gpt-5-5"]

    @pytest.mark.parametrize(
        ("other", "features", "code", "says"),
        [
            ({"slug": "else"}, asked(), "model_unavailable", "not in the catalogue"),
            ({"verdict": "VETO"}, asked(), "model_unavailable", "not allowed"),
            ({"verdict": None}, asked(), "model_unavailable", "not allowed"),
            ({"price_in": None}, asked(), "model_unavailable", "no price"),
            ({"provider": "nowhere"}, asked(), "model_unavailable", "not active"),
            (
                {"capabilities": ["vision"]},
                asked(capabilities=frozenset({"tools", "thinking"})),
                "tools_not_supported_by_backend",
                "thinking, tools",
            ),
            (
                {"capabilities": ["tools"]},
                asked(capabilities=frozenset({"vision"})),
                "model_unavailable",
                "vision",
            ),
        ],
    )
    def test_refusals(self, other: dict[str, Any], features: Any, code: str, says: str) -> None:
        fields: dict[str, Any] = {"slug": "m", "price_in": "1", "price_out": "1", "q": "0.9"}
        failure = pinned("m", Catalog.of([model(**(fields | other))]), features, ALL_ACTIVE)
        assert isinstance(failure, Failure)
        assert (failure.status, failure.code) == (422, code)
        assert failure.detail["model"] == "m"
        assert says in failure.message
        assert failure.detail["hint"]

    def test_pinning_is_opting_in(self) -> None:
        catalog = Catalog.of([model("m", "1", "1", None, verdict="CONDITIONAL")])
        assert pinned("m", catalog, asked(), ALL_ACTIVE) is catalog.candidates[0]


def test_caller_policy_reads_the_tenants_words() -> None:
    stored = {"min_quality": "strong", "policy_version": "task-floors-1"}
    policy = caller_policy(stored, d("0.6"))
    assert policy == CallerPolicy(d("0.6"), d("0.70"), "task-floors-1", 1024)
    assert CallerPolicy.from_json(policy.to_json()) == policy
    assert caller_policy({}, None) == CallerPolicy()
