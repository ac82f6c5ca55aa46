"""What would change in the catalogue: against another catalogue, or against vendors' prices."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from shared.domain.candidate import Candidate, Catalog, decimal_text
from shared.domain.price_list import PRICE_FIELDS, PriceList, prices_on, their_name

_TENTH = Decimal("0.1")


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one model. `percent` is of the old value, for prices that have one."""

    slug: str
    field: str
    old: Any
    new: Any
    percent: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogDiff:
    """What differs. `only_running`: models that the file does not have; `only_new`: the reverse."""

    changes: tuple[Change, ...] = ()
    only_running: tuple[str, ...] = ()
    only_new: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.changes or self.only_running or self.only_new)

    def to_json(self) -> dict[str, Any]:
        return {
            "changes": [asdict(change) for change in self.changes],
            "only_running": [*self.only_running],
            "only_new": [*self.only_new],
        }


def compare_catalogs(running: Catalog, new: Catalog) -> CatalogDiff:
    """Field by field, models by their slugs."""
    old_by, new_by = _by_slug(running), _by_slug(new)
    return CatalogDiff(
        tuple(
            change
            for slug in sorted(old_by.keys() & new_by.keys())
            for change in _changes(slug, old_by[slug].to_json(), new_by[slug].to_json())
        ),
        tuple(sorted(old_by.keys() - new_by.keys())),
        tuple(sorted(new_by.keys() - old_by.keys())),
    )


def compare_prices(running: Catalog, prices: PriceList, day: date) -> CatalogDiff:
    """Only prices, as the list has them on that day; models by their vendors' names.

    A price that the list does not name is no difference. `only_new` are `provider/id` of models
    whose providers the catalogue has.
    """
    changes: list[Change] = []
    missing: list[str] = []
    known: set[tuple[str, str]] = set()
    for candidate in running.candidates:
        found = prices.find(candidate.provider, candidate.provider_model_id)
        if found is None:
            missing.append(candidate.slug)
            continue
        known.add((their_name(candidate.provider), found["id"]))
        changes += _price_changes(candidate, prices_on(found, day))
    return CatalogDiff(tuple(changes), tuple(missing), tuple(_unknown(running, prices, known)))


def _unknown(running: Catalog, prices: PriceList, known: Set[tuple[str, str]]) -> list[str]:
    """Models that the list has of our providers and that we do not have, by the list's names."""
    providers = {their_name(candidate.provider) for candidate in running.candidates}
    listed = {(name, model["id"]) for name in providers for model in prices.models_of(name)}
    return sorted(f"{provider}/{model}" for provider, model in listed - known)


def _price_changes(candidate: Candidate, new: Mapping[str, Decimal | None]) -> Iterator[Change]:
    for field in PRICE_FIELDS:
        old, price = getattr(candidate, field), new[field]
        if price is not None and price != old:
            yield Change(
                candidate.slug, field, decimal_text(old), decimal_text(price), percent(old, price)
            )


def _by_slug(catalog: Catalog) -> dict[str, Candidate]:
    return {candidate.slug: candidate for candidate in catalog.candidates}


def _changes(slug: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """A model without conditions, say, has no field of that name: it is as if it were null."""
    for field in old | new:
        was, will_be = old.get(field), new.get(field)
        if was == will_be:
            continue
        share = percent(_decimal(was), _decimal(will_be)) if field in PRICE_FIELDS else None
        yield Change(slug, field, was, will_be, share)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def percent(old: Decimal | None, new: Decimal | None) -> str | None:
    """`+12.5`, `-50.0`: the change in per cent of the old price; None without two prices."""
    if not old or new is None:
        return None
    share = ((new - old) * 100 / old).quantize(_TENTH, ROUND_HALF_UP)
    return f"{share:+f}"
