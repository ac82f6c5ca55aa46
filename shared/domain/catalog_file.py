"""The catalogue as an operator writes it, in TOML, and what is wrong with it, line by line.

[brands]
mistral = { name = "Mistral AI", verdict = "PASS" }

[providers]
mistral = { name = "Mistral AI" }

[[models]]
slug = "mistral-large-3"
brand = "mistral"                # of [brands]
provider = "mistral"             # of [providers]
…
q_prior = 0.74
q_prior_source = "locked anchor" # who says so
q_prior_date = 2026-11-21        # and when
"""

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from shared.domain.candidate import Candidate, Catalog, Verdict
from shared.domain.conditions import DATA_CLASSES, REGION, Conditions, DataClass
from shared.domain.inference import ROUTING_TARGET, Capability
from shared.domain.toml_document import TomlFault, read_toml

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
Words = Annotated[str, Field(pattern=r"^[^\x00]*\S[^\x00]*$", max_length=200)]
Day = Annotated[datetime.date, Field(strict=True)]
Price = Annotated[Decimal, Field(gt=0, lt=100_000, decimal_places=9)]
Region = Annotated[str, Field(pattern=rf"^{REGION}$")]
Tokens = Annotated[StrictInt, Field(gt=0, le=100_000_000)]
# where something is, as a path: ("models", 3, "slug")
Place = tuple[str | int, ...]

_PRICE = "dollars per million tokens: a number above 0 with at most nine places"
_TOKENS = "a whole number of tokens above 0"
_NAME = "lower-case letters, digits, dots, hyphens and underscores, at most 100"
_DAY = "a day such as 2026-11-21, without quotes"
# what to write, by the field's name
_WRITE = {
    "brands": 'a table of brands: mistral = { name = "Mistral AI", verdict = "PASS" }',
    "providers": 'a table of providers: mistral = { name = "Mistral AI" }',
    "models": "at least one model, each a table [[models]] of its own",
    "name": "the name to show, in quotes",
    "verdict": '"PASS", "CONDITIONAL" or "VETO", or leave it out',
    "conditions": "one at least of opt_in, data_class, region and tenant, in braces",
    "opt_in": "true, or leave it out",
    "data_class": f"a list with at least one of {', '.join(DATA_CLASSES)}",
    "region": 'a list of regions, at least one, such as ["eu", "us-east-1"]',
    "tenant": "a list of tenants' ids, at least one",
    "slug": _NAME,
    "brand": "the name of one that is under [brands]",
    "provider": "the name of one that is under [providers]",
    "provider_model_id": "the vendor's name of the model, in quotes",
    "display_name": "the name to show, in quotes",
    "created": f"the vendor's release date, {_DAY}",
    "context_window": _TOKENS,
    "max_output_tokens": _TOKENS,
    "price_in": _PRICE,
    "price_out": _PRICE,
    "price_cache_read": _PRICE,
    "price_cache_write": _PRICE,
    "q_prior": "a number from 0 to 1 with at most nine places",
    "q_prior_source": "who says so, in quotes",
    "q_prior_date": f"since when it stands, {_DAY}",
    "capabilities": f"a list of any of {', '.join(Capability)}",
    "expected_latency_ms": "whole milliseconds above 0",
    "aa_index_source": "a tag, in quotes",
}

