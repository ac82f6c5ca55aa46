"""The catalogue: its file, its table, and what clients are told of it."""

import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from shared.catalog import (
    CATALOG_PATH,
    catalog_snapshot,
    load_catalog,
    model_listing,
    open_catalog,
    provider_listing,
    provider_names,
    routable_status,
    seed_catalog,
)
from shared.config import PROVIDER_SETTINGS, Settings
from shared.db import Database, driver_dsn
from shared.domain.candidate import Candidate, Catalog
from shared.domain.capture import columns, receipt
from shared.domain.catalog_file import CatalogError
from shared.domain.routing import conditions_hold, decide
from shared.domain.routing_policy import CallerPolicy, RequestFeatures

CATALOG = load_catalog()
SLOW = 'slug = "deepseek-flash"\nexpected_latency_ms = 900'
# printf 'ainfera tenant 00000000-0000-7000-8000-00000000000a' | sha256sum | head -c 16
SEAL = "4bd319b7c774d94a"
SPOKEN = frozenset(PROVIDER_SETTINGS)
LOCK = "routing_backend_v1_lock"
ANCHORS = {
    "mistral-large-3": ("2.00", "6.00", "0.74"),
    "gemini-3-1-pro": ("1.25", "10.00", "0.87"),
    "grok-4": ("5.00", "15.00", "0.86"),
    "gpt-5-5": ("5.00", "15.00", "0.90"),
    "claude-opus-4-7": ("15.00", "75.00", "0.95"),
}


class TestFile:
    def test_the_five_anchors_are_exact_and_alone_in_bearing_the_tag(self) -> None:
        tagged = {c.slug: c for c in CATALOG.candidates if c.aa_index_source == LOCK}
        assert tagged.keys() == ANCHORS.keys()
        for slug, (price_in, price_out, q_prior) in ANCHORS.items():
            found = tagged[slug]
            assert found.price_in == Decimal(price_in)
            assert found.price_out == Decimal(price_out)
            assert found.q_prior == Decimal(q_prior)
            assert found.verdict == "PASS"

    def test_it_is_broad_enough(self) -> None:
        assert len(CATALOG.candidates) >= 12
        assert len({c.brand for c in CATALOG.candidates}) >= 6
        for name in (
            "claude-opus-4-7",
            "claude-sonnet-4-6",
            "claude-haiku-4-5",
            "claude-haiku-4-5-20251001",
            "gpt-5.5",
            "gpt-5-5",
            "gpt-5.5-pro",
            "mistral-medium-3",
        ):
            assert CATALOG.find(name) is not None, name

    def test_only_the_responses_tier_has_a_wire_nobody_speaks(self) -> None:
        unspoken = [c.slug for c in CATALOG.candidates if c.provider not in SPOKEN]
        assert unspoken == ["gpt-5-5-pro"]

    def test_cached_input_is_never_dearer_than_what_a_hold_covers(self) -> None:
        for c in CATALOG.candidates:
            assert c.price_in is not None, c.slug
            assert (c.price_cache_read or 0) <= c.price_in, c.slug
            assert (c.price_cache_write or 0) <= c.price_in * Decimal("1.25"), c.slug

    def test_its_hash_names_its_content_not_its_order(self) -> None:
        shuffled = Catalog.of(reversed(CATALOG.candidates))
        assert shuffled.hash == CATALOG.hash
        assert Catalog.of(CATALOG.candidates[1:]).hash != CATALOG.hash
        assert Catalog.of(Candidate.from_json(c) for c in CATALOG.to_json()) == CATALOG


