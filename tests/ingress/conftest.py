"""The whole ingress in this process, on a real database and a real Valkey."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ingress.app import create_app
from ingress.deps import Deps
from shared.catalog import seed_catalog
from shared.config import Settings
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
    home: Path = tmp_path_factory.mktemp("fleet")
    make = settings_factory(database_url, module_redis_url, home)
    settings = make(public_base_url=BASE_URL)

    def start(**changes: Any) -> AbstractAsyncContextManager[tuple[httpx.AsyncClient, Deps]]:
        return running(settings.model_copy(update=changes))

    return start


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
