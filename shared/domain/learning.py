"""Quality as it was observed: a share of good answers, with a bound on what chance may have added.

Of each cell (task type, model, band) the days' answers are counted; an answer of `half_life` days
ago counts half, in the share of good ones and in the number of answers. The bounds are those of
Wilson's score interval (E. B. Wilson, 1927) for that number, so what is only known of long ago is
known less well. All is whole numbers and decimals of 34 digits, in whatever context the caller
computes; `q` is rounded half up to four places, `lower` down and `upper` up, so two machines agree.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal
from typing import Any, TypedDict

from shared.domain.audit import canonical_json
from shared.domain.candidate import decimal_text

# 97.5 % of a normal distribution lie below: an interval of 95 %
Z = Decimal("1.959964")
PLACES = Decimal("0.0001")
# Weights are billionths, so that sums of them are exact.
_UNIT = 10**9
EXACT = Context(prec=34, rounding=ROUND_HALF_UP)
_LN2 = EXACT.ln(Decimal(2))
ALL_BANDS = "all"


class Offered(TypedDict):
    """What the rule takes of an estimate: quality and lower bound as text, and the answers."""

    q: str
    lower: str
    n: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What estimates are made with. `min_support` effective answers, and as many that were
    checked, make an estimate fit to be offered; so do they only if at least half were checked:
    that answers end says little about them."""

    half_life_days: int = 14
    window_days: int = 90
    min_support: int = 50

    def to_json(self) -> dict[str, Any]:
        return {
            "half_life_days": self.half_life_days,
            "window_days": self.window_days,
            "min_support": self.min_support,
            "z": decimal_text(Z),
        }


