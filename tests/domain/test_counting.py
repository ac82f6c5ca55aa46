"""Counts in sentences."""

import pytest

from shared.domain.counting import counted, listed, one_of


@pytest.mark.parametrize(
    ("number", "noun", "many", "told"),
    [
        (0, "call", None, "0 calls"),
        (1, "call", None, "1 call"),
        (1200, "call", None, "1,200 calls"),
        (1, "entry", "entries", "1 entry"),
        (2, "entry", "entries", "2 entries"),
    ],
)
def test_a_count_reads_as_it_is_said(number: int, noun: str, many: str | None, told: str) -> None:
    assert counted(number, noun, many) == told


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("wallets with a grant", "wallet with a grant"),
        ("corrected transfers", "corrected transfer"),
        ("days of agents", "day of agents"),
        ("trial balance", "trial balance"),
    ],
)
def test_one_of_many_has_a_name(many: str, one: str) -> None:
    assert one_of(many) == one


def test_names_are_listed() -> None:
    assert [listed(names, "or") for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a or b",
        "a, b or c",
    ]
