"""What a key may be used for: every route says it, in one table, and holds to it."""

from collections.abc import Iterator
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi.routing import APIRoute

from ingress.app import ROUTERS
from ingress.deps import Deps
from ingress.inference import CALLS
from ingress.scopes import CALL, ROUTES, Open
from shared.domain.keys import Scope
from tests.ingress.conftest import SignUp

SOME_ID = "01890000-0000-7000-8000-000000000000"
KEYED = [(route, access) for route, access in ROUTES.items() if not isinstance(access, Open)]


def routes_of(router: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route that a router leads to."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                yield method, route.path
        else:  # a router inside: its own prefix stands in its routes' paths
            yield from routes_of(getattr(route, "original_router", route))


def test_every_route_says_what_it_needs() -> None:
    there = {route for room in ROUTERS for route in routes_of(room.router)}
    assert len(there) > 30
    assert there - set(ROUTES) == set()
    assert set(ROUTES) - there == set()
    assert all(ROUTES["POST", path] == CALL for path in CALLS)


async def with_scopes(owner_url: str, sign_up: SignUp, scopes: set[str]) -> dict[str, str]:
    """A fresh key that has these alone."""
    new = await sign_up()
    connection = await asyncpg.connect(owner_url)
    await connection.execute(
        "UPDATE api_keys SET scopes = $2 WHERE tenant_id = $1::uuid", new["tenant_id"], list(scopes)
    )
    await connection.close()
    auth: dict[str, str] = new["auth"]
    return auth


async def ask(
    client: httpx.AsyncClient, route: tuple[str, str], auth: dict[str, str]
) -> httpx.Response:
    """Ask for something that is not there, with a body that is not right."""
    method, path = route
    for name in ("inference_id", "receipt_id", "agent_id", "key_id"):
        path = path.replace(f"{{{name}}}", SOME_ID)
    return await client.request(method, path, headers=auth, content=b"[]")


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_key_is_good_for_its_scopes_and_for_nothing_else(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str, scope: Scope
) -> None:
    auth = await with_scopes(owner_url, sign_up, {scope})
    wrong = []
    for route, needed in KEYED:
        answer = await ask(client, route, auth)
        refused = answer.status_code == 403 and "needs a key with the scope" in answer.text
        # what is not understood is refused before anything else, where a body is declared
        if not refused and scope not in needed and answer.status_code not in (400, 422):
            wrong.append((route, answer.status_code))
        if refused and scope in needed:
            wrong.append((route, answer.status_code))
    assert wrong == []


async def test_the_refusal_says_which_scope_is_needed(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    auth = await with_scopes(owner_url, sign_up, {"read"})
    body = {
        "model": "gpt-5-5",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "x"}],
        "background": True,  # if it were let in, nobody would be there to answer it
    }
    refused = await client.post("/v1/inference", json=body, headers=auth)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "`call`" in refused.json()["message"]
    assert "`read`" in refused.json()["message"]
    anthropic = await client.post("/v1/messages", json=body, headers=auth)
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (403, "permission_error")
    cancel = await client.post(f"/v1/inferences/{SOME_ID}/cancel", headers=auth)
    assert "`call` or `admin`" in cancel.json()["message"]


async def test_a_route_that_nobody_thought_of_is_for_administrators(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    owner_url: str,
    deps: Deps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auth = await with_scopes(owner_url, sign_up, {"call", "read"})
    path = f"/v1/wallets/{SOME_ID}"
    assert (await client.get(path, headers=auth)).status_code == 404
    left = {route: needed for route, needed in ROUTES.items() if "wallets" not in route[1]}
    monkeypatch.setattr("ingress.scopes.ROUTES", left)
    assert (await client.get(path, headers=auth)).status_code == 403