class TestFaults:
    """Each fault is told with the file, the line, the model and the field, and what to write."""

    @pytest.mark.parametrize(
        ("right", "wrong", "says"),
        [
            ("q_prior = 0.95", "q_prior = 1.5", "model claude-opus-4-7: q_prior: 1.5 is not right"),
            (
                "price_in = 15.00",
                "price_in = -1",
                "model claude-opus-4-7: price_in: -1 is not right",
            ),
            ("price_in = 15.00\n", "", "model claude-opus-4-7: price_in: is missing; price_in and"),
            ("price_out = 75.00\n", "", "price_out: is missing"),
            ('slug = "grok-4"\n', "", "model (without slug): slug: is missing; write"),
            ('slug = "grok-4"', 'slug = "Grok 4"', "model Grok 4: slug:"),
            ('slug = "grok-4"', 'slug = "gpt-5-5"', "model gpt-5-5: slug: gpt-5-5 is taken"),
            (
                '_id = "grok-4-0709"',
                '_id = "mistral-large-3"',
                "provider_model_id: mistral-large-3",
            ),
            ('slug = "grok-4"', 'slug = "ainfera-inference"', "slug: ainfera-inference is taken"),
            ('slug = "grok-4"\nbrand = "xai"', 'slug = "grok-4"\nbrand = "x"', "brand: x is not"),
            ('provider = "xai"', 'provider = "x"', "provider: x is not under [providers]"),
            (
                "context_window = 256_000",
                "context_windows = 256_000",
                "model grok-4: context_windows: is no field; did you mean context_window?",
            ),
            ("context_window = 256_000", "context_window = true", "context_window: true is not"),
            ("context_window = 256_000", "context_window = 0", "context_window: 0 is not"),
            ("created = 2025-07-09", 'created = "July"', 'model grok-4: created: "July" is not'),
            (
                '["tools"]',
                '["magic"]',
                'model deepseek-flash: capabilities.0: "magic" is not right',
            ),
            ("q_prior_date = 2026-11-21\n", "", "q_prior_date: is missing; a q_prior needs"),
            (
                'q_prior_source = "locked anchor"\n',
                "",
                "q_prior_source: is missing; a q_prior needs",
            ),
            ("q_prior = 0.95\n", "", "model claude-opus-4-7: q_prior_source: belongs to a q_prior"),
            ("q_prior_date = 2026-11-21", 'q_prior_date = "now"', "q_prior_date:"),
            (
                'verdict = "CONDITIONAL"',
                'verdict = "MAYBE"',
                'brands.deepseek.verdict: "MAYBE" is not',
            ),
            (
                '"Anthropic", verdict',
                '"Anthropic", verdikt',
                "brands.anthropic.verdikt: is no field",
            ),
            ("{ opt_in = true }", "{ opt_out = true }", "brands.deepseek.conditions.opt_out:"),
            ("{ opt_in = true }", "{ opt_in = false }", "brands.deepseek.conditions.opt_in:"),
            ("{ opt_in = true }", "{}", "brands.deepseek.conditions:"),
            (
                "{ opt_in = true }",
                '{ data_class = ["secret"] }',
                "brands.deepseek.conditions.data_class",
            ),
            ("{ opt_in = true }", "{ region = [] }", "brands.deepseek.conditions.region:"),
            ("{ opt_in = true }", '{ region = ["EU"] }', "brands.deepseek.conditions.region.0:"),
            ("{ opt_in = true }", '{ tenant = ["me"] }', "brands.deepseek.conditions.tenant.0:"),
            ('verdict = "CONDITIONAL"', 'verdict = "PASS"', "brands.deepseek.conditions: are for"),
            ('xai = { name = "xAI" }', "xai = {}", "providers.xai.name: is missing; write"),
            ('xai = { name = "xAI" }', 'xai = "xAI"', 'providers.xai: "xAI" is not right'),
            ('xai = { name = "xAI" }', 'XAI = { name = "xAI" }', "providers.XAI: is not right"),
            ("[providers]\n", "[provider]\n", "provider: is no table; did you mean providers?"),
            ('slug = "grok-4"', "slug = ", "Invalid value"),
        ],
    )
    def test_told(self, tmp_path: Path, right: str, wrong: str, says: str) -> None:
        source = CATALOG_PATH.read_text(encoding="utf-8")
        assert right in source
        broken = tmp_path / "catalog.toml"
        broken.write_text(source.replace(right, wrong, 1), encoding="utf-8")
        with pytest.raises(CatalogError) as fault:
            load_catalog(broken)
        assert all(re.match(r"catalog\.toml:\d+: ", each) for each in fault.value.problems)
        assert str(fault.value) == "\n".join(fault.value.problems)
        assert says in str(fault.value)

    @pytest.mark.parametrize(
        ("right", "wrong", "line"),
        [
            ("q_prior = 0.86", "q_prior = 9", "q_prior = 9"),
            ('capabilities = ["tools"]', 'capabilities = [\n"x"]', "capabilities = ["),
            ('slug = "grok-4"\n', "", "[[models]]"),
            (
                'verdict = "CONDITIONAL"',
                'verdict = "MAYBE"',
                'deepseek = { name = "DeepSeek", verd',
            ),
            ('deepseek = { name = "DeepSeek" }', "[providers.deepseek]\nname = 1", "name = 1"),
            ('xai = { name = "xAI" }', "xai.name = 1", "xai.name = 1"),
            ('[[models]]\nslug = "grok-4"', '[[ model ]] # x\nslug = "grok-4"', "[[ model ]] # x"),
            ("[brands]\n", "colour = 1\n[brands]\n", "colour = 1"),
            ('slug = "grok-4"', "slug = ", "slug = "),
        ],
    )
    def test_the_line_is_that_of_the_field(
        self, tmp_path: Path, right: str, wrong: str, line: str
    ) -> None:
        source = CATALOG_PATH.read_text(encoding="utf-8")
        assert right in source
        source = source.replace(right, wrong, 1)
        broken = tmp_path / "catalog.toml"
        broken.write_text(source, encoding="utf-8")
        with pytest.raises(CatalogError) as fault:
            load_catalog(broken)
        number = int(fault.value.problems[0].split(":")[1])
        assert source.splitlines()[number - 1].startswith(line)

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("", "brands: is missing"),
            ("[brands]\n[providers]\n", "models: is missing; write"),
            ("models = []\n[brands]\n[providers]\n", "catalog.toml:1: models: "),
            ("[brands]\n[providers]\n[[model]]\nslug = 'a'\n", "did you mean models?"),
        ],
    )
    def test_a_file_without_models_is_not_right(
        self, tmp_path: Path, source: str, says: str
    ) -> None:
        empty = tmp_path / "catalog.toml"
        empty.write_text(source)
        with pytest.raises(CatalogError, match=re.escape(says)):
            load_catalog(empty)

    def test_all_that_is_wrong_is_told_at_once(self, tmp_path: Path) -> None:
        source = CATALOG_PATH.read_text(encoding="utf-8")
        broken = tmp_path / "catalog.toml"
        broken.write_text(source.replace("q_prior = ", "q_prior = 1"), encoding="utf-8")
        with pytest.raises(CatalogError) as fault:
            load_catalog(broken)
        assert len(fault.value.problems) == source.count("q_prior = ") > 10


