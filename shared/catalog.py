"""The catalogue's way from its file through the table `models` into the hands of the rule."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Column, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel

from shared.db import Connection, Database, connect
from shared.domain.candidate import Candidate, Catalog, price_text
from shared.domain.catalog_file import CatalogError, CatalogFile, parse_catalog
from shared.domain.conditions import OPT_IN
from shared.domain.inference import ROUTING_TARGET
from shared.models import EMPTY, document, moment, money, number

CATALOG_PATH = Path(__file__).with_name("catalog.toml")


class ModelRow(SQLModel, table=True):
    """A catalogued model; prices are US dollars per million tokens."""

    __tablename__ = "models"

    slug: str = Field(primary_key=True, sa_type=Text)
    brand: str = Field(sa_type=Text)
    provider: str = Field(sa_type=Text)
    provider_model_id: str = Field(sa_type=Text)
    display_name: str = Field(sa_type=Text)
    vendor_created_at: datetime | None = moment(optional=True)
    context_window: int
    max_output_tokens: int
    price_in: Decimal | None = money(optional=True)
    price_out: Decimal | None = money(optional=True)
    price_cache_read: Decimal | None = money(optional=True)
    price_cache_write: Decimal | None = money(optional=True)
    q_prior: Decimal | None = number()
    q_prior_source: str | None = Field(default=None, sa_type=Text)
    q_prior_date: date | None = None
    verdict: str | None = Field(default=None, sa_type=Text)
    conditions: dict[str, Any] | None = Field(default=None, sa_type=JSONB)
    expected_latency_ms: int | None = None
    capabilities: list[str] = Field(
        default_factory=list, sa_column=Column(ARRAY(Text), nullable=False, server_default=EMPTY)
    )
    aa_index_source: str | None = Field(default=None, sa_type=Text)
    active: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    updated_at: datetime = moment()


class CatalogSnapshotRow(SQLModel, table=True):
    """The catalogue as it was when decisions were made, by the hash that they name."""

    __tablename__ = "catalog_snapshots"

    hash: str = Field(primary_key=True, sa_type=Text)
    models: Any = document()
    created_at: datetime = moment()


def load_catalog(path: Path = CATALOG_PATH) -> Catalog:
    """The catalogue of a file. Raises `CatalogError`."""
    return _read(path).catalog


def provider_names(path: Path = CATALOG_PATH) -> Mapping[str, str]:
    """Display names by provider slug."""
    return _read(path).providers


def _read(path: Path) -> CatalogFile:
    try:
        return parse_catalog(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise CatalogError([f"{path.name}:1: is no text in UTF-8"]) from error


_COLUMNS = (
    "slug, brand, provider, provider_model_id, display_name, vendor_created_at, context_window, "
    "max_output_tokens, price_in, price_out, price_cache_read, price_cache_write, q_prior, "
    "q_prior_source, q_prior_date, verdict, conditions, capabilities, expected_latency_ms, "
    "aa_index_source"
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
    found = Candidate.from_json({**row, "created": created.date() if created else "1970-01-01"})
    if found.conditions is None:
        return found
    # a row that is older, or made by hand, may have ids of tenants, and receipts show what runs
    return replace(found, conditions=found.conditions.sealed())


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
        "q_prior": None if candidate.q_prior is None else float(candidate.q_prior),
        "q_prior_source": candidate.q_prior_source,
        "q_prior_date": candidate.q_prior_date,
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
        "q_prior": None,
        "q_prior_source": None,
        "q_prior_date": None,
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
    midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
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
