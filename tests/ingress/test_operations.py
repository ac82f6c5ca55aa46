"""Health, readiness, metrics and the rails."""

import asyncio
import math
from dataclasses import fields
from typing import Any, cast

import httpx
import orjson
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingress import inference, measures, operations
from ingress.deps import Deps
from ingress.middleware import RequestContext
from shared.config import Settings
from shared.db import Database
from shared.domain.inference import Dialect
from shared.errors import AinferaError
from shared.fleet import Registry
from shared.ids import mint_id
from shared.metrics import MOST_PATHS, OTHER, PathLabels
from shared.queue import INFERENCE_QUEUE, Envelope
from tests.ingress.conftest import BASE_URL, OpenApp, SignUp, leave_call


def value_of(text: str, sample: str) -> float:
    """The value of one line of an exposition; `sample` is all of it before the value."""
    (line,) = [line for line in text.splitlines() if line.startswith(sample + " ")]
    return float(line.rpartition(" ")[2])


async def scrape(client: httpx.AsyncClient, deps: Deps) -> str:
    key = deps.settings.internal_key.get_secret_value()
    deps.counted.at = -math.inf
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
    app.include_router(measures.router)

    async def render(request: Request, error: Exception) -> Response:
        failure = cast(AinferaError, error).failure()
        return JSONResponse({"code": failure.code}, failure.status)

    app.add_exception_handler(AinferaError, render)
    app.add_middleware(RequestContext)
    untouchable = Untouchable()
    untouched = {"settings", "providers", "drain", "counted"}
    names = {each.name for each in fields(Deps)} - untouched
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
            assert "ainfera_audit_chain_height" not in text
            assert "ainfera_dead_letters" not in text
            assert value_of(text, 'ainfera_store_up{store="postgres"}') == 0
            assert value_of(text, 'ainfera_store_up{store="valkey"}') == 1
            assert value_of(text, "ainfera_queue_ready") == 0

        nowhere = Redis.from_url("unix:///nowhere/at/all")
        async with bare_app(deps.settings, db=deps.db, redis=nowhere) as client:
            ready = await client.get("/ready")
            assert ready.status_code == 503
            assert ready.json()["failing"] == "valkey"
            text = await scrape(client, deps)
            assert "ainfera_queue" not in text
            assert "ainfera_jobs_in_flight" not in text
            assert value_of(text, 'ainfera_store_up{store="valkey"}') == 0
            assert value_of(text, 'ainfera_store_up{store="postgres"}') == 1
            assert value_of(text, "ainfera_audit_chain_height") >= 0


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