class TestPriors:
    def test_each_says_where_it_is_from_and_of_what_day(self) -> None:
        for candidate in CATALOG.candidates:
            given = candidate.q_prior, candidate.q_prior_source, candidate.q_prior_date
            assert all(given) or not any(given), candidate.slug

    def test_a_catalogue_without_sources_keeps_its_form_and_so_its_hash(self) -> None:
        told = CATALOG.names["gpt-5-5"].to_json()
        named = {"q_prior_source", "q_prior_date"}
        bare = {name: value for name, value in told.items() if name not in named}
        assert Candidate.from_json(bare).to_json() == bare
        assert told.keys() - bare.keys() == named
        assert Candidate.from_json(told).to_json() == told

    def test_they_come_through_the_table(self) -> None:
        """`TestTable` compares all of the catalogue; here is that there is something to compare."""
        gpt, pro = CATALOG.names["gpt-5-5"], CATALOG.names["gpt-5-5-pro"]
        assert (gpt.q_prior_source, gpt.q_prior_date) == ("locked anchor", "2026-11-21")
        assert (pro.q_prior_source, pro.q_prior_date) == (None, None)


class TestTable:
    async def test_seeded_as_owner_and_read_as_application(
        self, owner_url: str, settings: Settings
    ) -> None:
        assert await seed_catalog(owner_url) == CATALOG
        assert await seed_catalog(owner_url) == CATALOG
        db = Database(settings)
        try:
            assert await open_catalog(db) == CATALOG
            async with db.session(uuid4()) as session:  # prices are nobody's secret
                assert await catalog_snapshot(session, CATALOG.hash) == CATALOG.to_json()
                assert await catalog_snapshot(session, "unknown") == []
        finally:
            await db.aclose()

    async def test_conditions_and_latencies_come_through_the_table(
        self, owner_url: str, settings: Settings, tmp_path: Path
    ) -> None:
        tenant = "00000000-0000-7000-8000-00000000000A"
        asks = f'data_class = ["public"], region = ["eu"], tenant = ["{tenant}"]'
        source = CATALOG_PATH.read_text(encoding="utf-8")
        source = source.replace("opt_in = true }", f"opt_in = true, {asks} }}")
        source = source.replace('slug = "deepseek-flash"', SLOW, 1)
        asking = tmp_path / "catalog.toml"
        asking.write_text(source, encoding="utf-8")
        db = Database(settings)
        try:
            await seed_catalog(owner_url, load_catalog(asking))
            found = (await open_catalog(db)).names["deepseek-flash"]
        finally:
            await seed_catalog(owner_url)
            await db.aclose()
        assert found.expected_latency_ms == 900
        assert found.conditions is not None
        assert found.conditions.to_json() == {
            "opt_in": True,
            "data_class": ["public"],
            "region": ["eu"],
            "tenant": [SEAL],
        }

    async def test_no_snapshot_names_the_tenants_of_a_brand(
        self, owner_url: str, settings: Settings, tmp_path: Path
    ) -> None:
        """Also of a row that is older or made by hand: all tenants' receipts show conditions."""
        tenant = "00000000-0000-7000-8000-00000000000a"
        asks = json.dumps({"tenant": [tenant]})
        change = f"UPDATE models SET conditions = '{asks}' WHERE slug = 'deepseek-flash'"
        db = Database(settings)
        try:
            await seed_catalog(owner_url)
            await _as_owner(owner_url, change)
            running = await open_catalog(db)
            async with db.session(uuid4()) as session:
                snapshot = await catalog_snapshot(session, running.hash)
        finally:
            await seed_catalog(owner_url)
            await db.aclose()
        assert tenant not in json.dumps(snapshot)
        asked = RequestFeatures("general", 1000, 1000, tenant_id=tenant)
        other = replace(asked, tenant_id=str(uuid4()))
        theirs = running.names["deepseek-flash"]
        assert [conditions_hold(theirs, each) for each in (asked, other)] == [True, False]

    @pytest.mark.parametrize("conditions", ['{"phase": ["moon"]}', "{}", "[]", '"opt_in"'])
    async def test_a_condition_that_nobody_would_look_at_is_refused(
        self, owner_url: str, conditions: str
    ) -> None:
        await seed_catalog(owner_url)
        change = f"UPDATE models SET conditions = '{conditions}' WHERE slug = 'deepseek-flash'"
        with pytest.raises(asyncpg.CheckViolationError):
            await _as_owner(owner_url, change)

    async def test_the_file_wins_but_for_what_is_the_operators(
        self, owner_url: str, settings: Settings
    ) -> None:
        await seed_catalog(owner_url)
        await _as_owner(
            owner_url,
            "UPDATE models SET price_in = 99, aa_index_source = 'x' WHERE slug = 'gpt-5-5'",
            "UPDATE models SET active = false WHERE slug = 'grok-4'",
        )
        await seed_catalog(owner_url)
        db = Database(settings)
        try:
            found = await open_catalog(db)
        finally:
            await db.aclose()
            await _as_owner(owner_url, "UPDATE models SET active = true")
        assert "grok-4" not in found.names
        assert found.names["gpt-5-5"] == CATALOG.names["gpt-5-5"]

    async def test_what_an_operator_changed_has_a_snapshot_for_its_receipts(
        self, owner_url: str, settings: Settings
    ) -> None:
        await seed_catalog(owner_url)
        await _as_owner(owner_url, "UPDATE models SET price_in = 9.5 WHERE slug = 'grok-4'")
        db = Database(settings)
        try:
            changed = await open_catalog(db)
            assert changed.hash != CATALOG.hash
            asked = RequestFeatures("general", 1000, 1000)
            decision = decide(asked, changed, CallerPolicy(), SPOKEN, False, "s")
            async with db.session(uuid4()) as session:
                snapshot = await catalog_snapshot(session, decision.catalog.hash)
        finally:
            await db.aclose()
        unknown = dict.fromkeys(("cost_actual", "observed_latency_ms", "ttft_ms"))
        fate = {"inference_id": "i", "outcome_status": "succeeded"}
        made = receipt({**columns(decision), **unknown, **fate}, snapshot)
        [grok] = [c for c in made["candidates"] if c["model_slug"] == "grok-4"]
        assert grok["price_in_per_mtok_usd"] == "9.50"
        assert grok["projected_cost_usd"] == "0.024500000"


