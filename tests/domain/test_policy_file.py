"""A policy version as an operator writes it: what is read, and what is said of what is wrong."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.policy_file import PolicyError, floor_text, parse_policy, write_policy
from shared.domain.policy_version import (
    BUILT_IN,
    PolicyVersion,
    Publication,
    rollback_target,
)
from shared.domain.task_type import TASK_TYPES

WHOLE = """
version = "careful-1"
description = "Code is never left to the cheapest."
default_floor = 0.50
default_output_tokens = 2048
q_source = "empirical"
exploration_share = "0.05"

[floors]
code = 0.85
reasoning = "frontier"
"""


def shares(most: str) -> st.SearchStrategy[Decimal]:
    return st.decimals(Decimal(0), Decimal(most), places=9, allow_nan=False)


VERSIONS = st.builds(
    PolicyVersion,
    version=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
    description=st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100
    ),
    floors=st.dictionaries(st.sampled_from(TASK_TYPES), shares("1")),
    default_output_tokens=st.integers(1, 1_000_000),
    q_source=st.sampled_from(["prior", "empirical"]),
    exploration_share=shares("0.2"),
)


def test_a_document_says_what_a_version_has() -> None:
    assert parse_policy(WHOLE) == PolicyVersion(
        "careful-1",
        "Code is never left to the cheapest.",
        {"code": Decimal("0.85"), "reasoning": Decimal("0.85")},
        2048,
        "empirical",
        Decimal("0.05"),
    )
    assert parse_policy('version = "x"') == PolicyVersion("x")


@given(VERSIONS)
def test_what_is_written_is_read_back_and_keeps_its_hash(version: PolicyVersion) -> None:
    for again in (parse_policy(write_policy(version)), PolicyVersion.from_json(version.to_json())):
        assert (again, again.hash) == (version, version.hash)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("0.85", "1.01"), "line 10: floors.code: Input should be less than or equal to 1"),
        (("0.85", "true"), "line 10: floors.code: must be a number from 0 to 1, or good, strong"),
        (("0.85", "nan"), "line 10: floors.code: Input should be a finite number"),
        (('"frontier"', '"best"'), "line 11: floors.reasoning: must be a number from 0 to 1"),
        (("code =", "coding ="), "line 10: floors.coding: is no task type; they are reasoning"),
        (("default_floor = 0.50", "default_floor = 0.6"), "line 4: default_floor: is 0.5 in every"),
        (("2048", "0"), "line 5: default_output_tokens: Input should be greater"),
        (("2048", "true"), "line 5: default_output_tokens: Input should be a valid integer"),
        (('"empirical"', '"hearsay"'), "line 6: q_source: Input should be 'prior' or 'empirical'"),
        (("0.05", "0.21"), "line 7: exploration_share: Input should be less than or equal to 0.2"),
        (("careful-1", "Careful 1"), "line 2: version: String should match pattern"),
        (('version = "careful-1"', ""), "version: Field required"),
        (("q_source", "qsource"), "line 6: qsource: is no field; they are version"),
        (("[floors]", "[floors"), "line 9: "),
    ],
)
def test_what_is_wrong_is_told_with_line_and_field(change: tuple[str, str], problem: str) -> None:
    with pytest.raises(PolicyError) as told:
        parse_policy(WHOLE.replace(*change))
    (only,) = told.value.problems
    assert only.startswith(problem)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(PolicyError) as told:
        parse_policy(WHOLE.replace("0.85", "2").replace("2048", "0").replace("0.05", "-1"))
    assert [each.partition(":")[0] for each in told.value.problems] == [
        "line 10",
        "line 5",
        "line 7",
    ]


def test_the_versions_of_old_stay_what_receipts_mean_by_them() -> None:
    assert {each.version: each.hash[:16] for each in BUILT_IN} == {
        "flat-1": "fb9a9a35cdf65815",
        "task-floors-1": "e1c23dc980f45b28",
    }


def turns(*acts: str) -> list[Publication]:
    return [
        Publication(word.lstrip("<"), None, "rollback" if word[0] == "<" else "publish")
        for word in acts
    ]


@pytest.mark.parametrize(
    ("history", "target"),
    [
        (("a",), None),
        (("a", "b"), "a"),
        (("a", "b", "c", "<b"), "a"),
        (("a", "b", "c", "<a"), None),
        (("a", "b", "<a", "c"), "a"),
        (("a", "b", "a"), "b"),
        (("a", "b", "<z"), "b"),
    ],
)
def test_a_second_rollback_goes_further_back(history: tuple[str, ...], target: str | None) -> None:
    assert rollback_target(turns(*history)) == target


@pytest.mark.parametrize(
    "source",
    [
        f"default_output_tokens = {'9' * 5000}",
        "exploration_share = 1e-9999999999999999999999",
        f"version = {'[' * 5000}",
        "a." * 20_000 + "b = 1",
        "x = 1\n" * 1_000_000,
    ],
    ids=["digits", "exponent", "nested", "line", "long"],
)
def test_what_cannot_be_read_has_a_line(source: str) -> None:
    with pytest.raises(PolicyError, match=r"^line \d+: "):
        parse_policy(source)


@pytest.mark.parametrize("value", ["\u0660.\u0665", "\uff10.\uff15", " 0.5 ", "1_0e-2", "0x1"])
def test_a_floor_is_written_in_plain_digits(value: str) -> None:
    with pytest.raises(ValueError, match="number from 0 to 1"):
        floor_text(value)


def test_a_floor_has_no_sign() -> None:
    assert (floor_text(-0.0), floor_text("-0")) == ("0", "0")
