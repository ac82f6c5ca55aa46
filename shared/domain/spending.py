"""When spending passes a threshold: what was settled in a sliding window, plus what is held now.

The window is kept in seconds and moved along: what was settled since the last look is added, what
has become too old is forgotten. So a look costs what is new, not what the window holds. Money is
`Decimal` US dollars; a scope is `all` or a tenant's id, as the killswitch has them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from shared.domain.ledger import ZERO

ALL = "all"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a tenant spent in one second (epoch), as it counts for it and for the whole system.

    The two differ where one of them was released after calls had begun: those do not count again.
    `second` is None for what is held now.
    """

    second: int | None
    tenant_id: str
    tenant_usd: Decimal
    system_usd: Decimal


class SpendWindow:
    """What was settled in the last seconds, by tenant and in all."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[Spent]] = {}
        self._totals: dict[str, Decimal] = {}

    def replace(self, since: int, spent: Iterable[Spent]) -> None:
        """Take `spent` for all that is known from second `since` on."""
        self._drop(second for second in list(self._seconds) if second >= since)
        for each in spent:
            if each.second is not None and each.second >= since:
                self._seconds.setdefault(each.second, []).append(each)
                self._add(each, 1)

    def forget(self, before: int) -> None:
        """Drop what is older than second `before`."""
        self._drop(second for second in list(self._seconds) if second < before)

    def totals(self, held: Iterable[Spent] = ()) -> dict[str, Decimal]:
        """Dollars by scope, with what is held now."""
        found = dict(self._totals)
        for each in held:
            for scope, usd in _shares(each):
                found[scope] = found.get(scope, ZERO) + usd
        return found

    def _drop(self, seconds: Iterable[int]) -> None:
        for second in seconds:
            for each in self._seconds.pop(second):
                self._add(each, -1)

    def _add(self, each: Spent, sign: int) -> None:
        for scope, usd in _shares(each):
            total = self._totals.get(scope, ZERO) + sign * usd
            if total:
                self._totals[scope] = total
            else:
                self._totals.pop(scope, None)


def _shares(each: Spent) -> tuple[tuple[str, Decimal], tuple[str, Decimal]]:
    return (each.tenant_id, each.tenant_usd), (ALL, each.system_usd)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a scope may spend in the window; None is no threshold.

    `chosen` are an operator's own for single scopes: they win, also where they say None.
    """

    system: Decimal | None = None
    tenant: Decimal | None = None
    chosen: Mapping[str, Decimal | None] = field(default_factory=dict)

    def of(self, scope: str) -> Decimal | None:
        if scope in self.chosen:
            return self.chosen[scope]
        return self.system if scope == ALL else self.tenant

    @property
    def any(self) -> bool:
        """Whether there is a threshold at all."""
        return any(usd is not None for usd in (self.system, self.tenant, *self.chosen.values()))


@dataclass(frozen=True, slots=True)
class Passed:
    """A scope that has spent more than its threshold."""

    scope: str
    spent_usd: Decimal
    threshold_usd: Decimal


def passed(spent: Mapping[str, Decimal], thresholds: Thresholds) -> Iterator[Passed]:
    """The scopes over their thresholds; to reach one exactly is not to pass it."""
    for scope, usd in spent.items():
        threshold = thresholds.of(scope)
        if threshold is not None and usd > threshold:
            yield Passed(scope, usd, threshold)


def closest(spent: Mapping[str, Decimal], thresholds: Thresholds) -> Decimal:
    """The largest share of its threshold that any tenant has spent; 1 is at the threshold."""
    shares = (
        usd / threshold
        for scope, usd in spent.items()
        if scope != ALL and (threshold := thresholds.of(scope)) is not None
    )
    return max(shares, default=ZERO)
