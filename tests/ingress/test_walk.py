"""Every route is asked for what belongs to another tenant, and answers as to an id that nobody has.

The routes are read from the application, so that a new one is walked too; one whose parameters or
body are not known here fails. The walk is made twice: as it is, and with the tenant's condition
taken out of every statement on its way to the database, where row-level security has to hold alone.
"""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import orjson
import pytest
import pytest_asyncio
from fastapi import FastAPI
from sqlalchemy import event

from ingress.app import create_app
from ingress.deps import Deps
from shared.db import Connection
from shared.domain.inference import ROUTING_TARGET, Dialect
from shared.ids import mint_id
from shared.queue import Envelope
from tests.ingress.conftest import SignUp, leave_call

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MARK = "the-other-tenants-own-word"
# what is there is for everybody, also where it speaks of one agent
PUBLIC = {
    "/.well-known/agent-card.json",
    "/.well-known/jwks.json",
    "/.well-known/ainfera-receipt-verifier.py",
    "/v1/agents/cards/verify",
    "/v1/agents/signup",
    "/v1/audit/public",
    "/v1/audit/{agent_id}/verify",
}
SAY = {"messages": [{"role": "user", "content": "hello"}], "model": ROUTING_TARGET}
# bodies that pass the checks of their shape; `{agent_id}` and the like name what is asked for
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/inference"): {**SAY, "agent_id": "{agent_id}"},
    ("POST", "/v1/messages"): {**SAY, "max_tokens": 5},
    ("POST", "/v1/messages/count_tokens"): SAY,
    ("POST", "/v1/chat/completions"): SAY,
    ("POST", "/v1/quote"): {**SAY, "agent_id": "{agent_id}"},
    ("POST", "/v1/agents/cards/verify"): {"jws": "a.b.c"},
    ("POST", "/v1/agents/signup"): None,
    ("POST", "/v1/agents/register"): {"tenant_id": "{tenant_id}", "name": "mine"},
    ("PATCH", "/v1/agents/{agent_id}/spend-policy"): {"daily_cap_usd": "1"},
    ("PATCH", "/v1/agents/{agent_id}/routing-policy"): {"min_quality": 0.6},
    ("POST", "/v1/wallets/topup"): {"agent_id": "{agent_id}", "amount_usd": "1"},
    ("POST", "/v1/keys"): {"agent_id": "{agent_id}", "scopes": ["read"]},
    ("POST", "/v1/keys/{key_id}/rotate"): {"overlap_seconds": 60},
    ("PUT", "/v1/routing-policy"): {"min_quality": 0.6},
    ("POST", "/internal/routing-preference"): {"live": True},
    ("POST", "/internal/drain"): {"worker": "all"},
    ("POST", "/internal/resume"): {"worker": "all"},
}
# what a path cannot be asked without
QUERIES = {"/v1/audit/{agent_id}/proof": {"seq": 1}}
# an agent named by its header, where the path and the body name none
BY_HEADER = {("POST", "/v1/messages"), ("POST", "/v1/chat/completions")}


@dataclass(frozen=True, slots=True)
class Route:
    path: str
    methods: frozenset[str]
    documented: bool

    @property
    def parameters(self) -> list[str]:
        return [name.partition(":")[0] for name in re.findall(r"{([^}]+)}", self.path)]


@dataclass(slots=True)
class Tenant:
    """A tenant and what it has, by the names that routes have for it."""

    auth: dict[str, str]
    ids: dict[str, list[str]] = field(default_factory=dict)

    @property
    def words(self) -> set[str]:
        """What nobody else may be shown."""
        return {each for ids in self.ids.values() for each in ids} | {MARK}


def routes_of(app: FastAPI) -> Iterator[Route]:
    for route in app.routes:
        included: Any = getattr(route, "effective_route_contexts", None)
        found: list[Any] = [route] if included is None else list(included())
        for each in found:
            methods = frozenset(each.methods) & frozenset(METHODS)
            yield Route(each.path, methods, each.include_in_schema)


@pytest.fixture(scope="module")
def routes(ingress: tuple[httpx.AsyncClient, Deps]) -> list[Route]:
    return list(routes_of(create_app(ingress[1].settings)))


async def queued(deps: Deps, agent: dict[str, Any]) -> str:
    """A call of which only the queue knows."""
    caller = {"tenant_id": agent["tenant_id"], "agent_id": agent["agent_id"], "policy": {}}
    envelope = Envelope(
        mint_id(), mint_id(), Dialect.NATIVE, "nobody", caller, 1.0, "0" * 32, b"{}"
    )
    await deps.queue.enqueue(envelope)
    return str(envelope.inference_id)


