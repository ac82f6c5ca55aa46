"""Vendors' prices as the open list `genai-prices` has them: one JSON array of providers.

A provider is `{id, models: [{id, match, prices}]}`. `match` is a clause: one of `equals`,
`starts_with`, `ends_with`, `contains`, `regex`, or `and`/`or` of such; the first model of a
provider that matches a name is meant, in any case of letters. `prices` are in USD per million
tokens (`input_mtok`, `output_mtok`, `cache_read_mtok`, `cache_write_mtok`), each a number or
`{base, tiers}`; or a list of `{constraint, prices}`, where the last one that holds counts.
Its source is https://github.com/pydantic/genai-prices, the schema beside its `data.json`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

# our field -> the list's
PRICE_FIELDS = {
    "price_in": "input_mtok",
    "price_out": "output_mtok",
    "price_cache_read": "cache_read_mtok",
    "price_cache_write": "cache_write_mtok",
}
# what a provider is called there, where it is called otherwise
THEIR_NAMES = {"xai": "x-ai", "openai-responses": "openai"}

_CLAUSES: Mapping[str, Callable[[str, str], bool]] = {
    "equals": lambda name, word: name == word.lower(),
    "starts_with": lambda name, word: name.startswith(word.lower()),
    "ends_with": lambda name, word: name.endswith(word.lower()),
    "contains": lambda name, word: word.lower() in name,
    "regex": lambda name, word: re.search(word, name) is not None,
}


class PriceListError(ValueError):
    """The file is no such list; the message says where."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """Models by provider, in the list's order."""

    providers: Mapping[str, list[Mapping[str, Any]]]

    @classmethod
    def of(cls, data: Any) -> "PriceList":
        """Read parsed JSON, its numbers as Decimals. Raises `PriceListError`."""
        if not isinstance(data, list):
            raise PriceListError("a list of providers is an array")
        providers: dict[str, list[Mapping[str, Any]]] = {}
        for at, provider in enumerate(data):
            if not isinstance(provider, Mapping) or not isinstance(provider.get("id"), str):
                raise PriceListError(f"[{at}]: a provider is an object with an id")
            models = provider.get("models")
            if not isinstance(models, list):
                raise PriceListError(f"provider {provider['id']}: models: must be an array")
            for model in models:
                _check_model(model, provider["id"])
            providers[provider["id"]] = models
        return cls(providers)

    def models_of(self, provider: str) -> list[Mapping[str, Any]]:
        """The models of one of our providers; none where the list does not have it."""
        return self.providers.get(their_name(provider), [])

    def find(self, provider: str, name: str) -> Mapping[str, Any] | None:
        """The model that a vendor's name means; the first one that matches."""
        wanted = name.lower()
        return next((m for m in self.models_of(provider) if matches(m["match"], wanted)), None)


def their_name(provider: str) -> str:
    """What the list calls one of our providers."""
    return THEIR_NAMES.get(provider, provider)


def _check_model(model: Any, provider: str) -> None:
    where = f"provider {provider}: model {model.get('id') if isinstance(model, Mapping) else '?'}"
    if not isinstance(model, Mapping) or not isinstance(model.get("id"), str):
        raise PriceListError(f"{where}: a model is an object with an id")
    try:
        matches(model["match"], "")
        prices_on(model, date.max)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, re.error) as error:
        raise PriceListError(f"{where}: match or prices: {error!r}") from error


def matches(clause: Mapping[str, Any], name: str) -> bool:
    """Whether a clause means this name, which is in small letters."""
    ((kind, said),) = clause.items()
    if kind in ("or", "and"):
        # each is looked at, so that a clause which means nothing is found when the list is read
        found = [matches(each, name) for each in said]
        return any(found) if kind == "or" else all(found)
    return _CLAUSES[kind](name, said)


def prices_on(model: Mapping[str, Any], day: date) -> dict[str, Decimal | None]:
    """What a model costs on a day, by our fields; None where the list names no price.

    Where that depends on the hour it is the dearer price, where on the prompt's length the base.
    """
    prices = model["prices"]
    if isinstance(prices, Mapping):
        return _our_fields(prices)
    steady = [each for each in prices if _holds_on(each.get("constraint"), day)]
    if not prices:
        return dict.fromkeys(PRICE_FIELDS)
    found = _our_fields((steady[-1] if steady else prices[0])["prices"])
    for each in prices:
        if "start_time" in (each.get("constraint") or {}):
            found = _dearer(found, _our_fields(each["prices"]))
    return found


def _holds_on(constraint: Mapping[str, Any] | None, day: date) -> bool:
    """Whether a price holds all day: it has no condition, or begins on that day or before."""
    if constraint is None:
        return True
    begins = constraint.get("start_date") or constraint.get("start")
    return begins is not None and date.fromisoformat(str(begins)[:10]) <= day


def _our_fields(prices: Mapping[str, Any]) -> dict[str, Decimal | None]:
    return {ours: _number(prices.get(theirs)) for ours, theirs in PRICE_FIELDS.items()}


def _number(price: Any) -> Decimal | None:
    if isinstance(price, Mapping):
        price = price["base"]
    return None if price is None else Decimal(str(price))


def _dearer(
    one: Mapping[str, Decimal | None], other: Mapping[str, Decimal | None]
) -> dict[str, Decimal | None]:
    return {name: _most((one[name], other[name])) for name in one}


def _most(prices: Iterable[Decimal | None]) -> Decimal | None:
    return max((price for price in prices if price is not None), default=None)
