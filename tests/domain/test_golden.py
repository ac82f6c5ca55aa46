"""Golden decisions: requests and catalogues with what was worked out by hand for each."""

import hashlib
import json
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shared.domain.candidate import Catalog
from shared.domain.evidence import Evidence
from shared.domain.routing import RULESET_HASH, Decision, decide, replay
from shared.domain.routing_policy import CallerPolicy, RequestFeatures
from tests.domain.routing_cases import model

TABLE = tomllib.loads((Path(__file__).parent / "golden" / "decisions.toml").read_text())
DECISIONS: list[dict[str, Any]] = TABLE["decisions"]


def catalogue(name: str) -> Catalog:
    """A catalogue of the table, whose models leave out what is usual."""
    return Catalog.of(
        model(
            listed["slug"],
            listed.get("in"),
            listed.get("out"),
            listed.get("q"),
            brand=listed["brand"],
            provider=listed.get("provider", listed["brand"]),
            verdict=listed.get("verdict", "PASS"),
            conditions=listed.get("conditions"),
            context_window=listed.get("window", 100_000),
            capabilities=listed.get("capabilities", ["tools", "vision"]),
            expected_latency_ms=listed.get("latency"),
        )
        for listed in TABLE["catalogues"][name]["models"]
    )


def request(given: dict[str, Any]) -> RequestFeatures:
    usual = {"task_type": "general", "input_tokens": 1000, "reserved_output_tokens": 1000}
    unsaid = RequestFeatures("general", 1000, 1000).to_json()
    return RequestFeatures.from_json({**unsaid, **usual, **given})


def decided(case: dict[str, Any]) -> Decision:
    catalog = catalogue(case["catalogue"])
    there = {c.provider for c in catalog.candidates} - {"nowhere"}
    return decide(
        request(case.get("request", {})),
        catalog,
        CallerPolicy.from_json(case.get("policy", {})),
        frozenset(case.get("active", there)),
        case.get("live", False),
        case.get("seed", "seed"),
        Evidence.from_json(case),
    )


def worked_out(case: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a decision, in the form of `said`."""
    ranked = [line.split() for line in case.get("ranked", [])]
    return {
        "ranked": [(slug, Decimal(usd)) for slug, usd in ranked],
        "asked": case.get("asked", [slug for slug, _ in ranked]),
        "dropped": case.get("dropped", {}),
        "rule": case["rule"],
        "explored": case.get("explored", False),
        "floor": case["floor"],
        "latencies": case.get("recorded_latencies", {}),
        "empirical": case.get("recorded_empirical", []),
        "ruleset_hash": TABLE["ruleset_hash"],
        "catalog_hash": TABLE["catalogues"][case["catalogue"]]["hash"],
    }


def said(decision: Decision) -> dict[str, Any]:
    chosen = [] if decision.chosen is None else [decision.chosen]
    ranked = [o for o in decision.outcomes if o.rank is not None]
    assert [o.rank for o in ranked] == list(range(1, len(ranked) + 1))
    return {
        "ranked": [(o.candidate.slug, o.projected_cost) for o in ranked],
        "asked": [c.slug for c in (*chosen, *decision.fallbacks)],
        "dropped": {o.candidate.slug: o.drop_reason for o in decision.outcomes if o.drop_reason},
        "rule": decision.rule,
        "explored": decision.explored,
        "floor": f"{decision.min_quality:f} {decision.floor_source}",
        "latencies": decision.inputs["latencies"],
        "empirical": list(decision.inputs["empirical"]),
        "ruleset_hash": decision.ruleset_hash,
        "catalog_hash": decision.catalog.hash,
    }


@pytest.mark.parametrize("case", DECISIONS, ids=[case["name"] for case in DECISIONS])
def test_as_worked_out_by_hand(case: dict[str, Any]) -> None:
    decision = decided(case)
    assert said(decision) == worked_out(case), case["why"]
    assert said(replay(json.loads(json.dumps(decision.inputs)))) == worked_out(case)


def test_the_table_is_of_this_rule_and_each_of_its_catalogues_hashes_by_hand() -> None:
    assert TABLE["ruleset_hash"] == RULESET_HASH
    for name, about in TABLE["catalogues"].items():
        models = sorted(catalogue(name).to_json(), key=lambda m: str(m["slug"]))
        text = json.dumps(models, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert about["hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_the_table_has_an_example_of_everything_that_can_come_of_it() -> None:
    assert len(DECISIONS) >= 25
    assert len({case["name"] for case in DECISIONS}) == len(DECISIONS)
    fates = {reason for case in DECISIONS for reason in case.get("dropped", {}).values()}
    assert fates == {
        "not_enrolled_no_provider",
        "not_enrolled_no_price",
        "not_enrolled_no_q_prior",
        "m_allowed_veto",
        "missing_capability",
        "denied_by_request",
        "below_quality_floor",
        "exceeds_budget_cap",
        "exceeds_latency_cap",
    }
    assert {case["rule"] for case in DECISIONS} == {
        "cheapest_clearing_floor",
        "m_allowed_veto_applied",
        "no_candidate_clears_floor",
        "no_candidate_enrolled",
    }
    assert {case.get("explored", False) for case in DECISIONS} == {True, False}
