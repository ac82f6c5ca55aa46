"""The whole ingress in this process, on a real database and a real Valkey."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from ingress.app import create_app
from ingress.deps import Deps
from shared.catalog import seed_catalog
from shared.config import Settings
from shared.domain.audit import EventType, canonical_json, draft
from shared.domain.capture import columns
from shared.domain.inference import ROUTING_TARGET
from shared.domain.routing import decide
from shared.domain.routing_policy import CallerPolicy, RequestFeatures
from shared.ids import mint_id
from shared.lanes import QueueKeys
from shared.queue import INFERENCE_QUEUE
from tests.conftest import settings_factory

BASE_URL = "http://gateway.test"

OpenApp = Callable[..., AbstractAsyncContextManager[tuple[httpx.AsyncClient, Deps]]]
SignUp = Callable[..., Awaitable[dict[str, Any]]]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Deps]]:
    """A client of an ingress with these settings, and what the ingress holds."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
            yield client, app.state.deps


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def open_app(
    database_url: str,
    owner_url: str,
    module_redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> OpenApp:
    """Starts an ingress on the module's stores; keyword arguments change settings."""
    await seed_catalog(owner_url)
    await say_that_a_worker_is_there(module_redis_url)
    home: Path = tmp_path_factory.mktemp("fleet")
    make = settings_factory(database_url, module_redis_url, home)
    settings = make(public_base_url=BASE_URL)

    def start(**changes: Any) -> AbstractAsyncContextManager[tuple[httpx.AsyncClient, Deps]]:
        return running(settings.model_copy(update=changes))

    return start


async def say_that_a_worker_is_there(redis_url: str) -> None:
    """For a day: a test that is the worker itself takes as long as it takes."""
    async with Redis.from_url(redis_url) as redis:
        hashes: Any = redis  # redis-py types its hash commands for both of its clients at once
        in_a_day = (await redis.time())[0] + 24 * 60 * 60
        await hashes.hset(QueueKeys(INFERENCE_QUEUE).served, "seen", in_a_day * 1_000_000)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ingress(open_app: OpenApp) -> AsyncIterator[tuple[httpx.AsyncClient, Deps]]:
    async with open_app() as opened:
        yield opened


@pytest.fixture(scope="module")
def client(ingress: tuple[httpx.AsyncClient, Deps]) -> httpx.AsyncClient:
    return ingress[0]


@pytest.fixture(scope="module")
def deps(ingress: tuple[httpx.AsyncClient, Deps]) -> Deps:
    return ingress[1]


@pytest.fixture(scope="module")
def sign_up(client: httpx.AsyncClient) -> SignUp:
    """A fresh tenant with one agent: signup's answer, and `auth`, the headers of its key."""

    async def sign_up(**body: Any) -> dict[str, Any]:
        answer = await client.post("/v1/agents/signup", json={"agent_handle": "varda", **body})
        assert answer.status_code == 200, answer.text
        fields: dict[str, Any] = answer.json()
        return {**fields, "auth": {"authorization": f"Bearer {fields['api_key']}"}}

    return sign_up


@dataclass(frozen=True, slots=True)
class Left:
    """What a call left behind."""

    inference_id: str
    receipt_id: str


async def leave_call(
    database_url: str,
    deps: Deps,
    agent: Mapping[str, Any],
    *,
    charge: str = "0.0125",
    routed: bool = True,
    documented: bool = True,
    witnessed: bool = False,
) -> Left:
    """Hold and settle one call of `agent` (signup's answer), as a worker would.

    `witnessed`: with the event that names its receipt.
    """
    left = Left(str(mint_id()), str(mint_id()))
    call = {
        "inference_id": left.inference_id,
        "tenant_id": agent["tenant_id"],
        "agent_id": agent["agent_id"],
        "attempt": 1,
        "routed": routed,
        "dialect": "native",
        "model": ROUTING_TARGET if routed else "gpt-5-5",
    }
    outcome = _outcome(deps, call, charge, documented) if routed else None
    told = {"inference_id": left.inference_id}
    if outcome is not None:
        told |= _binding(outcome)
    events = [draft(EventType.PROVIDER_RESPONDED, agent["agent_id"], told).wire()]
    if witnessed:
        about = {"receipt_id": left.receipt_id}
        events.append(draft(EventType.RECEIPT_CREATED, agent["agent_id"], about).wire())
    settlement = {
        **call,
        "refused": False,
        "charge": charge,
        "events": events,
        "outcome": outcome,
        "receipt": {
            "receipt_id": left.receipt_id,
            "inference_id": left.inference_id,
            "tenant_id": agent["tenant_id"],
            "agent_id": agent["agent_id"],
            "cost_usd": charge,
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
            "usage_estimated": False,
            "billing_rule": "partial-work-v1",
            "billing_basis": "provider_usage",
            "outcome": "succeeded",
            "model_used": "gpt-5.5",
            "model_slug": "gpt-5-5",
            "provider": "openai",
            "simulated": True,
        },
    }
    hold = {**call, "amount": "0.5", "ttl_s": 900, "event": None}
    connection = await asyncpg.connect(database_url)
    for function, item in (("open_inferences", hold), ("settle_inferences", settlement)):
        row = await connection.fetchrow(
            f"SELECT * FROM {function}($1::jsonb)", orjson.dumps([item]).decode()
        )
        assert row is not None
        assert row["result"] in ("OPENED", "SETTLED")
    await connection.close()
    return left


def _binding(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What the event of an outcome says of it, and of what was decided from."""
    told = {
        "router": ROUTING_TARGET,
        "outcome": outcome["outcome_status"],
        "cost_usd": outcome["cost_actual"],
        "latency_ms": outcome["observed_latency_ms"],
    }
    stored = outcome["decision"]
    if stored:
        inputs = {**stored["terms"], "catalog_hash": stored["catalog_hash"]}
        told["decision_sha256"] = sha256(canonical_json(inputs).encode()).hexdigest()
    return told


def _outcome(deps: Deps, call: Mapping[str, Any], charge: str, documented: bool) -> dict[str, Any]:
    decision = decide(
        RequestFeatures("chat", 100, 200),
        deps.catalog,
        CallerPolicy(),
        frozenset(c.provider for c in deps.catalog.candidates),
        False,
        call["inference_id"],
    )
    return {
        **columns(decision),
        **({} if documented else {"decision": {}}),
        "inference_id": call["inference_id"],
        "tenant_id": call["tenant_id"],
        "agent_id": call["agent_id"],
        "cost_actual": f"{Decimal(charge):.9f}",
        "observed_latency_ms": 120,
        "ttft_ms": 40,
        "outcome_status": "succeeded" if documented else "expired",
        "input_tokens": 10,
        "output_tokens": 20,
    }
