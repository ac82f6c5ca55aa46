"""What a CONDITIONAL brand asks of a request, and what a pin of its model does not waive."""

from typing import Any

import pytest

from shared.catalog import routable_status
from shared.domain.candidate import Candidate, Catalog
from shared.domain.conditions import Conditions
from shared.domain.inference import Failure
from shared.domain.pinning import pinned
from shared.domain.routing import conditions_hold
from tests.domain.routing_cases import ALL_ACTIVE, TENANTS, asked, decided, model

MINE, OTHER = TENANTS
# printf 'ainfera tenant 00000000-0000-7000-8000-00000000000a' | sha256sum | head -c 16
SEAL = "4bd319b7c774d94a"
EVERYTHING: dict[str, Any] = {
    "opt_in": True,
    "data_class": ["public"],
    "region": ["eu"],
    "tenant": [MINE],
}
MEETS: dict[str, Any] = {
    "allow": frozenset({"m"}),
    "data_class": "public",
    "region": "eu",
    "tenant_id": MINE,
}


def conditional(conditions: dict[str, Any] | None) -> Candidate:
    return model("m", "1", "1", "0.9", verdict="CONDITIONAL", conditions=conditions)


@pytest.mark.parametrize(
    ("conditions", "said", "holds"),
    [
        (None, {}, False),
        (None, {"allow": frozenset({"m"})}, True),
        ({"opt_in": True}, {"allow": frozenset({"openai"})}, True),
        ({"opt_in": True}, {"data_class": "public", "region": "eu", "tenant_id": MINE}, False),
        ({"data_class": ["public", "internal"]}, {"data_class": "internal"}, True),
        ({"data_class": ["public", "internal"]}, {"data_class": "restricted"}, False),
        ({"data_class": ["public"]}, {}, False),
        ({"region": ["eu"]}, {"region": "eu"}, True),
        ({"region": ["eu"]}, {"region": "eu-west-1"}, False),
        ({"region": ["eu"]}, {}, False),
        ({"tenant": [MINE]}, {"tenant_id": MINE}, True),
        ({"tenant": [MINE]}, {"tenant_id": OTHER}, False),
        ({"tenant": [MINE]}, {}, False),
        ({"tenant": [SEAL]}, {"tenant_id": MINE}, True),
        ({"tenant": [SEAL]}, {"tenant_id": OTHER}, False),
        ({"tenant": [SEAL]}, {}, False),
        ({"tenant": [OTHER, SEAL]}, {"tenant_id": MINE}, True),
        (EVERYTHING, MEETS, True),
        (EVERYTHING, MEETS | {"allow": frozenset()}, False),
        (EVERYTHING, MEETS | {"data_class": "internal"}, False),
        (EVERYTHING, MEETS | {"region": "us"}, False),
        (EVERYTHING, MEETS | {"tenant_id": OTHER}, False),
    ],
)
def test_all_that_are_given_must_hold(
    conditions: dict[str, Any] | None, said: dict[str, Any], holds: bool
) -> None:
    candidate = conditional(conditions)
    assert conditions_hold(candidate, asked(**said)) is holds
    [outcome] = decided(asked(**said), Catalog.of([candidate])).outcomes
    assert outcome.m_allowed is holds
    assert outcome.drop_reason == (None if holds else "m_allowed_veto")


@pytest.mark.parametrize("verdict", ["VETO", None])
def test_no_condition_lifts_a_veto(verdict: str | None) -> None:
    vetoed = model("m", "1", "1", "0.9", verdict=verdict, conditions={"opt_in": True})
    assert not conditions_hold(vetoed, asked(**MEETS))


def test_the_json_form_has_what_is_given_and_refuses_what_is_unknown() -> None:
    for given in (EVERYTHING, {"region": ["eu", "us"]}, {"opt_in": True}):
        read = Conditions.from_json(given)
        assert read is not None
        assert read.to_json() == given
    assert Conditions.from_json(None) is None
    assert Conditions.from_json({}) is None
    with pytest.raises(ValueError, match="phase"):
        Conditions.from_json({"phase": ["moon"]})


def test_a_tenant_is_kept_by_a_seal_that_names_nobody() -> None:
    read = Conditions.from_json({"region": ["eu"], "tenant": [MINE, OTHER]})
    assert read is not None
    told = read.sealed().to_json()
    assert told["region"] == ["eu"]
    assert SEAL in told["tenant"]
    assert len(told["tenant"]) == 2
    assert not {MINE, OTHER} & {*told["tenant"]}
    assert read.sealed().sealed() == read.sealed()  # what is sealed stays as it is
    assert read.to_json()["tenant"] == [MINE, OTHER]  # an older receipt is read as it was written
    region = Conditions.from_json({"region": ["eu"]})
    assert region is not None
    assert region.sealed() == region


def test_a_catalogue_without_conditions_keeps_its_form_and_so_its_hash() -> None:
    assert "conditions" not in conditional(None).to_json()
    assert conditional(EVERYTHING).to_json()["conditions"] == EVERYTHING


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data_class": "restricted"}, ["data_class public", "says restricted"]),
        ({"data_class": None}, ["data_class public", "routing_hint.data_class"]),
        ({"region": "us"}, ["region eu", "says us"]),
        ({"region": None}, ["region eu", "routing_hint.region"]),
        ({"tenant_id": OTHER}, ["condition: tenant"]),
    ],
)
def test_a_pin_opts_in_and_waives_nothing_else(changed: dict[str, Any], says: list[str]) -> None:
    catalog = Catalog.of([conditional(EVERYTHING)])
    meets = MEETS | {"allow": frozenset()}
    assert pinned("m", catalog, asked(**meets), ALL_ACTIVE) is catalog.candidates[0]
    failure = pinned("m", catalog, asked(**(meets | changed)), ALL_ACTIVE)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.code) == (422, "model_unavailable")
    assert all(text in failure.message for text in says)
    assert failure.detail["hint"] in failure.message
    assert MINE not in failure.message  # whose the brand is, is nobody else's business


def test_what_the_catalogue_says_of_it() -> None:
    told = [
        routable_status(conditional(each), ALL_ACTIVE)
        for each in (None, {"opt_in": True}, {"region": ["eu"]}, EVERYTHING)
    ]
    assert told == ["opt_in", "opt_in", "conditional", "conditional"]
