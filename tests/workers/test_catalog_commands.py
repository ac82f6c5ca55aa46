"""`fleet catalog`: what differs, what is wrong in a file, and a file that is applied."""

import asyncio
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shared.catalog import CATALOG_PATH, load_catalog, seed_catalog
from shared.config import Settings
from shared.control import ControlListener
from shared.db import Database
from shared.domain.candidate import Candidate, Catalog
from shared.domain.catalog_diff import compare_catalogs, compare_prices, percent
from shared.domain.price_list import PriceList, PriceListError, prices_on
from shared.live_catalog import LiveCatalog
from shared.valkey import open_valkey
from tests.test_cli import fleet
from tests.workers.running import until

Fleet = Callable[..., Any]
SOURCE = CATALOG_PATH.read_text()
CATALOG = load_catalog()
DAY = date(2026, 11, 1)

PRICES: list[dict[str, Any]] = [
    {
        "id": "openai",
        "name": "OpenAI",
        "models": [
            {"id": "o3", "match": {"equals": "o3"}, "prices": {"input_mtok": 2}},
            {
                "id": "gpt-5-mini",
                "match": {"or": [{"equals": "gpt-5-mini"}, {"starts_with": "gpt-5-mini-2"}]},
                "prices": [
                    {"prices": {"input_mtok": 0.5, "output_mtok": 2, "cache_read_mtok": 0.025}},
                    {
                        "constraint": {"start_date": "2026-10-01"},
                        "prices": {"input_mtok": 0.375, "output_mtok": 2, "cache_read_mtok": 0.025},
                    },
                    {
                        "constraint": {"start_date": "2027-01-01"},
                        "prices": {"input_mtok": 9, "output_mtok": 9},
                    },
                ],
            },
        ],
    },
    {
        "id": "x-ai",
        "name": "xAI",
        "models": [
            {
                "id": "grok-4",
                "match": {"and": [{"contains": "GROK-4"}, {"regex": "-0709$"}]},
                "prices": {
                    "input_mtok": {"base": 3, "tiers": [{"start": 128000, "price": 6}]},
                    "output_mtok": 15,
                },
            }
        ],
    },
    {
        "id": "deepseek",
        "name": "DeepSeek",
        "models": [
            {
                "id": "deepseek-flash",
                "match": {"ends_with": "-flash"},
                "prices": [
                    {"prices": {"input_mtok": 0.3, "output_mtok": 1.2}},
                    {
                        "constraint": {"start_time": "00:30:00Z", "end_time": "08:30:00Z"},
                        "prices": {"input_mtok": 0.6, "output_mtok": 0.9},
                    },
                ],
            }
        ],
    },
]


def price_list(data: Any = None) -> PriceList:
    written = json.dumps(PRICES if data is None else data)
    return PriceList.of(json.loads(written, parse_float=Decimal))


def changes(found: Any) -> dict[tuple[str, str], tuple[Any, Any, Any]]:
    return {(c.slug, c.field): (c.old, c.new, c.percent) for c in found.changes}