async def test_the_books_are_not_counted_for_each_scrape(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    before = value_of(await scrape(client, deps), "ainfera_audit_chain_height")
    counted_at = deps.counted.at
    await leave_call(database_url, deps, new)
    answer = await client.get("/metrics", headers=operators_key(deps))
    assert deps.counted.at == counted_at
    assert value_of(answer.text, "ainfera_audit_chain_height") == before
    assert value_of(await scrape(client, deps), "ainfera_audit_chain_height") > before


@pytest.mark.parametrize("path", ["/v1/inference", "/v1/messages"])
async def test_a_bug_is_a_500_in_the_answer_and_in_the_count(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    deps: Deps,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    new = await sign_up()
    sample = f'ainfera_http_requests_total{{method="POST",path="{path}",status="500"}}'

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as bug:
        bug.setattr(inference, "authenticate", broken)
        answer = await client.post(path, json={}, headers=new["auth"])
    assert answer.status_code == 500
    assert "logs have it" in answer.text
    assert value_of(await scrape(client, deps), sample) == 1


async def test_what_the_guard_of_captures_found_shows(
    client: httpx.AsyncClient, deps: Deps
) -> None:
    await deps.db.run("UPDATE capture_guard SET uncaptured = 3, overcaptured = 2")
    told = await scrape(client, deps)
    await deps.db.run("UPDATE capture_guard SET uncaptured = 0, overcaptured = 0")
    assert value_of(told, "ainfera_dispatch_without_capture_total") == 3
    assert value_of(told, "ainfera_passthrough_captured_total") == 2
    assert value_of(told, "ainfera_capture_guard_age_seconds") > 0


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
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert [path for path in paths if path == "/metrics" or path.startswith("/internal")] == []


@pytest.mark.parametrize("flag", [False, True])
async def test_no_rail_is_live(open_app: OpenApp, flag: bool) -> None:
    async with open_app(payments_live=flag) as (client, _):
        status = (await client.get("/v1/payments/status")).json()
    assert status["live"] is False
    assert [rail["rail"] for rail in status["rails"]] == ["cdp", "stripe", "xendit"]
    assert all(set(rail) == {"rail", "configured", "live"} for rail in status["rails"])


def said_by(worker_id: str) -> dict[str, Any]:
    """What a worker says of itself."""
    counted = dict.fromkeys(
        ("pid", "jobs", "max_jobs", "done", "failed", "retried", "per_second"), 0
    )
    words = {
        "kind": "inference",
        "queue": INFERENCE_QUEUE,
        "host": "h",
        "version": "1",
        "state": "running",
    }
    return {**counted, **words, "id": worker_id, "started_at": "2026-01-01T00:00:00+00:00"}


def envelope_of(tenant_id: str) -> Envelope:
    caller = {"tenant_id": tenant_id}
    return Envelope(mint_id(), mint_id(), Dialect.NATIVE, "reply", caller, 1.0, "trace", b"{}")


def operators_key(deps: Deps) -> dict[str, str]:
    return {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/internal/queue"),
        ("GET", "/internal/workers"),
        ("GET", "/internal/jobs/01890000-0000-7000-8000-000000000001"),
        ("POST", "/internal/drain"),
        ("POST", "/internal/resume"),
    ],
)
async def test_operators_views_want_the_key_before_any_store_is_asked(
    settings: Settings, method: str, path: str
) -> None:
    async with bare_app(settings) as client:
        refused = await client.request(method, path, json={"worker": "all"})
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_internal_key")


async def test_the_operators_views_are_those_of_the_fleet(
    client: httpx.AsyncClient, deps: Deps
) -> None:
    key, worker_id = operators_key(deps), "operations-test-1"
    registry = Registry(deps.redis, worker_id)
    await registry.beat(said_by(worker_id), {})
    waits = envelope_of("operations-tenant")
    await deps.queue.enqueue(waits)

    status = (await client.get("/internal/queue", headers=key)).json()
    assert (status["ready"], status["depth"]["interactive"], status["leased"]) == (1, 1, 0)
    (worker,) = (await client.get("/internal/workers", headers=key)).json()
    assert (worker["id"], worker["state"]) == (worker_id, "running")
    job = (await client.get(f"/internal/jobs/{waits.inference_id}", headers=key)).json()
    assert (job["state"], job["place"]) == ("waiting", 1)

    told = await client.post("/internal/drain", headers=key, json={"worker": worker_id})
    assert (told.status_code, told.json()) == (200, {"draining": [worker_id]})
    assert await registry.beat(said_by(worker_id), {})
    told = await client.post("/internal/resume", headers=key, json={"worker": "all"})
    assert told.json() == {"resumed": [worker_id]}
    assert not await registry.beat(said_by(worker_id), {})
    unknown = await client.post("/internal/drain", headers=key, json={"worker": "nobody"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")

    text = await scrape(client, deps)
    assert value_of(text, 'ainfera_queue_depth{priority="interactive"}') == 1
    assert value_of(text, "ainfera_queue_ready") == 1
    assert value_of(text, 'ainfera_workers{kind="inference",state="running"}') == 1
    await registry.leave()
    await deps.redis.flushdb()


async def test_what_the_workers_counted_is_shown_as_their_metrics(
    client: httpx.AsyncClient, deps: Deps
) -> None:
    calls = orjson.dumps(
        ["ainfera_provider_calls_total", {"provider": "openai", "outcome": "succeeded"}]
    )
    bucket = orjson.dumps(["ainfera_pick_up_seconds_bucket", {"kind": "x", "le": "0.005"}])
    settled = orjson.dumps(["ainfera_settlements_total", {"outcome": "succeeded"}])
    assert "\nainfera_provider_spend_ratio" not in await scrape(client, deps)
    for worker, n in (("one", 2), ("other", 3)):
        told = {calls: n, bucket: n, settled: 2}
        await Registry(deps.redis, worker).beat(said_by(worker), told)
    text = await scrape(client, deps)
    assert value_of(text, "ainfera_provider_spend_ratio") == 1.25
    sample = 'ainfera_provider_calls_total{outcome="succeeded",provider="openai"}'
    assert value_of(text, sample) == 5
    assert value_of(text, 'ainfera_pick_up_seconds_bucket{kind="x",le="0.005"}') == 5
    assert text.count("# TYPE ainfera_provider_calls_total counter") == 1
    assert text.count("# TYPE ainfera_pick_up_seconds histogram") == 1
    await deps.redis.flushdb()


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [({"max_queue_depth": 1}, 503, "overloaded"), ({"max_tenant_queue": 1}, 429, "rate_limited")],
)
async def test_a_full_queue_refuses_with_a_time_to_come_again(
    open_app: OpenApp, limits: dict[str, int], status: int, code: str
) -> None:
    async with open_app(**limits) as (client, deps):
        new = (await client.post("/v1/agents/signup", json={"agent_handle": "varda"})).json()
        await deps.queue.enqueue(envelope_of(new["tenant_id"]))
        async with asyncio.timeout(10):  # a call that was taken would wait for a worker
            refused = await client.post(
                "/v1/inference",
                headers={"authorization": f"Bearer {new['api_key']}"},
                json={"model": "gpt-5-5", "messages": [{"role": "user", "content": "Hi"}]},
            )
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        # nobody works here, so nobody knows when there will be room
        assert refused.headers["retry-after"] == "60"
        assert deps.relay.open_replies == 0
        await deps.redis.flushdb()
