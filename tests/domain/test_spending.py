"""When a threshold is passed, and whose."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.spending import ALL, Passed, Thresholds, closest, passed, passed_by

USD = st.decimals(0, 10, places=9)
MAYBE = st.none() | USD.filter(bool)


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


@given(USD, USD, USD, MAYBE, MAYBE)
def test_no_call_that_is_let_in_passes_a_threshold(
    asked: Decimal, mine: Decimal, others: Decimal, tenant: Decimal | None, system: Decimal | None
) -> None:
    """And one that is not would have passed the one that is named, the tenant's own first."""
    thresholds = Thresholds(system, tenant)
    spent = {"a": mine, ALL: mine + others}
    after = {"a": mine + asked, ALL: mine + others + asked}
    over = {each.scope for each in passed(after, thresholds)}
    found = passed_by("a", asked, spent, thresholds)
    if found is None:
        assert not over
    else:
        assert found.scope == ("a" if "a" in over else ALL)
        assert (found.spent_usd, found.threshold_usd) == (
            spent[found.scope],
            thresholds.of(found.scope),
        )


def test_who_has_spent_nothing_has_all_of_it() -> None:
    assert passed_by("a", Decimal(2), {}, Thresholds(tenant=Decimal(2))) is None
    assert passed_by("a", Decimal(3), {}, Thresholds(tenant=Decimal(2))) == Passed(
        "a", Decimal(0), Decimal(2)
    )