@dataclass(frozen=True, slots=True)
class Tally:
    """The answers of one cell of one day: all with a known reward, the good, those checked."""

    task_type: str
    model: str
    band: str
    age_days: int
    n: int
    good: int
    checked: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Weighted answers: sums of weights and of their squares, in `_UNIT`s, and of the good."""

    weight: int = 0
    squares: int = 0
    good: int = 0

    def plus(self, weight: int, n: int, good: int) -> "Evidence":
        """With `n` more answers of this weight, of which `good` are good."""
        return Evidence(
            self.weight + weight * n,
            self.squares + weight * weight * n,
            self.good + weight * good,
        )

    @property
    def number(self) -> Decimal:
        """As many answers as weigh as much, where a whole one weighs 1."""
        return EXACT.divide(Decimal(self.weight), Decimal(_UNIT))

    @property
    def effective(self) -> Decimal:
        """As many answers of equal weight would say as much (L. Kish, 1965).

        The square of the weights' sum by the sum of their squares; never fewer than `number` where
        no weight is over 1.
        """
        if not self.squares:
            return Decimal(0)
        return EXACT.divide(Decimal(self.weight * self.weight), Decimal(self.squares))

    @property
    def share(self) -> Decimal:
        """The share of good ones; a half where there is nothing."""
        return EXACT.divide(Decimal(self.good), Decimal(self.weight)) if self.weight else _HALF


NO_EVIDENCE = Evidence()
_HALF = Decimal("0.5")


def unit_weight(weight: Decimal) -> int:
    """A weight in billionths."""
    scaled = EXACT.multiply(weight, Decimal(_UNIT))
    return int(scaled.to_integral_value(ROUND_HALF_UP, EXACT))


def inverse_weight(chance: Decimal) -> int:
    """The weight, in billionths, of an answer that had this chance to come about."""
    return unit_weight(EXACT.divide(Decimal(1), chance))


def decayed(age_days: int, half_life_days: int) -> int:
    """The weight of an answer of so many days ago, in billionths."""
    exponent = EXACT.divide(EXACT.multiply(_LN2, Decimal(-age_days)), Decimal(half_life_days))
    return unit_weight(EXACT.exp(exponent))


def wilson(share: Decimal, n: Decimal, z: Decimal = Z) -> tuple[Decimal, Decimal]:
    """Wilson's bounds of a share of `n` (effective) answers; (0, 1) of none."""
    if not n:
        return Decimal(0), Decimal(1)
    c = EXACT
    z2n = c.divide(c.multiply(z, z), n)
    centre = c.add(share, c.divide(z2n, Decimal(2)))
    spread = c.divide(c.multiply(share, c.subtract(Decimal(1), share)), n)
    root = c.sqrt(c.add(spread, c.divide(z2n, c.multiply(Decimal(4), n))))
    reach = c.multiply(z, root)
    scale = c.add(Decimal(1), z2n)
    lower = c.divide(c.subtract(centre, reach), scale)
    upper = c.divide(c.add(centre, reach), scale)
    return max(min(lower, share), Decimal(0)), min(max(upper, share), Decimal(1))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The quality of one cell. `n` and `checked` are counts; `effective` is what `n` answers
    count for by their age, rounded down."""

    task_type: str
    model: str
    band: str
    q: Decimal
    lower: Decimal
    upper: Decimal
    n: int
    checked: int
    effective: int
    supported: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "task_type": self.task_type,
            "model": self.model,
            "band": self.band,
            "q": f"{self.q:f}",
            "lower": f"{self.lower:f}",
            "upper": f"{self.upper:f}",
            "n": self.n,
            "checked": self.checked,
            "effective": self.effective,
            "supported": self.supported,
        }


@dataclass(slots=True)
class _Cell:
    evidence: Evidence = NO_EVIDENCE
    n: int = 0
    checked: int = 0


def estimates(tallies: Iterable[Tally], terms: Terms) -> list[Estimate]:
    """An estimate of each cell, and of each model's bands together (`ALL_BANDS`), in order."""
    cells: dict[tuple[str, str, str], _Cell] = {}
    weights: dict[int, int] = {}
    for tally in tallies:
        weight = weights.get(tally.age_days)
        if weight is None:
            weight = weights[tally.age_days] = decayed(tally.age_days, terms.half_life_days)
        for band in (tally.band, ALL_BANDS):
            cell = cells.setdefault((tally.task_type, tally.model, band), _Cell())
            cell.evidence = cell.evidence.plus(weight, tally.n, tally.good)
            cell.n += tally.n
            cell.checked += tally.checked
    return [_estimate(*key, cells[key], terms) for key in sorted(cells)]


def _estimate(task_type: str, model: str, band: str, cell: _Cell, terms: Terms) -> Estimate:
    share, effective = cell.evidence.share, cell.evidence.number
    lower, upper = wilson(share, effective)
    enough = effective >= terms.min_support and cell.checked >= terms.min_support
    return Estimate(
        task_type,
        model,
        band,
        q=share.quantize(PLACES, ROUND_HALF_UP, EXACT),
        lower=lower.quantize(PLACES, ROUND_FLOOR, EXACT),
        upper=upper.quantize(PLACES, ROUND_CEILING, EXACT),
        n=cell.n,
        checked=cell.checked,
        effective=int(effective),
        supported=enough and 2 * cell.checked >= cell.n,
    )


def offered(cells: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Offered]]:
    """`{task_type: {slug: …}}` of the supported estimates over all bands, as the rule takes it."""
    found: dict[str, dict[str, Offered]] = {}
    for cell in cells:
        if cell["supported"] and cell["band"] == ALL_BANDS:
            by_model = found.setdefault(cell["task_type"], {})
            by_model[cell["model"]] = Offered(q=cell["q"], lower=cell["lower"], n=cell["n"])
    return found


def snapshot_hash(terms: Terms, found: Iterable[Estimate]) -> str:
    """SHA-256 of the canonical JSON of a snapshot: equal estimates, equal hash."""
    said = {"terms": terms.to_json(), "cells": [each.to_json() for each in found]}
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()
