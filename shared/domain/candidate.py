"""A catalogued model as the rule sees it, and the catalogue: an ordered, hashed set of them."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from shared.domain.audit import canonical_json
from shared.domain.conditions import OPT_IN, Conditions
from shared.domain.pricing import Prices, to_nano

Verdict = Literal["PASS", "CONDITIONAL", "VETO"]

_SNAPSHOT_DATE = re.compile(r"-20\d{6}$")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model of the catalogue.

    `slug` is our name for it, `provider_model_id` the vendor's. Prices are USD per million
    tokens; `q_prior` lies in 0..1, and `q_prior_source` said so on `q_prior_date`; `created` is the
    vendor's release date. Dates are `YYYY-MM-DD`.
    The verdict is its brand's: CONDITIONAL allows a request on which its `conditions` hold, and
    without any of them one that opted in. `expected_latency_ms` is None while unknown.
    """

    slug: str
    brand: str
    provider: str
    provider_model_id: str
    display_name: str
    created: str
    context_window: int
    max_output_tokens: int
    price_in: Decimal | None = None
    price_out: Decimal | None = None
    price_cache_read: Decimal | None = None
    price_cache_write: Decimal | None = None
    q_prior: Decimal | None = None
    verdict: Verdict | None = None
    capabilities: frozenset[str] = frozenset()
    expected_latency_ms: int | None = None
    aa_index_source: str | None = None
    conditions: Conditions | None = None
    q_prior_source: str | None = None
    q_prior_date: str | None = None
    prices: Prices | None = field(init=False, repr=False, compare=False)
    q_nano: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prices = None
        if self.price_in is not None and self.price_out is not None:
            prices = Prices(
                self.price_in, self.price_out, self.price_cache_read, self.price_cache_write
            )
        object.__setattr__(self, "prices", prices)
        object.__setattr__(self, "q_nano", -1 if self.q_prior is None else to_nano(self.q_prior))

    def unmet_condition(
        self, opted_in: bool, data_class: str | None, region: str | None, tenant_id: str | None
    ) -> str | None:
        """The first condition of a CONDITIONAL brand that does not hold on a request."""
        conditions = self.conditions or OPT_IN
        return conditions.failing(opted_in, data_class, region, tenant_id)

    def to_json(self) -> dict[str, Any]:
        """Strings, integers, lists and null only, so that it hashes the same everywhere.

        `conditions`, `q_prior_source` and `q_prior_date` are there where there are some: a
        catalogue without any keeps its hash.
        """
        told: dict[str, Any] = {
            "slug": self.slug,
            "brand": self.brand,
            "provider": self.provider,
            "provider_model_id": self.provider_model_id,
            "display_name": self.display_name,
            "created": self.created,
            "context_window": self.context_window,
            "max_output_tokens": self.max_output_tokens,
            "price_in": decimal_text(self.price_in),
            "price_out": decimal_text(self.price_out),
            "price_cache_read": decimal_text(self.price_cache_read),
            "price_cache_write": decimal_text(self.price_cache_write),
            "q_prior": decimal_text(self.q_prior),
            "verdict": self.verdict,
            "capabilities": sorted(self.capabilities),
            "expected_latency_ms": self.expected_latency_ms,
            "aa_index_source": self.aa_index_source,
        }
        if self.conditions is not None:
            told["conditions"] = self.conditions.to_json()
        if self.q_prior_source is not None:
            told["q_prior_source"] = self.q_prior_source
        if self.q_prior_date is not None:
            told["q_prior_date"] = self.q_prior_date
        return told

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Candidate":
        """The inverse of `to_json`; money and quality may be strings or Decimals."""
        return cls(
            slug=data["slug"],
            brand=data["brand"],
            provider=data["provider"],
            provider_model_id=data["provider_model_id"],
            display_name=data["display_name"],
            created=str(data["created"])[:10],
            context_window=data["context_window"],
            max_output_tokens=data["max_output_tokens"],
            price_in=_decimal(data.get("price_in")),
            price_out=_decimal(data.get("price_out")),
            price_cache_read=_decimal(data.get("price_cache_read")),
            price_cache_write=_decimal(data.get("price_cache_write")),
            q_prior=_decimal(data.get("q_prior")),
            verdict=data.get("verdict"),
            capabilities=frozenset(str(c) for c in data.get("capabilities") or ()),
            expected_latency_ms=data.get("expected_latency_ms"),
            aa_index_source=data.get("aa_index_source"),
            conditions=Conditions.from_json(data.get("conditions")),
            q_prior_source=data.get("q_prior_source"),
            q_prior_date=None if (day := data.get("q_prior_date")) is None else str(day)[:10],
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    """Candidates sorted by slug, with the hash that names exactly this set. Use `Catalog.of`."""

    candidates: tuple[Candidate, ...]
    hash: str
    names: Mapping[str, Candidate] = field(repr=False, compare=False)

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> "Catalog":
        ordered = tuple(sorted(candidates, key=lambda c: c.slug))
        listed = canonical_json([c.to_json() for c in ordered])
        names = {c.provider_model_id: c for c in ordered} | {c.slug: c for c in ordered}
        return cls(ordered, hashlib.sha256(listed.encode()).hexdigest(), names)

    def find(self, name: str) -> Candidate | None:
        """A model by slug or vendor id; a vendor's dated snapshot name finds the undated model."""
        return self.names.get(name) or self.names.get(_SNAPSHOT_DATE.sub("", name))

    def to_json(self) -> list[dict[str, Any]]:
        return [c.to_json() for c in self.candidates]


def decimal_text(value: Decimal | None) -> str | None:
    """Plain digits without an exponent or trailing zeros, so that equal numbers read the same."""
    if value is None:
        return None
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def price_text(value: Decimal | None) -> str | None:
    """Plain digits with at least two places, as prices are shown: `5` is `5.00`."""
    text = decimal_text(value)
    if text is None:
        return None
    whole, _, places = text.partition(".")
    return f"{whole}.{places:0<2}"


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(str(value))
