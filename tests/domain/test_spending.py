"""The sliding window of spending counts what a plain sum over the same seconds counts."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.spending import (
    ALL,
    Passed,
    SpendWindow,
    Spent,
    Thresholds,
    closest,
    passed,
)

USD = st.decimals(0, 10, places=9)
SPENT = st.builds(Spent, st.integers(0, 40), st.sampled_from("abc"), USD, USD)


def summed(spent: list[Spent], oldest: int) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for each in spent:
        assert each.second is not None
        if each.second >= oldest:
            for scope, usd in ((each.tenant_id, each.tenant_usd), (ALL, each.system_usd)):
                found[scope] = found.get(scope, Decimal(0)) + usd
    return {scope: usd for scope, usd in found.items() if usd}


@given(st.lists(SPENT, max_size=60), st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_moved_along_it_is_the_sum_of_what_is_in_it(spent: list[Spent], steps: list[int]) -> None:
    """Looks overlap, and each shows what was committed by then: nothing counts twice or never."""
    window, now, width, overlap = SpendWindow(), 0, 10, 7
    for step in steps:
        now += step
        visible = [each for each in spent if each.second is not None and each.second <= now]
        window.replace(now - overlap, visible)
        window.forget(now - width)
        assert window.totals() == summed(visible, now - width)


def test_what_was_committed_late_is_taken_in_by_a_look_that_reaches_back() -> None:
    window, late = SpendWindow(), Spent(10, "a", Decimal(3), Decimal(3))
    on_time = Spent(10, "a", Decimal(1), Decimal(1))
    window.replace(0, [on_time])
    window.replace(9, [on_time, late])
    assert window.totals() == {"a": Decimal(4), ALL: Decimal(4)}


def test_held_money_counts_and_is_not_kept() -> None:
    window, held = SpendWindow(), Spent(None, "a", Decimal(2), Decimal(5))
    window.replace(0, [Spent(1, "a", Decimal(1), Decimal(1)), held])
    assert window.totals([held]) == {"a": Decimal(3), ALL: Decimal(6)}
    assert window.totals() == {"a": Decimal(1), ALL: Decimal(1)}


def test_a_threshold_is_passed_and_not_reached() -> None:
    thresholds = Thresholds(system=Decimal(5), tenant=Decimal(2))
    at, over = {"a": Decimal(2), ALL: Decimal(5)}, {"a": Decimal("2.000000001"), ALL: Decimal(5)}
    assert list(passed(at, thresholds)) == []
    assert list(passed(over, thresholds)) == [Passed("a", Decimal("2.000000001"), Decimal(2))]


def test_an_operators_threshold_wins_also_where_it_is_none() -> None:
    thresholds = Thresholds(tenant=Decimal(2), chosen={"a": None, "b": Decimal(9)})
    spent = dict.fromkeys("abc", Decimal(8))
    assert [each.scope for each in passed(spent, thresholds)] == ["c"]
    assert closest(spent, thresholds) == 4
    assert not Thresholds(chosen={"a": None}).any
    assert Thresholds(chosen={"a": Decimal(1)}).any
