"""Health, readiness, metrics and the rails."""

from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingress import operations
from ingress.deps import Deps
from ingress.middleware import RequestContext
from shared.config import Settings
from shared.db import Database
from shared.errors import AinferaError
from shared.ids import mint_id
from shared.metrics import MOST_PATHS, OTHER, PathLabels
from tests.ingress.conftest import BASE_URL, OpenApp, SignUp, leave_call


def value_of(text: str, sample: str) -> float:
    """The value of one line of an exposition; `sample` is all of it before the value."""
    (line,) = [line for line in text.splitlines() if line.startswith(sample + " ")]
    return float(line.rpartition(" ")[2])


async def scrape(client: httpx.AsyncClient, deps: Deps) -> str:
    key = deps.settings.internal_key.get_secret_value()
    answer = await client.get("/metrics", headers={"x-ainfera-internal-key": key})
    assert answer.status_code == 200
    return answer.text


async def test_health_and_readiness(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("simulate", ["off", "auto"])
async def test_without_any_provider_it_is_ready_and_the_log_says_what_is_missing(
    open_app: OpenApp, caplog: pytest.LogCaptureFixture, simulate: str
) -> None:
    async with open_app(simulate=simulate) as (client, _):
        assert (await client.get("/ready")).status_code == 200
    warned = [record for record in caplog.records if record.getMessage() == "no_provider"]
    assert [record.levelname for record in warned] == (["WARNING"] if simulate == "off" else [])


class Untouchable:
    """A store that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a store was asked for {name}")


def bare_app(settings: Settings, **stores: Any) -> httpx.AsyncClient:
    """The operators' endpoints alone, on whatever stands in for the stores."""
    app = FastAPI()
    app.include_router(operations.router)

    async def render(request: Request, error: Exception) -> Response:
        failure = cast(AinferaError, error).failure()
        return JSONResponse({"code": failure.code}, failure.status)

    app.add_exception_handler(AinferaError, render)
    app.add_middleware(RequestContext)
    untouchable = Untouchable()
    names = ("db", "redis", "keyring", "catalog", "relay", "queue")
    app.state.deps = Deps(
        settings=settings, **{name: stores.get(name, untouchable) for name in names}
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL)


async def test_the_metrics_key_is_checked_before_any_store_is_asked(settings: Settings) -> None:
    async with bare_app(settings) as client:
        for headers in ({}, {"x-ainfera-internal-key": "wrong"}):
            refused = await client.get("/metrics", headers=headers)
            assert refused.status_code == 401
            assert refused.json()["code"] == "invalid_internal_key"


async def test_the_failing_dependency_is_named(open_app: OpenApp) -> None:
    async with open_app() as (_, deps):
        away = deps.settings.model_copy(
            update={"database_url": "postgresql://ainfera_app@/ainfera?host=/nowhere/at/all"}
        )
        async with bare_app(away, db=Database(away), redis=deps.redis) as client:
            ready = await client.get("/ready")
            assert ready.status_code == 503
            assert ready.json()["failing"] == "postgres"
            text = await scrape(client, deps)
            assert str(value_of(text, "ainfera_audit_chain_height")) == "nan"

        nowhere = Redis.from_url("unix:///nowhere/at/all")
        async with bare_app(deps.settings, db=deps.db, redis=nowhere) as client:
            ready = await client.get("/ready")
            assert ready.status_code == 503
            assert ready.json()["failing"] == "valkey"
            text = await scrape(client, deps)
            assert str(value_of(text, 'ainfera_queue_depth{priority="interactive"}')) == "nan"


async def test_metrics_read_the_books(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    before = await scrape(client, deps)
    await leave_call(database_url, deps, new)
    await leave_call(database_url, deps, new, routed=False)
    after = await scrape(client, deps)
    height = "ainfera_audit_chain_height"
    assert value_of(after, height) == value_of(before, height) + 2
    assert value_of(after, "ainfera_audit_chain_freshness_seconds") >= 0
    assert value_of(after, "ainfera_dispatch_without_capture_total") == 0
    assert value_of(after, "ainfera_passthrough_captured_total") == 0
    assert value_of(after, "ainfera_holds_outstanding") == 0
    assert value_of(after, 'ainfera_queue_depth{priority="interactive"}') == 0
    assert 'ainfera_app_info{version="' in after


async def test_a_call_without_its_capture_shows(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    connection = await deps.db.connect_raw()
    await connection.execute(
        """INSERT INTO inferences (id, tenant_id, agent_id, routed, dialect, model, state)
           VALUES ($1, $2::uuid, $3::uuid, true, 'native', 'ainfera-inference', 'settled')""",
        mint_id(),
        new["tenant_id"],
        new["agent_id"],
    )
    await connection.close()
    assert value_of(await scrape(client, deps), "ainfera_dispatch_without_capture_total") == 1


async def test_requests_are_counted_by_template_and_nothing_private_is_a_label(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    sample = 'ainfera_http_requests_total{method="GET",path="/v1/wallets/{agent_id}",status="200"}'
    await client.get(f"/v1/wallets/{new['agent_id']}", headers=new["auth"])
    before = value_of(await scrape(client, deps), sample)
    await client.get(f"/v1/wallets/{new['agent_id']}", headers=new["auth"])
    await client.get("/no/such/path")
    text = await scrape(client, deps)
    assert value_of(text, sample) == before + 1
    assert "/no/such/path" not in text
    for private in (new["agent_id"], new["tenant_id"], new["owner_handle"], new["api_key"]):
        assert private not in text


def test_only_so_many_paths_have_a_name() -> None:
    paths = PathLabels(most=2)
    assert [paths.label(path) for path in ("/a", "/b", "/c", "/a", "/d")] == [
        "/a",
        "/b",
        OTHER,
        "/a",
        OTHER,
    ]
    assert MOST_PATHS == 200


async def test_operators_views_are_not_in_the_api_description(client: httpx.AsyncClient) -> None:
    assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]


@pytest.mark.parametrize("flag", [False, True])
async def test_no_rail_is_live(open_app: OpenApp, flag: bool) -> None:
    async with open_app(payments_live=flag) as (client, _):
        status = (await client.get("/v1/payments/status")).json()
    assert status["live"] is False
    assert [rail["rail"] for rail in status["rails"]] == ["cdp", "stripe", "xendit"]
    assert all(set(rail) == {"rail", "configured", "live"} for rail in status["rails"])