class TestListing:
    def test_bare(self) -> None:
        listed = model_listing(CATALOG, SPOKEN, "bare")
        by_id = {entry["id"]: entry for entry in listed}
        assert len(by_id) == len(CATALOG.candidates) + 1
        router, gpt = by_id["ainfera-inference"], by_id["gpt-5.5"]
        assert (router["type"], router["provider"]) == ("router", "ainfera")
        assert gpt == {
            "id": "gpt-5.5",
            "object": "model",
            "slug": "gpt-5-5",
            "display_name": "GPT-5.5",
            "created": 1776902400,
            "owned_by": "openai",
            "provider": "openai",
            "type": "model",
            "context_window": 1_000_000,
            "max_output_tokens": 128_000,
            "capabilities": ["documents", "json_schema", "thinking", "tools", "vision"],
            "input_cost_per_million_usd": "5.00",
            "output_cost_per_million_usd": "15.00",
            "routable_status": "routable",
            "q_prior": 0.9,
            "q_prior_source": "locked anchor",
            "q_prior_date": "2026-11-21",
        }
        assert {router[name] for name in ("q_prior", "q_prior_source", "q_prior_date")} == {None}
        assert by_id["gpt-5-mini"]["input_cost_per_million_usd"] == "0.25"
        assert not any(alias in str(listed) for alias in ("mithril", "ainfera-auto"))

    def test_openai(self) -> None:
        page = model_listing(CATALOG, SPOKEN, "openai")
        assert page["object"] == "list"
        assert page["data"] == model_listing(CATALOG, SPOKEN, "bare")

    def test_anthropic(self) -> None:
        page = model_listing(CATALOG, SPOKEN, "anthropic")
        ids = [entry["id"] for entry in page["data"]]
        assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        assert page["has_more"] is False
        assert {"ainfera-inference", "claude-opus-4-7", "claude-sonnet-4-6"} <= set(ids)
        for entry in page["data"]:
            assert entry["type"] == "model"
            assert entry["display_name"]
            assert entry["created_at"].endswith("T00:00:00Z")

    @pytest.mark.parametrize(
        ("slug", "active", "status"),
        [
            ("gpt-5-5", SPOKEN, "routable"),
            ("gpt-5-5", frozenset(), "inactive"),
            ("gpt-5-5-pro", SPOKEN, "inactive"),
            ("gpt-5-5-pro", frozenset({"openai-responses"}), "pinned_only"),
            ("deepseek-flash", SPOKEN, "opt_in"),
        ],
    )
    def test_routable_status(self, slug: str, active: frozenset[str], status: str) -> None:
        assert routable_status(CATALOG.names[slug], active) == status

    def test_providers(self) -> None:
        listed = provider_listing(CATALOG, frozenset({"openai"}), provider_names())
        by_slug: dict[str, Any] = {entry["slug"]: entry for entry in listed}
        assert by_slug["openai"] == {
            "slug": "openai",
            "name": "OpenAI",
            "active": True,
            "models": ["gpt-5.5", "gpt-5-mini"],
        }
        assert by_slug["anthropic"]["active"] is False
        assert by_slug["openai-responses"]["models"] == ["gpt-5.5-pro"]


async def _as_owner(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(driver_dsn(url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