_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([\w.\"' -]+?)\s*=")


class CatalogError(ValueError):
    """The file is no catalogue; `problems` have the form `catalog.toml:7: model x: field: why`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Conditions(BaseModel):
    """What a CONDITIONAL brand asks of a request; see `shared/domain/conditions.py`."""

    model_config = ConfigDict(extra="forbid")
    opt_in: Literal[True] | None = None
    data_class: Annotated[list[DataClass], Field(min_length=1)] | None = None
    region: Annotated[list[Region], Field(min_length=1)] | None = None
    tenant: Annotated[list[UUID], Field(min_length=1)] | None = None

    def sealed(self) -> Conditions | None:
        """As the rule has them: no tenant is named to the others, who see all conditions."""
        found = Conditions.from_json(self.model_dump(mode="json", exclude_none=True))
        return None if found is None else found.sealed()


class _Brand(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Words
    verdict: Verdict | None = None
    conditions: _Conditions | None = None


class _Provider(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Words


class _Entry(BaseModel):
    """One `[[models]]` table, as the file must have it."""

    model_config = ConfigDict(extra="forbid")

    slug: Name
    brand: Name
    provider: Name
    provider_model_id: Words
    display_name: Words
    created: Day
    context_window: Tokens
    max_output_tokens: Tokens
    price_in: Price | None = None
    price_out: Price | None = None
    price_cache_read: Price | None = None
    price_cache_write: Price | None = None
    q_prior: Annotated[Decimal, Field(ge=0, le=1, decimal_places=9)] | None = None
    q_prior_source: Words | None = None
    q_prior_date: Day | None = None
    capabilities: list[Capability] = []
    expected_latency_ms: Annotated[StrictInt, Field(gt=0)] | None = None
    aa_index_source: Words | None = None


class _Document(BaseModel):
    """All of the file. No other table is known, so that a mistyped one is not passed over."""

    model_config = ConfigDict(extra="forbid")
    brands: dict[Name, _Brand]
    providers: dict[Name, _Provider]
    models: Annotated[list[_Entry], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """`providers`: display names by slug."""

    catalog: Catalog
    providers: Mapping[str, str]


def parse_catalog(source: str, file: str) -> CatalogFile:
    """The catalogue that a TOML document describes; `file` is its name.

    Raises `CatalogError` with all that is wrong.
    """
    try:
        data = read_toml(source)
    except TomlFault as fault:
        raise CatalogError([f"{file}:{fault.line}: {fault.why}"]) from fault
    try:
        document = _Document.model_validate(data)
        faults = list(_contradictions(document))
    except ValidationError as error:
        faults = [_fault(dict(each)) for each in error.errors()]
    if faults:
        lines = _lines(source)
        raise CatalogError([f"{file}:{_told(place, why, data, lines)}" for place, why in faults])
    candidates = (_candidate(entry, document) for entry in document.models)
    names = {slug: provider.name for slug, provider in document.providers.items()}
    return CatalogFile(Catalog.of(candidates), names)


def _candidate(entry: _Entry, document: _Document) -> Candidate:
    brand = document.brands[entry.brand]
    conditions = None if brand.conditions is None else brand.conditions.sealed()
    told = None if conditions is None else conditions.to_json()
    return Candidate.from_json({**entry.model_dump(), "verdict": brand.verdict, "conditions": told})


Fault = tuple[Place, str]


def _contradictions(document: _Document) -> Iterator[Fault]:
    """What is wrong between fields that are right each by itself."""
    for slug, brand in document.brands.items():
        place = ("brands", slug, "conditions")
        if brand.conditions is not None and brand.verdict != "CONDITIONAL":
            yield place, 'are for the verdict "CONDITIONAL"; leave one of the two out'
        elif brand.conditions is not None and not brand.conditions.model_fields_set:
            yield place, f"say nothing; write {_WRITE['conditions']}"
    owners = {ROUTING_TARGET: "the router"}
    for index, entry in enumerate(document.models):
        at: Place = ("models", index)
        for field, known in (("brand", document.brands), ("provider", document.providers)):
            name = getattr(entry, field)
            if name not in known:
                why = f"{name} is not under [{field}s]; write one of {', '.join(known)}, or add it"
                yield (*at, field), why
        yield from _missing_halves(entry, at)
        for field in ("slug", "provider_model_id"):
            if owner := owners.get(getattr(entry, field)):
                yield (*at, field), f"{getattr(entry, field)} is taken by {owner}; write another"
        owners |= dict.fromkeys((entry.slug, entry.provider_model_id), f"model {entry.slug}")


def _missing_halves(entry: _Entry, at: Place) -> Iterator[Fault]:
    """A price has two sides, and a quality that nobody said on no day is a rumour."""
    prices = {"price_in": entry.price_in, "price_out": entry.price_out}
    for field, price in prices.items():
        if price is None and any(prices.values()):
            yield (*at, field), f"is missing; price_in and price_out come together: {_PRICE}"
    for field in ("q_prior_source", "q_prior_date"):
        given = getattr(entry, field) is not None
        if entry.q_prior is not None and not given:
            yield (*at, field), f"is missing; a q_prior needs it: write {_WRITE[field]}"
        elif entry.q_prior is None and given:
            yield (*at, field), "belongs to a q_prior; write one, or leave this out"


def _fault(error: Mapping[str, Any]) -> Fault:
    """One of pydantic's errors: where it is, what is wrong and what to write."""
    place: Place = tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return place, _no_such_field(place)
    named = next((p for p in reversed(place) if isinstance(p, str) and p in _WRITE), "models")
    if error["type"] == "missing":
        return place, f"is missing; write {_WRITE[named]}"
    if "[key]" in error["loc"]:
        return place, f"is not right as a name; write {_NAME}"
    return place, f"{_shown(error['input'])} is not right; write {_WRITE[named]}"


def _no_such_field(place: Place) -> str:
    table: type[BaseModel] = _Conditions
    if len(place) == 3:
        table = _BY_NAME.get(place[0], _Entry)
    known = list((table if len(place) > 1 else _Document).model_fields)
    close = get_close_matches(str(place[-1]), known, 1)
    meant = f"did you mean {close[0]}? They" if close else "they"
    return f"is no {'field' if len(place) > 1 else 'table'}; {meant} are {', '.join(known)}"


_BY_NAME: Mapping[str | int, type[BaseModel]] = {"brands": _Brand, "providers": _Provider}


def _shown(value: Any) -> str:
    """A value as the file has it; what is long is `this`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and len(value) <= 60:
        return f'"{value}"'
    if isinstance(value, int) and value.bit_length() > 200:
        return "this"
    return str(value) if isinstance(value, int | Decimal | datetime.date) else "this"


def _told(place: Place, why: str, data: Mapping[str, Any], lines: Mapping[Place, int]) -> str:
    """`7: model grok-4: q_prior: why`; what is missing is told at the line of its table."""
    around = (place[:length] for length in range(len(place), 0, -1))
    line = next((lines[each] for each in around if each in lines), 1)
    if place[0] == "models" and len(place) > 1:
        entry = data["models"][place[1]]
        slug = entry.get("slug", "(without slug)") if isinstance(entry, dict) else "(no table)"
        field = ".".join(map(str, place[2:]))
        return f"{line}: model {slug}: {field}: {why}" if field else f"{line}: model {slug}: {why}"
    return f"{line}: {'.'.join(map(str, place))}: {why}"


def _lines(source: str) -> Mapping[Place, int]:
    """On which line each table and each field is given."""
    found: dict[Place, int] = {}
    counts: dict[str, int] = {}
    table: Place = ()
    for number, line in enumerate(source.splitlines(), 1):
        if heading := _TABLE.match(line):
            table = _parts(heading[2])
            if heading[1] == "[[":
                counts[heading[2]] = counts.get(heading[2], -1) + 1
                found.setdefault(table, number)
                table = (*table, counts[heading[2]])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            path = (*table, *_parts(key[1]))
            for length in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
    return found


def _parts(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
