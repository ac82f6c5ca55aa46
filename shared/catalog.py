"""The catalogue's way from its file through the table `models` into the hands of the rule."""

import datetime
import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.db import Connection, Database, connect
from shared.domain.candidate import Candidate, Catalog, Verdict, price_text
from shared.domain.conditions import OPT_IN, REGION, DataClass
from shared.domain.inference import ROUTING_TARGET, Capability

CATALOG_PATH = Path(__file__).with_name("catalog.toml")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
Price = Annotated[Decimal, Field(gt=0, lt=100_000, decimal_places=9)]
Region = Annotated[str, Field(pattern=rf"^{REGION}$")]
Tokens = Annotated[int, Field(gt=0, le=100_000_000)]


class CatalogError(ValueError):
    """The catalogue's file is not right; the message names file, line, model and field."""


class _Conditions(BaseModel):
    """What a CONDITIONAL brand asks of a request; see `shared/domain/conditions.py`."""

    model_config = ConfigDict(extra="forbid")
    opt_in: Literal[True] | None = None
    data_class: Annotated[list[DataClass], Field(min_length=1)] | None = None
    region: Annotated[list[Region], Field(min_length=1)] | None = None
    tenant: Annotated[list[UUID], Field(min_length=1)] | None = None


class _Brand(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    verdict: Verdict | None = None
    conditions: _Conditions | None = None

    @model_validator(mode="after")
    def _conditions_belong_to_the_verdict(self) -> "_Brand":
        if self.conditions is not None and self.verdict != "CONDITIONAL":
            raise ValueError("conditions are for the verdict CONDITIONAL")
        if self.conditions is not None and not self.conditions.model_fields_set:
            raise ValueError("conditions: at least one is needed")
        return self


class _Provider(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class _Entry(BaseModel):
    """One `[[models]]` table, as the file must have it."""

    model_config = ConfigDict(extra="forbid")

    slug: Name
    brand: Name
    provider: Name
    provider_model_id: Annotated[str, Field(min_length=1, max_length=200)]
    display_name: Annotated[str, Field(min_length=1)]
    created: datetime.date
    context_window: Tokens
    max_output_tokens: Tokens
    price_in: Price | None = None
    price_out: Price | None = None
    price_cache_read: Price | None = None
    price_cache_write: Price | None = None
    q_prior: Annotated[Decimal, Field(ge=0, le=1, decimal_places=9)] | None = None
    capabilities: list[Capability] = []
    expected_latency_ms: Annotated[int, Field(gt=0)] | None = None
    aa_index_source: str | None = None


class _Names(BaseModel):
    brands: dict[Name, _Brand]
    providers: dict[Name, _Provider]


def load_catalog(path: Path = CATALOG_PATH) -> Catalog:
    """The catalogue of a file. Raises `CatalogError`."""
    data, source = _parse(path)
    names = _names(data, path)
    lines = [n for n, line in enumerate(source.splitlines(), 1) if line.strip() == "[[models]]"]
    entries = data.get("models", [])
    if not isinstance(entries, list) or len(entries) != len(lines):
        raise CatalogError(f"{path.name}: every model is a [[models]] table of its own")
    candidates: list[Candidate] = []
    taken: set[str] = set()
    for entry, line in zip(entries, lines, strict=True):
        where = f"{path.name}:{line}: model {entry.get('slug', '(without slug)')}"
        candidate = _candidate(entry, names, where)
        for name in {candidate.slug, candidate.provider_model_id}:
            if name in taken or name == ROUTING_TARGET:
                raise CatalogError(f"{where}: the name {name} is taken already")
            taken.add(name)
        candidates.append(candidate)
    return Catalog.of(candidates)


def provider_names(path: Path = CATALOG_PATH) -> dict[str, str]:
    """Display names by provider slug."""
    return {slug: p.name for slug, p in _names(_parse(path)[0], path).providers.items()}


def _parse(path: Path) -> tuple[dict[str, Any], str]:
    source = path.read_text(encoding="utf-8")
    try:
        return tomllib.loads(source, parse_float=Decimal), source
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path.name}: {error}") from error


def _names(data: Mapping[str, Any], path: Path) -> _Names:
    try:
        return _Names.model_validate(data)
    except ValidationError as error:
        raise CatalogError(f"{path.name}: {_first(error)}") from error


def _candidate(entry: Mapping[str, Any], names: _Names, where: str) -> Candidate:
    try:
        checked = _Entry.model_validate(entry)
    except ValidationError as error:
        raise CatalogError(f"{where}: {_first(error)}") from error
    if checked.brand not in names.brands:
        raise CatalogError(f"{where}: brand: {checked.brand} is not under [brands]")
    if checked.provider not in names.providers:
        raise CatalogError(f"{where}: provider: {checked.provider} is not under [providers]")
    if (checked.price_in is None) != (checked.price_out is None):
        raise CatalogError(f"{where}: price_in and price_out come together")
    brand = names.brands[checked.brand]
    asked = brand.conditions
    conditions = None if asked is None else asked.model_dump(mode="json", exclude_none=True)
    return _sealed(
        Candidate.from_json(
            {**checked.model_dump(), "verdict": brand.verdict, "conditions": conditions}
        )
    )


def _sealed(candidate: Candidate) -> Candidate:
    """Without any tenant's id: what is running is shown in every tenant's receipts."""
    conditions = candidate.conditions
    return candidate if conditions is None else replace(candidate, conditions=conditions.sealed())


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


_COLUMNS = (
    "slug, brand, provider, provider_model_id, display_name, vendor_created_at, context_window, "
    "max_output_tokens, price_in, price_out, price_cache_read, price_cache_write, q_prior, "
    "verdict, conditions, capabilities, expected_latency_ms, aa_index_source"
)
_UPSERT = f"""
INSERT INTO models ({_COLUMNS})
SELECT {_COLUMNS} FROM jsonb_populate_recordset(null::models, $1::jsonb)
ON CONFLICT (slug) DO UPDATE SET updated_at = now(), {
    ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[1:])
}"""
_SNAPSHOT = (
    "INSERT INTO catalog_snapshots (hash, models) VALUES ({}, CAST({} AS jsonb)) "
    "ON CONFLICT (hash) DO NOTHING"
)


async def seed_catalog(url: str, catalog: Catalog | None = None) -> Catalog:
    """Write the catalogue into `models`, as the role of the URL (the owner).

    What the file says of a model wins over what the table says, except `active`, which is the
    operator's. Rows that the file does not name stay as they are.
    """
    catalog = catalog or load_catalog()
    connection = await connect(url, None, "ainfera-seed")
    try:
        async with connection.transaction():
            await write_catalog(connection, catalog)
    finally:
        await connection.close()
    return catalog


async def write_catalog(connection: Connection, catalog: Catalog) -> None:
    """The same in a transaction of the caller's."""
    rows = [row | {"vendor_created_at": f"{row['created']}T00:00:00Z"} for row in catalog.to_json()]
    await connection.execute(_UPSERT, json.dumps(rows))
    snapshot = _SNAPSHOT.format("$1", "$2")
    await connection.execute(snapshot, catalog.hash, json.dumps(catalog.to_json()))


async def open_catalog(db: Database) -> Catalog:
    """The active models of the table; their snapshot is kept under its hash, for receipts."""
    async with db.everyone() as session:
        found = await session.execute(text("SELECT * FROM models WHERE active"))
        catalog = Catalog.of(_from_row(row) for row in found.mappings())
        snapshot = {"hash": catalog.hash, "models": json.dumps(catalog.to_json())}
        await session.execute(text(_SNAPSHOT.format(":hash", ":models")), snapshot)
        await session.commit()
    return catalog


async def catalog_snapshot(session: AsyncSession, catalog_hash: str | None) -> list[dict[str, Any]]:
    """The models that a decision chose from, by the hash its row names; empty if unknown."""
    query = text("SELECT models FROM catalog_snapshots WHERE hash = :hash")
    models: list[dict[str, Any]] | None = await session.scalar(query, {"hash": catalog_hash})
    return models or []


def _from_row(row: Mapping[Any, Any]) -> Candidate:
    created = row["vendor_created_at"]
    return _sealed(
        Candidate.from_json({**row, "created": created.date() if created else "1970-01-01"})
    )


Shape = Literal["bare", "openai", "anthropic"]


def model_listing(catalog: Catalog, active_providers: frozenset[str], shape: Shape) -> Any:
    """GET /v1/models: a bare list, the OpenAI list or the Anthropic page, router first."""
    entries = [_router_entry(catalog, active_providers)]
    entries += [_model_entry(c, active_providers) for c in catalog.candidates]
    match shape:
        case "bare":
            return [_listed(e) for e in entries]
        case "openai":
            return {"object": "list", "data": [_listed(e) for e in entries]}
        case "anthropic":
            data = [_anthropic(e) for e in entries]
            first, last = data[0]["id"], data[-1]["id"]
            return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def _model_entry(candidate: Candidate, active_providers: frozenset[str]) -> dict[str, Any]:
    return {
        "id": candidate.provider_model_id,
        "slug": candidate.slug,
        "display_name": candidate.display_name,
        "created": candidate.created,
        "owned_by": candidate.brand,
        "provider": candidate.provider,
        "type": "model",
        "context_window": candidate.context_window,
        "max_output_tokens": candidate.max_output_tokens,
        "capabilities": sorted(candidate.capabilities),
        "input_cost_per_million_usd": price_text(candidate.price_in),
        "output_cost_per_million_usd": price_text(candidate.price_out),
        "routable_status": routable_status(candidate, active_providers),
    }


def _router_entry(catalog: Catalog, active_providers: frozenset[str]) -> dict[str, Any]:
    routable = [c for c in catalog.candidates if routable_status(c, active_providers) == "routable"]
    return {
        "id": ROUTING_TARGET,
        "slug": ROUTING_TARGET,
        "display_name": "Ainfera Inference",
        "created": max((c.created for c in catalog.candidates), default="1970-01-01"),
        "owned_by": "ainfera",
        "provider": "ainfera",
        "type": "router",
        "context_window": max((c.context_window for c in routable), default=0),
        "max_output_tokens": max((c.max_output_tokens for c in routable), default=0),
        "capabilities": sorted({name for c in routable for name in c.capabilities}),
        "input_cost_per_million_usd": None,
        "output_cost_per_million_usd": None,
        "routable_status": "routable" if routable else "inactive",
    }


def routable_status(candidate: Candidate, active_providers: frozenset[str]) -> str:
    """`routable`; `opt_in`: only if a request's `allow` names it; `conditional`: only if the
    request meets its conditions; `pinned_only`; `inactive`."""
    if candidate.provider not in active_providers or candidate.prices is None:
        return "inactive"
    if candidate.verdict not in ("PASS", "CONDITIONAL"):
        return "inactive"
    if candidate.q_prior is None:
        return "pinned_only"
    if candidate.verdict == "PASS":
        return "routable"
    return "opt_in" if (candidate.conditions or OPT_IN) == OPT_IN else "conditional"


def _listed(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "object": "model", "created": _epoch(entry["created"])}


def _anthropic(entry: dict[str, Any]) -> dict[str, Any]:
    """The vendor's `type` is always `model`, so a router shows by its id and provider."""
    created_at = f"{entry['created']}T00:00:00Z"
    return {**_listed(entry), "type": "model", "created_at": created_at}


def _epoch(day: str) -> int:
    midnight = datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC)
    return int(midnight.timestamp())


def provider_listing(
    catalog: Catalog, active_providers: frozenset[str], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """GET /v1/providers; `models` holds the vendor ids. `names` is `provider_names()`."""
    return [
        {
            "slug": slug,
            "name": names.get(slug, slug),
            "active": slug in active_providers,
            "models": [c.provider_model_id for c in catalog.candidates if c.provider == slug],
        }
        for slug in sorted({c.provider for c in catalog.candidates})
    ]
