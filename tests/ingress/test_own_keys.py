"""`/v1/keys`: a tenant's keys in its own hands, and no key that makes a stronger one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
import pytest_asyncio
from sqlalchemy import text

from ingress.deps import Deps
from shared.api_keys import count_keys, database_time, list_keys, lock_key, rotate_key
from tests.ingress.conftest import OpenApp, SignUp

Ingresses = tuple[httpx.AsyncClient, httpx.AsyncClient]
Auth = dict[str, str]


@pytest_asyncio.fixture(loop_scope="session")
async def two(open_app: OpenApp) -> AsyncIterator[Ingresses]:
    async with open_app() as one, open_app() as other:
        yield one[0], other[0]


def bearer(answer: httpx.Response) -> Auth:
    return {"authorization": f"Bearer {answer.json()['api_key']}"}


async def make(client: httpx.AsyncClient, auth: Auth, **body: Any) -> httpx.Response:
    return await client.post("/v1/keys", json={"scopes": ["admin"], **body}, headers=auth)


async def works(client: httpx.AsyncClient, auth: Auth) -> bool:
    """Whether a key with the scope `admin` is taken."""
    answer = await client.get("/v1/keys", headers=auth)
    assert answer.status_code in (200, 401)
    return answer.status_code == 200


async def until(look: Callable[[], Any]) -> None:
    async with asyncio.timeout(15):
        while not await look():
            await asyncio.sleep(0.01)


async def test_a_key_is_made_shown_once_and_listed(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    ends = datetime.now(UTC) + timedelta(days=1)
    about = {"scopes": ["read", "call"], "label": "bot", "expires_at": ends.isoformat()}
    limits = {"requests_per_minute": 60, "concurrent_calls": 4}
    made = await make(client, new["auth"], **about, limits=limits, agent_id=new["agent_id"])
    assert made.status_code == 201, made.text
    key = made.json()
    assert key.pop("api_key").startswith("ainfera_")
    assert key["scopes"] == ["call", "read"]
    assert key["agent_id"] == new["agent_id"]
    assert key["limits"] == {**limits, "tokens_per_minute": None}
    assert datetime.fromisoformat(key["expires_at"]) == ends
    path = f"/v1/agents/{new['agent_id']}"
    assert (await client.get(path, headers=bearer(made))).status_code == 200
    listed = (await client.get("/v1/keys", headers=new["auth"])).json()["keys"]
    assert [each["label"] for each in listed] == ["signup", "bot"]
    assert listed[1] == key
    assert "api_key" not in str(listed)
    assert "hash" not in str(listed)
    act = text("SELECT actor FROM operator_events WHERE act = 'key.create' AND target = :id")
    async with deps.db.everyone() as session:
        assert await session.scalar(act, {"id": key["id"]}) == f"key {listed[0]['id']}"


async def test_a_new_secret_under_the_same_id(
    two: Ingresses, client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    made = await make(client, new["auth"], limits={"requests_per_minute": 5})
    key_id, old = made.json()["id"], bearer(made)
    path = f"/v1/keys/{key_id}/rotate"
    fresh = await client.post(path, json={"overlap_seconds": 3600}, headers=new["auth"])
    assert fresh.status_code == 200, fresh.text
    assert (fresh.json()["id"], len(fresh.json()["secrets"])) == (key_id, 2)
    assert fresh.json()["limits"]["requests_per_minute"] == 5
    for each in two:
        assert await works(each, old)
        assert await works(each, bearer(fresh))
    # both count against the same limits, under the same id
    secrets = [auth["authorization"][7:] for auth in (old, bearer(fresh))]
    callers = [await deps.keyring.find(secret, None) for secret in secrets]
    assert {caller.key_id for caller in callers} == {key_id}
    assert len({str(caller.limits) for caller in callers}) == 1

    newest = await client.post(path, json={"overlap_seconds": 0}, headers=new["auth"])
    for each in two:
        for gone in (old, bearer(fresh)):

            async def refused(client: httpx.AsyncClient = each, gone: Auth = gone) -> bool:
                return not await works(client, gone)

            await until(refused)
        assert await works(each, bearer(newest))


async def test_two_who_replace_a_secret_at_once_leave_one_that_lasts(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    key_id = (await make(client, new["auth"])).json()["id"]
    path = f"/v1/keys/{key_id}/rotate"
    body = {"overlap_seconds": 0}
    done = await asyncio.gather(
        *[client.post(path, json=body, headers=new["auth"]) for _ in range(4)]
    )
    assert [each.status_code for each in done] == [200] * 4
    assert [await works(client, bearer(each)) for each in done].count(True) == 1


async def test_two_keys_that_replace_each_others_secrets_do_not_wait_for_each_other(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    for _ in range(5):
        one, other = await make(client, new["auth"]), await make(client, new["auth"])
        done = await asyncio.gather(
            *[
                client.post(f"/v1/keys/{of.json()['id']}/rotate", headers=bearer(by))
                for of, by in ((one, other), (other, one)) * 2
            ]
        )
        # once its own secret was replaced, a key is told so
        assert {each.status_code for each in done} <= {200, 403}
        assert 200 in {each.status_code for each in done}


async def test_the_newest_secret_is_the_last_one_given_whoever_began_first(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    key_id = UUID((await make(client, new["auth"])).json()["id"])
    async with deps.db.everyone() as early, deps.db.everyone() as late:
        await database_time(early)  # its transaction has begun
        given = []
        for session in (late, early):
            key = await lock_key(session, key_id)
            minted = await rotate_key(session, key, timedelta(hours=1), "test")
            await session.commit()
            assert minted is not None
            given.append(minted.row.id)
    async with deps.db.everyone() as session:
        key = await lock_key(session, key_id)
        assert [each.id for each in key.secrets][1:] == given


async def test_a_secret_that_was_replaced_hands_out_nothing(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    made = await make(client, new["auth"])
    old, path = bearer(made), f"/v1/keys/{made.json()['id']}/rotate"
    fresh = await client.post(path, json={"overlap_seconds": 3600}, headers=old)
    assert fresh.status_code == 200, fresh.text
    # whoever has the old one, because it leaked, would keep the owner out for good
    for refused in (
        await client.post(path, json={"overlap_seconds": 0}, headers=old),
        await make(client, old),
    ):
        assert refused.status_code == 403, refused.text
        assert "was replaced" in refused.json()["message"]
    assert await works(client, old)
    assert await works(client, bearer(fresh))
    assert (await client.post(path, headers=bearer(fresh))).status_code == 200


async def test_a_key_has_few_secrets_at_one_time(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await sign_up()
    made = await make(client, new["auth"])
    path = f"/v1/keys/{made.json()['id']}"

    async def rotate(overlap_s: int) -> httpx.Response:
        body = {"overlap_seconds": overlap_s}
        return await client.post(f"{path}/rotate", json=body, headers=new["auth"])

    given = [bearer(await rotate(3600)) for _ in range(9)]
    assert await works(client, bearer(made))
    refused = await rotate(3600)
    assert (refused.status_code, "no overlap" in refused.text) == (403, True)
    told: list[str | bytes] = []
    forget = deps.keyring.forget

    def noting(key_hash: str | bytes) -> None:
        told.append(key_hash)
        forget(key_hash)

    monkeypatch.setattr(deps.keyring, "forget", noting)
    newest = await rotate(0)
    assert [await works(client, each) for each in (bearer(made), *given, bearer(newest))] == [
        *[False] * 10,
        True,
    ]
    # what ended long ago is told to nobody again, or every change would cost more than the last
    for _ in range(15):
        newest = await rotate(0)
    told.clear()
    newest = await rotate(0)
    assert len(newest.json()["secrets"]) == 27
    await asyncio.sleep(0.2)
    assert len(told) < 27
    monkeypatch.setattr("shared.api_keys.MOST_SECRETS", 27)
    refused = await rotate(0)
    assert (refused.status_code, "make a new key" in refused.text) == (403, True)


async def test_only_keys_that_work_count_and_are_listed(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    kept = (await make(client, new["auth"])).json()
    for _ in range(3):
        gone = await make(client, new["auth"])
        await client.delete(f"/v1/keys/{gone.json()['id']}", headers=new["auth"])
    await client.post(f"/v1/keys/{kept['id']}/rotate", headers=new["auth"])
    listed = (await client.get("/v1/keys", headers=new["auth"])).json()["keys"]
    assert [len(each["secrets"]) for each in listed] == [1, 2]
    tenant = UUID(new["tenant_id"])
    async with deps.db.everyone() as session:
        assert await count_keys(session, tenant) == 2
        newest = await list_keys(session, tenant, everything=True, most=2)
    assert [len(each.secrets) for each in newest] == [1, 1]


async def test_a_moment_that_utc_does_not_have_is_refused(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    for moment in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        refused = await make(client, new["auth"], expires_at=moment)
        assert (refused.status_code, refused.json()["detail"]["param"]) == (400, "expires_at")


async def test_a_revoked_key_ends_with_all_its_secrets_everywhere(
    two: Ingresses, client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    made = await make(client, new["auth"], agent_id=new["agent_id"])
    path = f"/v1/keys/{made.json()['id']}"
    fresh = await client.post(f"{path}/rotate", headers=new["auth"])
    for each in two:
        assert await works(each, bearer(made))
        assert await works(each, bearer(fresh))
    gone = await client.delete(path, headers=new["auth"])
    assert (gone.status_code, gone.json()["changed"]) == (200, True)
    for each in two:
        for auth in (bearer(made), bearer(fresh)):

            async def refused(client: httpx.AsyncClient = each, auth: Auth = auth) -> bool:
                return not await works(client, auth)

            await until(refused)
    assert not (await client.delete(path, headers=new["auth"])).json()["changed"]
    assert (await client.post(f"{path}/rotate", headers=new["auth"])).status_code == 400
    query = "SELECT payload FROM audit_events WHERE agent_id = :id AND event_type = 'key.revoked'"
    async with deps.db.everyone() as session:
        rows = await session.scalars(text(f"{query} ORDER BY seq"), {"id": UUID(new["agent_id"])})
        reasons = [orjson.loads(row)["reason"] for row in rows]
    assert reasons == ["rotated", "revoked"]
    listed = (await client.get("/v1/keys?all=true", headers=new["auth"])).json()["keys"]
    assert [bool(each["revoked_at"]) for each in listed] == [False, True]


async def test_a_key_of_no_agent_is_witnessed_by_all(
    client: httpx.AsyncClient, deps: Deps, sign_up: SignUp
) -> None:
    """It could speak for any of them, so its end stands in the chain of each."""
    new, other = await sign_up(), await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()["id"]
    made = (await make(client, new["auth"], scopes=["read"])).json()
    path = f"/v1/keys/{made['id']}"
    async with deps.db.everyone() as session:
        of_none = "UPDATE api_keys SET default_agent_id = NULL WHERE key_id = :id"
        await session.execute(text(of_none), {"id": UUID(made["id"])})
        await session.commit()
    assert (await client.delete(path, headers=new["auth"])).status_code == 200
    query = "SELECT payload FROM audit_events WHERE agent_id = :id AND event_type = 'key.revoked'"
    async with deps.db.everyone() as session:
        for agent, times in ((new["agent_id"], 1), (second, 1), (other["agent_id"], 0)):
            rows = list(await session.scalars(text(query), {"id": UUID(agent)}))
            assert [orjson.loads(row)["key_id"] for row in rows] == [made["id"]] * times
    for agent in (new["agent_id"], second):
        assert (await client.get(f"/v1/audit/{agent}/verify")).json()["valid"]


async def test_no_key_makes_a_stronger_one(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()["id"]
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    late = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    wide = {"scopes": ["read", "admin"], "expires_at": soon, "limits": {"tokens_per_minute": 100}}
    weak = await make(client, new["auth"], agent_id=new["agent_id"], **wide)
    assert weak.status_code == 201, weak.text
    auth = bearer(weak)

    async def refused(**changes: Any) -> str:
        answer = await make(client, auth, **{**wide, **changes})
        assert answer.status_code == 403, answer.text
        return str(answer.json()["message"])

    assert "`call`" in await refused(scopes=["call", "admin"])
    assert "expires sooner" in await refused(expires_at=late)
    assert "expires sooner" in await refused(expires_at=None)
    assert "tokens_per_minute" in await refused(limits={"tokens_per_minute": 101})
    # bound to its agent: another is as if it were not there
    assert (await make(client, auth, **{**wide, "agent_id": second})).status_code == 404
    # what it does not name, it has from the key that asks
    heir = await make(client, auth, scopes=["admin"], expires_at=soon)
    assert heir.status_code == 201, heir.text
    assert heir.json()["agent_id"] == new["agent_id"]
    assert heir.json()["limits"]["tokens_per_minute"] == 100
    narrower = await make(
        client, auth, scopes=["read"], expires_at=soon, limits={"tokens_per_minute": 9}
    )
    assert narrower.status_code == 201
    # to replace a secret is to get it
    keys = (await client.get("/v1/keys", headers=new["auth"])).json()["keys"]
    strong = await make(client, new["auth"], agent_id=new["agent_id"], scopes=["call", "admin"])
    path = f"/v1/keys/{strong.json()['id']}/rotate"
    assert (await client.post(path, headers=auth)).status_code == 403
    own = f"/v1/keys/{weak.json()['id']}/rotate"
    rotated = await client.post(own, headers=auth)
    assert rotated.status_code == 200
    assert rotated.json()["expires_at"] == weak.json()["expires_at"]
    # the tenant's own key is none of a bound key's
    assert (await client.delete(f"/v1/keys/{keys[0]['id']}", headers=auth)).status_code == 404
    assert {
        each["agent_id"] for each in (await client.get("/v1/keys", headers=auth)).json()["keys"]
    } == {new["agent_id"]}


async def test_another_tenants_keys_are_not_there(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    mine, other = await sign_up(), await sign_up()
    key_id = (await make(client, other["auth"])).json()["id"]
    unknown = await client.delete(f"/v1/keys/{UUID(int=7)}", headers=mine["auth"])
    for method, path in (("DELETE", ""), ("POST", "/rotate")):
        answer = await client.request(method, f"/v1/keys/{key_id}{path}", headers=mine["auth"])
        assert (answer.status_code, answer.content) == (404, unknown.content)
    assert (await make(client, mine["auth"], agent_id=other["agent_id"])).status_code == 404
    listed = (await client.get("/v1/keys", headers=mine["auth"])).json()["keys"]
    assert len(listed) == 1


async def test_what_cannot_be_a_key_is_refused(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    wrong: list[dict[str, Any]] = [
        {"scopes": []},
        {"scopes": ["all"]},
        {"expires_at": past},
        {"expires_at": "2030-01-01T00:00:00"},
        {"limits": {"requests_per_minute": 0}},
        {"limits": {"tokens_per_minute": 50_000_001}},
        {"label": "x" * 129},
    ]
    for body in wrong:
        assert (await make(client, new["auth"], **body)).status_code == 400, body


async def test_there_is_an_end_to_keys(open_app: OpenApp, sign_up: SignUp) -> None:
    new = await sign_up()
    async with open_app(keys_per_tenant=3) as (client, _):
        made = await asyncio.gather(*[make(client, new["auth"]) for _ in range(5)])
        assert sorted(each.status_code for each in made) == [201, 201, 403, 403, 403]


async def test_a_key_without_a_default_agent_says_how_to_name_one(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    async with deps.db.everyone() as session:
        change = "UPDATE api_keys SET default_agent_id = NULL WHERE tenant_id = :tenant"
        await session.execute(text(change), {"tenant": UUID(new["tenant_id"])})
        await session.commit()
    body = {"model": "ainfera-inference", "messages": [{"role": "user", "content": "Hello"}]}
    refused = await client.post("/v1/inference", json=body, headers=new["auth"])
    assert refused.status_code == 400, refused.text
    assert "`agent_id` in the body" in refused.json()["message"]
    assert "X-Ainfera-Agent-Id" in refused.json()["message"]