class TestPrices:
    def test_what_vendors_ask_now_against_what_we_have(self) -> None:
        found = compare_prices(CATALOG, price_list(), DAY)
        assert changes(found) == {
            ("gpt-5-mini", "price_in"): ("0.25", "0.375", "+50.0"),
            ("grok-4", "price_in"): ("5", "3", "-40.0"),
            ("deepseek-flash", "price_in"): ("0.3", "0.6", "+100.0"),
        }
        assert "gpt-5-5" in found.only_running
        assert "grok-4" not in found.only_running
        assert found.only_new == ("openai/o3",)

    def test_a_price_that_begins_later_is_not_asked_yet(self) -> None:
        mini = PRICES[0]["models"][1]
        told = [prices_on(mini, date(year, 11, 1))["price_in"] for year in (2025, 2026, 2027)]
        assert told == [Decimal("0.5"), Decimal("0.375"), Decimal(9)]

    @pytest.mark.parametrize(
        ("data", "word"),
        [
            ({}, "array"),
            ([{"name": "nameless"}], r"\[0\]"),
            ([{"id": "p"}], "provider p: models"),
            ([{"id": "p", "models": [{"id": "m", "match": {"is": "m"}, "prices": {}}]}], "model m"),
            (
                [{"id": "p", "models": [{"id": "m", "match": {"regex": "("}, "prices": {}}]}],
                "model m",
            ),
            (
                [
                    {
                        "id": "p",
                        "models": [
                            {"id": "m", "match": {"or": [{"equals": "m"}, {}]}, "prices": {}}
                        ],
                    }
                ],
                "model m",
            ),
            (
                [
                    {
                        "id": "p",
                        "models": [
                            {"id": "m", "match": {"equals": "m"}, "prices": {"input_mtok": "x"}}
                        ],
                    }
                ],
                "model m",
            ),
        ],
    )
    def test_what_is_no_list_of_prices_says_where(self, data: Any, word: str) -> None:
        with pytest.raises(PriceListError, match=word):
            price_list(data)

    def test_percent_is_of_the_old_price(self) -> None:
        told = [(None, 1), (0, 1), (1, None), (3, 4), (4, 3)]
        written = [percent(*(None if n is None else Decimal(n) for n in pair)) for pair in told]
        assert written == [None, None, None, "+33.3", "-25.0"]


def test_two_catalogues_differ_field_by_field() -> None:
    first, *rest = [candidate.to_json() for candidate in CATALOG.candidates]
    again = Catalog.of(load_catalog().candidates)
    assert not compare_catalogs(CATALOG, again).any
    smaller = Catalog.of(CATALOG.candidates[1:])
    assert compare_catalogs(CATALOG, smaller).only_running == (first["slug"],)
    assert compare_catalogs(smaller, CATALOG).only_new == (first["slug"],)
    assert len(rest) == len(smaller.candidates)


def test_a_field_that_only_one_of_them_has_differs() -> None:
    told = {**CATALOG.names["gpt-5-5"].to_json(), "verdict": "CONDITIONAL"}
    more = {"conditions": {"region": ["eu"]}, "expected_latency_ms": 900}
    without, with_them = (Catalog.of([Candidate.from_json({**told, **m})]) for m in ({}, more))
    assert changes(compare_catalogs(without, with_them)) == {
        ("gpt-5-5", "conditions"): (None, {"region": ["eu"]}, None),
        ("gpt-5-5", "expected_latency_ms"): (None, 900, None),
    }
    assert changes(compare_catalogs(with_them, without)) == {
        ("gpt-5-5", "conditions"): ({"region": ["eu"]}, None, None),
        ("gpt-5-5", "expected_latency_ms"): (900, None, None),
    }


@pytest.fixture
def command(make_settings: Callable[..., Settings]) -> Fleet:
    settings = make_settings()
    told = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "AINFERA_MASTER_KEY": settings.master_key.get_secret_value(),
    }
    return lambda *words: fleet("catalog", *map(str, words), **told)


@pytest.fixture
def dearer(tmp_path: Path) -> Path:
    """The catalogue with another price and latency for Grok 4, and a model that is new."""
    text = SOURCE.replace(
        'slug = "grok-4"\nbrand', 'slug = "grok-4"\nexpected_latency_ms = 900\nbrand'
    )
    at = text.index('slug = "grok-4"')
    text = text[:at] + text[at:].replace("price_in = 5.00", "price_in = 6.00", 1)
    new = text[text.rindex("[[models]]") :].replace("deepseek-flash", "deepseek-new")
    path = tmp_path / "new.toml"
    path.write_text(f"{text}\n{new}")
    return path


@pytest.fixture
def slower(dearer: Path) -> Path:
    """The same, and Grok 4 takes longer yet."""
    path = dearer.with_name("slower.toml")
    path.write_text(dearer.read_text().replace("ms = 900", "ms = 1_200"))
    return path


