"""When spending passes a threshold: what was settled in a sliding window, plus what is held now.

Money is `Decimal` US dollars; a scope is `all` or a tenant's id, as the killswitch has them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from shared.domain.ledger import ZERO

ALL = "all"


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


def passed_by(
    tenant_id: str, asked_usd: Decimal, spent: Mapping[str, Decimal], thresholds: Thresholds
) -> Passed | None:
    """The threshold that a tenant would pass by holding so much more, its own before that of all.

    So one tenant's threshold stops that tenant, where it stands above nobody else's.
    """
    for scope in (tenant_id, ALL):
        threshold, usd = thresholds.of(scope), spent.get(scope, ZERO)
        if threshold is not None and usd + asked_usd > threshold:
            return Passed(scope, usd, threshold)
    return None


def closest(spent: Mapping[str, Decimal], thresholds: Thresholds) -> Decimal:
    """The largest share of its threshold that any tenant has spent; 1 is at the threshold."""
    shares = (
        usd / threshold
        for scope, usd in spent.items()
        if scope != ALL and (threshold := thresholds.of(scope)) is not None
    )
    return max(shares, default=ZERO)
