"""`fleet keys`: a key is replaced with an overlap, or ended at once, everywhere."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
import pytest_asyncio
from sqlalchemy import text
from typer.testing import Result

from ingress.deps import Deps
from shared.keys import hash_api_key
from tests.ingress.conftest import OpenApp, SignUp
from tests.test_cli import fleet

Fleet = Callable[..., Any]
Ingresses = tuple[httpx.AsyncClient, httpx.AsyncClient]


@pytest_asyncio.fixture(loop_scope="session")
async def two(open_app: OpenApp) -> AsyncIterator[Ingresses]:
    async with open_app() as one, open_app() as other:
        yield one[0], other[0]


@pytest.fixture
def keys(deps: Deps) -> Fleet:
    """`fleet keys …` in a thread: it runs an event loop of its own."""
    told = {"DATABASE_URL": deps.settings.database_url, "REDIS_URL": deps.settings.redis_url}

    async def run(*words: str) -> Result:
        return await asyncio.to_thread(fleet, "keys", *words, **told)

    return run


async def known(client: httpx.AsyncClient, api_key: str) -> bool:
    """Whether the key is taken; there is nothing under the id that is asked for."""
    headers = {"authorization": f"Bearer {api_key}"}
    answer = await client.get(f"/v1/wallets/{uuid4()}", headers=headers)
    assert answer.status_code in (401, 404)
    return answer.status_code == 404


async def until(look: Callable[[], Any]) -> None:
    async with asyncio.timeout(15):
        while not await look():
            await asyncio.sleep(0.01)


async def witnessed(deps: Deps, agent: dict[str, Any]) -> list[dict[str, Any]]:
    query = text(
        "SELECT payload FROM audit_events WHERE agent_id = :id AND event_type = 'key.revoked'"
        " ORDER BY seq"
    )
    async with deps.db.everyone() as session:
        rows = await session.scalars(query, {"id": UUID(agent["agent_id"])})
        return [orjson.loads(row) for row in rows]


async def acts(deps: Deps, key_id: str) -> list[str]:
    query = text("SELECT act FROM operator_events WHERE target = :id ORDER BY at")
    async with deps.db.everyone() as session:
        return list(await session.scalars(query, {"id": key_id}))


async def test_a_revoked_key_is_refused_everywhere(
    two: Ingresses, deps: Deps, sign_up: SignUp, keys: Fleet
) -> None:
    agent = await sign_up()
    api_key = agent["api_key"]
    for client in two:
        assert await known(client, api_key)
    prefix = hash_api_key(api_key).hex()[:12]
    done = await keys("revoke", prefix, "--reason", "leaked", "--yes", "--json")
    assert done.exit_code == 0, done.output
    row = orjson.loads(done.stdout)
    assert (row["hash"], row["changed"]) == (prefix, True)
    assert api_key not in done.output
    for client in two:

        async def refused(client: httpx.AsyncClient = client) -> bool:
            return not await known(client, api_key)

        await until(refused)
    again = orjson.loads((await keys("revoke", row["id"], "--yes", "--json")).stdout)
    assert not again["changed"]
    (event,) = await witnessed(deps, agent)
    assert (event["key_id"], event["reason"]) == (row["id"], "revoked")
    assert await acts(deps, row["id"]) == ["key.revoke"]


async def test_a_rotated_key_works_until_the_overlap_is_over(
    two: Ingresses, deps: Deps, sign_up: SignUp, keys: Fleet
) -> None:
    agent = await sign_up()
    old = agent["api_key"]
    prefix = hash_api_key(old).hex()[:12]
    for client in two:
        assert await known(client, old)
    done = await keys("rotate", prefix, "--overlap", "1h", "--yes", "--json")
    assert done.exit_code == 0, done.output
    fresh = orjson.loads(done.stdout)
    for client in two:
        assert await known(client, fresh["api_key"])
        assert await known(client, old)
    # the same agent speaks through it
    headers = {"authorization": f"Bearer {fresh['api_key']}"}
    wallet = await two[0].get(f"/v1/wallets/{agent['agent_id']}", headers=headers)
    assert wallet.status_code == 200
    (listed,) = orjson.loads((await keys("list", "--tenant", agent["tenant_id"], "--json")).stdout)
    # one key, under the id that it always had, with two secrets
    assert listed["id"] == fresh["id"]
    assert [bool(secret["expires_at"]) for secret in listed["secrets"]] == [True, False]
    assert fresh["api_key"] not in str(listed)
    (event,) = await witnessed(deps, agent)
    assert (event["key_id"], event["reason"]) == (fresh["id"], "rotated")
    assert event["replaced_by"] == fresh["secret_id"]

    ended = await keys("rotate", fresh["id"], "--overlap", "0s", "--yes", "--json")
    newest = orjson.loads(ended.stdout)["api_key"]
    for client in two:
        for gone in (old, fresh["api_key"]):

            async def refused(client: httpx.AsyncClient = client, gone: str = gone) -> bool:
                return not await known(client, gone)

            await until(refused)
        assert await known(client, newest)
    # one that works no more gets no new secret
    assert (await keys("revoke", fresh["id"], "--yes")).exit_code == 0
    assert (await keys("rotate", fresh["id"], "--yes")).exit_code == 1


async def test_a_new_key_does_what_it_was_made_for(
    two: Ingresses, sign_up: SignUp, keys: Fleet, deps: Deps
) -> None:
    agent = await sign_up()
    words = ("--tenant", agent["tenant_id"], "--scope", "read", "--label", "dashboard")
    made = await keys("create", *words, "--expires", "1h", "--requests-per-minute", "7", "--json")
    assert made.exit_code == 0, made.output
    key = orjson.loads(made.stdout)
    headers = {"authorization": f"Bearer {key['api_key']}"}
    path = f"/v1/wallets/{agent['agent_id']}"
    for client in two:
        assert (await client.get(path, headers=headers)).status_code == 200
        assert (await client.get("/v1/keys", headers=headers)).status_code == 403
    listed = orjson.loads((await keys("list", "--tenant", agent["tenant_id"], "--json")).stdout)[-1]
    assert (listed["id"], listed["scopes"], listed["label"]) == (key["id"], ["read"], "dashboard")
    assert listed["expires_at"]
    assert listed["limits"]["requests_per_minute"] == 7
    assert await acts(deps, key["id"]) == ["key.create"]

    changed = await keys("limit", key["id"], "--tokens-per-minute", "9", "--default", "--json")
    limits = orjson.loads(changed.stdout)["limits"]
    assert limits == {
        "requests_per_minute": None,
        "tokens_per_minute": 9,
        "concurrent_calls": None,
    }
    assert await acts(deps, key["id"]) == ["key.create", "key.limit"]
    assert (await keys("limit", key["id"])).exit_code == 1
    assert (await keys("create", "--tenant", str(uuid4()))).exit_code == 1
    other = await sign_up()
    foreign = ("--tenant", agent["tenant_id"], "--agent", other["agent_id"])
    assert (await keys("create", *foreign)).exit_code == 1


@pytest.mark.parametrize("named", ["zz", "abc", "ainfera_0123456789", "00000000"])
async def test_only_one_key_is_ever_meant(sign_up: SignUp, keys: Fleet, named: str) -> None:
    await sign_up()
    refused = await keys("revoke", named, "--yes")
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output


async def test_without_a_yes_no_key_is_touched(sign_up: SignUp, keys: Fleet, deps: Deps) -> None:
    agent = await sign_up()
    prefix = hash_api_key(agent["api_key"]).hex()[:12]
    assert (await keys("revoke", prefix)).exit_code == 1
    assert (await keys("rotate", prefix)).exit_code == 1
    assert await witnessed(deps, agent) == []


async def test_a_listed_key_is_whole_with_its_limits(sign_up: SignUp, keys: Fleet) -> None:
    agent = await sign_up()
    (listed,) = orjson.loads((await keys("list", "--tenant", agent["tenant_id"], "--json")).stdout)
    words = ("limit", listed["id"], "--requests-per-minute", "60", "--concurrent-calls", "20")
    limited = await keys(*words, "--yes")
    assert limited.exit_code == 0, limited.output
    _, row = (await keys("list", "--tenant", agent["tenant_id"])).stdout.splitlines()
    for told in (listed["id"], listed["hash"], agent["tenant_id"], agent["agent_id"]):
        assert told in row
    assert "60 req/min, 20 at once" in row


async def test_a_key_whose_calls_must_name_their_agent_is_told_so(
    sign_up: SignUp, keys: Fleet
) -> None:
    agent = await sign_up()
    made = await keys("create", "--tenant", agent["tenant_id"], "--scope", "call", "--yes")
    assert made.exit_code == 0, made.output
    assert "X-Ainfera-Agent-Id" in made.stderr
    for rest in (("--scope", "read"), ("--scope", "call", "--agent", agent["agent_id"])):
        made = await keys("create", "--tenant", agent["tenant_id"], *rest)
        assert (made.exit_code, made.stderr) == (0, "")