class TestCommands:
    def test_help_teaches(self) -> None:
        for name in ("show", "diff", "check", "apply"):
            page = fleet("catalog", name, "--help")
            assert page.exit_code == 0
            assert "Example: " in page.stdout

    def test_check_names_file_line_model_and_field(self, command: Fleet, tmp_path: Path) -> None:
        assert command("check", CATALOG_PATH).exit_code == 0
        broken = tmp_path / "broken.toml"
        broken.write_text(SOURCE.replace("price_in = 2.00", "price_in = -2.00", 1))
        line = SOURCE[: SOURCE.index("price_in = 2.00")].count("\n") + 1
        done = command("check", broken)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"broken.toml:{line}: model mistral-large-3: price_in: -2.00")
        told = command("check", broken, "--json")
        assert (told.exit_code, json.loads(told.stdout)["valid"]) == (1, False)
        assert json.loads(told.stdout)["problems"] == done.stderr.splitlines()

    async def test_show_says_who_says_so_and_since_when(
        self, command: Fleet, owner_url: str
    ) -> None:
        await seed_catalog(owner_url)
        told = await asyncio.to_thread(command, "show")
        assert told.exit_code == 0, told.output
        (opus,) = [line for line in told.stdout.splitlines() if line.startswith("claude-opus")]
        assert opus.split()[-4:] == ["0.95", "locked", "anchor", "2026-11-21"]
        as_json = json.loads((await asyncio.to_thread(command, "show", "--json")).stdout)
        assert all(model in as_json["models"] for model in CATALOG.to_json())

    async def test_diff_then_apply_then_nothing_differs(
        self,
        command: Fleet,
        owner_url: str,
        dearer: Path,
        slower: Path,
        make_settings: Callable[..., Settings],
    ) -> None:
        await seed_catalog(owner_url)
        db = Database(make_settings())
        redis = open_valkey(make_settings().redis_url)
        live = LiveCatalog(db)
        await live.start()
        control = ControlListener(redis, live.obey, live.missed)
        await control.start()

        async def run(*words: Any) -> Any:
            return await asyncio.to_thread(command, *words)

        try:
            unchanged = await run("diff", CATALOG_PATH, "--exit-code")
            assert unchanged.exit_code == 0, unchanged.output
            said = await run("diff", dearer, "--json", "--exit-code")
            assert said.exit_code == 1
            told = json.loads(said.stdout)
            assert told["only_new"] == ["deepseek-new"]
            price = {"slug": "grok-4", "field": "price_in", "old": "5", "new": "6"}
            latency = {"slug": "grok-4", "field": "expected_latency_ms", "old": None, "new": 900}
            changed = [{**price, "percent": "+20.0"}, {**latency, "percent": None}]
            assert told["changes"] == changed
            asked = await run("apply", dearer)
            assert (asked.exit_code, live.current.find("deepseek-new")) == (1, None)

            done = await run("apply", dearer, "--yes")
            assert done.exit_code == 0, done.output
            await until(lambda: live.current.find("deepseek-new") is not None)
            grok = live.current.find("grok-4")
            assert grok is not None
            assert grok.price_in == 6
            (act,) = await db.run("SELECT * FROM operator_events WHERE act = 'catalog.apply'")
            assert act.target == load_catalog(dearer).hash
            assert act.detail["changes"] == told["changes"]
            assert (await run("diff", dearer, "--exit-code")).exit_code == 0
            again = await run("apply", dearer, "--yes", "--json")
            assert json.loads(again.stdout)["applied"] is False
            done = await run("apply", slower, "--yes", "--json")
            assert json.loads(done.stdout)["applied"] is True, "a latency alone is a change"
            await until(lambda: live.current.names["grok-4"].expected_latency_ms == 1_200)
        finally:
            await control.aclose()
            await live.aclose()
            await redis.aclose()
            await db.aclose()

    async def test_prices_are_compared_but_not_applied(
        self, command: Fleet, owner_url: str, tmp_path: Path
    ) -> None:
        await seed_catalog(owner_url)
        path = tmp_path / "data.json"
        path.write_text(json.dumps(PRICES))
        said = await asyncio.to_thread(command, "diff", path)
        assert said.exit_code == 0, said.output
        assert "+50.0" in said.stdout
        refused = await asyncio.to_thread(command, "apply", path, "--yes")
        assert refused.exit_code == 1
        path.write_text("[{]")
        broken = await asyncio.to_thread(command, "diff", path)
        assert (broken.exit_code, broken.stderr.startswith("data.json:1:")) == (1, True)