async def kept(client: httpx.AsyncClient, agent: dict[str, Any]) -> dict[str, Any]:
    """A call that is kept, and that no worker has had yet."""
    said = await client.post(
        "/v1/inference", json={**SAY, "background": True}, headers=agent["auth"]
    )
    assert said.status_code == 202, said.text
    found: dict[str, Any] = said.json()
    return found


async def made_key(client: httpx.AsyncClient, agent: dict[str, Any]) -> str:
    made = await client.post("/v1/keys", json={"scopes": ["read"]}, headers=agent["auth"])
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theirs(
    client: httpx.AsyncClient, deps: Deps, database_url: str, sign_up: SignUp
) -> Tenant:
    """Another tenant, with something of every kind."""
    agent = await sign_up(agent_handle=MARK, owner_handle=f"{MARK}-owner")
    calls = [await leave_call(database_url, deps, agent, routed=routed) for routed in (True, False)]
    waiting = await kept(client, agent)
    inferences = [call.inference_id for call in calls]
    return Tenant(
        agent["auth"],
        {
            "tenant_id": [agent["tenant_id"]],
            "agent_id": [agent["agent_id"]],
            "inference_id": [*inferences, waiting["inference_id"], await queued(deps, agent)],
            "receipt_id": [call.receipt_id for call in calls],
            "job_id": inferences[:1],
            "switch": inferences[:1],
            "key_id": [await made_key(client, agent)],
        },
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ours(client: httpx.AsyncClient, deps: Deps, database_url: str, sign_up: SignUp) -> Tenant:
    agent = await sign_up(agent_handle="our-own")
    call = await leave_call(database_url, deps, agent)
    return Tenant(
        agent["auth"],
        {
            "tenant_id": [agent["tenant_id"]],
            "agent_id": [agent["agent_id"]],
            "inference_id": [call.inference_id],
            "receipt_id": [call.receipt_id],
            "job_id": [call.inference_id],
            "switch": [call.inference_id],
            "key_id": [await made_key(client, agent)],
            "model_id": ["gpt-5.5"],
        },
    )


def filled(thing: Any, ids: dict[str, str]) -> Any:
    """A path or a body with its names replaced by what they name."""
    text = thing if isinstance(thing, str) else orjson.dumps(thing).decode()
    for name, value in ids.items():
        text = re.sub(rf"{{{name}(:path)?}}", value, text)
    return text


async def ask(
    client: httpx.AsyncClient, method: str, route: Route, ids: dict[str, str], auth: dict[str, str]
) -> httpx.Response:
    headers = dict(auth)
    if (method, route.path) in BY_HEADER:
        headers["x-ainfera-agent-id"] = ids["agent_id"]
    body = BODIES.get((method, route.path))
    content = None
    if body is not None:
        headers["content-type"] = "application/json"
        content = filled(body, ids)
    params = QUERIES.get(route.path)
    path = filled(route.path, ids)
    return await client.request(method, path, headers=headers, content=content, params=params)


def told(answer: httpx.Response, ids: dict[str, str]) -> tuple[int, str, set[str]]:
    """An answer without the ids that were asked for: what may differ between two of them."""
    text = answer.text
    for value in ids.values():
        text = text.replace(value, "…")
    return answer.status_code, text, set(answer.headers)


def names_something(route: Route, method: str) -> bool:
    """Whether an id is part of the question."""
    body = str(BODIES.get((method, route.path), ""))
    return bool(
        set(route.parameters) - {"model_id"} or "_id}" in body or (method, route.path) in BY_HEADER
    )


async def walk(
    client: httpx.AsyncClient, routes: list[Route], ours: Tenant, theirs: Tenant
) -> list[str]:
    """Where an answer about another tenant differs from one about nobody, or tells of it."""
    leaks = []
    for route in routes:
        for method in METHODS:
            if not names_something(route, method) or route.path in PUBLIC:
                continue
            asked = [name for name in theirs.ids if name in str(BODIES) + route.path]
            most = max(len(theirs.ids[name]) for name in asked) if method in route.methods else 1
            for nth in range(most):
                real = {name: theirs.ids[name][nth % len(theirs.ids[name])] for name in asked}
                nobody = {name: str(uuid4()) for name in asked}
                answer = await ask(client, method, route, real, ours.auth)
                expected = await ask(client, method, route, nobody, ours.auth)
                if told(answer, real) != told(expected, nobody):
                    leaks.append(f"{method} {route.path}: {answer.status_code} {answer.text}")
                if any(word in answer.text for word in theirs.words - set(real.values())):
                    leaks.append(f"{method} {route.path} tells {answer.text}")
    return leaks


def test_every_route_is_known_here(routes: list[Route], ours: Tenant, theirs: Tenant) -> None:
    names = {*theirs.ids, *ours.ids}
    unknown = [f"{r.path}: {name}" for r in routes for name in r.parameters if name not in names]
    assert unknown == [], "say in `theirs` what a tenant has of it"
    writing = {(m, r.path) for r in routes for m in r.methods & {"POST", "PUT", "PATCH"}}
    bodiless = {path for _, path in writing if path.startswith("/internal/dead-letters/")} | {
        "/v1/inferences/{inference_id}/cancel",
        "/v1/agents/{agent_id}/card",
    }
    assert {each for each in writing if each[1] not in bodiless} == set(BODIES)
    assert len(routes) > 40


async def test_what_is_anothers_is_as_what_nobody_has(
    client: httpx.AsyncClient, routes: list[Route], ours: Tenant, theirs: Tenant
) -> None:
    assert await walk(client, routes, ours, theirs) == []


async def test_its_owner_is_told_what_others_are_not(
    client: httpx.AsyncClient, routes: list[Route], theirs: Tenant
) -> None:
    """Else the walk would ask for things that are not there at all."""
    seen = set()
    for route in routes:
        for name in set(route.parameters) & set(theirs.ids):
            if "GET" in route.methods and not route.path.startswith("/internal"):
                for each in theirs.ids[name]:
                    if route.path.endswith("/events"):
                        continue  # it would follow a call that no worker takes
                    answer = await ask(client, "GET", route, {name: each}, theirs.auth)
                    if answer.status_code == 200:
                        assert each in answer.text
                        seen.add(route.path)
    expected = {
        route.path
        for route in routes
        if route.documented
        and "GET" in route.methods
        and set(route.parameters) & set(theirs.ids)
        and not route.path.endswith("/events")
    }
    assert seen == expected


async def test_no_answer_about_oneself_has_anything_of_another(
    client: httpx.AsyncClient, routes: list[Route], ours: Tenant, theirs: Tenant
) -> None:
    asked = 0
    for route in routes:
        if "GET" not in route.methods:
            continue
        mine = {name: ids[0] for name, ids in ours.ids.items()}
        answer = await ask(client, "GET", route, mine, ours.auth)
        assert answer.status_code < 500, route.path
        # the public mirror names owners and agents, by no id
        hidden = theirs.words - {MARK} if route.path in PUBLIC else theirs.words
        assert [word for word in hidden if word in answer.text] == [], route.path
        asked += 1
    assert asked > 25


@pytest.fixture
def forgetful(deps: Deps) -> Iterator[list[str]]:
    """Takes `tenant_id = …` out of each statement of callers' sessions; what it was taken from."""
    changed: list[str] = []

    def forget(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, *_context: Any
    ) -> tuple[str, Any]:
        forgotten = re.sub(
            r"\w+\.tenant_id = (?:(\$\d+)::UUID|w\.tenant_id)",
            lambda found: f"{found[1]}::UUID IS NOT NULL" if found[1] else "true",
            statement,
        )
        if forgotten != statement:
            changed.append(statement)
        return forgotten, parameters

    engine = deps.db._callers.sync_engine
    event.listen(engine, "before_cursor_execute", forget, retval=True)
    yield changed
    event.remove(engine, "before_cursor_execute", forget)


async def test_the_database_holds_where_every_query_forgets_its_tenant(
    client: httpx.AsyncClient,
    routes: list[Route],
    ours: Tenant,
    theirs: Tenant,
    forgetful: list[str],
) -> None:
    assert await walk(client, routes, ours, theirs) == []
    assert len({statement.partition("WHERE")[0] for statement in forgetful}) >= 5


@pytest_asyncio.fixture(loop_scope="session")
async def superuser(superuser_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(superuser_url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def unwalled(superuser: Connection) -> AsyncIterator[None]:
    """No row-level security while this lasts."""
    tables = [
        row[0] for row in await superuser.fetch("SELECT polrelid::regclass::text FROM pg_policy")
    ]
    for table in {*tables}:
        await superuser.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    yield
    for table in {*tables}:
        await superuser.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


async def test_without_both_walls_the_walk_finds_the_leaks(
    client: httpx.AsyncClient,
    routes: list[Route],
    ours: Tenant,
    theirs: Tenant,
    forgetful: list[str],
    unwalled: None,
) -> None:
    """Else it would prove nothing."""
    leaks = " ".join(await walk(client, routes, ours, theirs))
    for path in ("/v1/wallets/{agent_id}", "/v1/receipts/{receipt_id}", "/decision", "/v1/audit/"):
        assert path in leaks
