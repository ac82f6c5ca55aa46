"""Keys and callers: what is accepted, what is remembered, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession

from ingress.auth import KEPT_S, UNKNOWN_KEPT_S, Caller, KeyCache, authenticate, presented_key
from ingress.deps import Deps
from shared.config import Settings
from shared.control import KEY_REVOKED, give_order
from shared.db import Database
from shared.domain.routing_policy import CallerPolicy
from shared.errors import Forbidden, InvalidApiKey, InvalidBody, NotFound, Overloaded
from shared.keys import hash_api_key, mint_api_key
from tests.ingress.conftest import OpenApp, SignUp

UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"


class CountingDatabase(Database):
    """Counts the sessions that were opened; holds answers back while `gate` is clear."""

    __slots__ = ("answered", "gate", "opened")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.opened = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answered = asyncio.Event()

    def everyone(self) -> AsyncSession:
        self.opened += 1
        return GatedSession(self, super().everyone())  # type: ignore[return-value]


class GatedSession:
    """A session that is answered only when the gate opens."""

    def __init__(self, db: CountingDatabase, session: AsyncSession) -> None:
        self._db, self._session = db, session

    async def __aenter__(self) -> "GatedSession":
        await self._session.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._session.__aexit__(*raised)

    async def execute(self, statement: Any) -> Any:
        result = await self._session.execute(statement)
        self._db.answered.set()
        await self._db.gate.wait()
        return result


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture(loop_scope="session")
async def db(make_settings: Callable[..., Settings]) -> AsyncIterator[CountingDatabase]:
    counting = CountingDatabase(make_settings())
    yield counting
    await counting.aclose()


@pytest.fixture
def keyring(db: CountingDatabase, clock: Clock) -> KeyCache:
    return KeyCache(db, clock)


async def sql(url: str, statement: str, *values: Any) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def revoke(url: str, api_key: str) -> None:
    await sql(
        url, "UPDATE api_keys SET revoked_at = now() WHERE key_hash = $1", hash_api_key(api_key)
    )


async def test_no_key_an_unknown_and_a_revoked_one_get_the_same_answer(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    revoked, expired = await sign_up(), await sign_up()
    await revoke(owner_url, revoked["api_key"])
    await sql(
        owner_url,
        "UPDATE api_keys SET expires_at = now() WHERE key_hash = $1",
        hash_api_key(expired["api_key"]),
    )
    headers: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer sk-something-else"},
        {"x-api-key": "ainfera_" + "x" * 5000},
        {"x-api-key": mint_api_key()},
        {"x-api-key": "ainfera_\xe9"},
        revoked["auth"],
        expired["auth"],
    ]
    raw = [httpx.Headers(each, encoding="latin-1") for each in headers]
    path = f"/v1/agents/{revoked['agent_id']}"
    answers = [await client.get(path, headers=each) for each in raw]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.content for answer in answers} == {answers[0].content}
    assert answers[0].json()["code"] == "invalid_api_key"


async def test_both_headers_are_understood(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    key, path = new["api_key"], f"/v1/agents/{new['agent_id']}"
    headers: list[dict[str, str]] = [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key} "},
        {"x-api-key": key},
        {"authorization": "Bearer sk-ant-other", "x-api-key": key},
        {"authorization": f"Bearer {key}", "x-api-key": "sk-ant-other"},
    ]
    for each in headers:
        assert presented_key(each) == key
        assert (await client.get(path, headers=each)).status_code == 200


async def test_a_known_key_asks_no_store(
    sign_up: SignUp, keyring: KeyCache, db: CountingDatabase
) -> None:
    new = await sign_up()
    first = await keyring.find(new["api_key"], None)
    assert (first.tenant_id, first.agent_id) == (new["tenant_id"], new["agent_id"])
    assert db.opened == 1
    # a coroutine that ends without waiting even once
    with pytest.raises(StopIteration) as ended:
        keyring.find(new["api_key"], None).send(None)
    assert ended.value.value is first
    assert db.opened == 1


async def test_what_is_known_is_asked_again_after_a_minute(
    sign_up: SignUp, keyring: KeyCache, clock: Clock, owner_url: str
) -> None:
    new = await sign_up()
    await keyring.find(new["api_key"], None)
    await revoke(owner_url, new["api_key"])
    clock.now += KEPT_S - 1
    await keyring.find(new["api_key"], None)
    clock.now += 1
    with pytest.raises(InvalidApiKey):
        await keyring.find(new["api_key"], None)


async def test_a_key_is_never_kept_past_its_own_end(
    sign_up: SignUp, keyring: KeyCache, clock: Clock, db: CountingDatabase, owner_url: str
) -> None:
    new = await sign_up()
    await sql(
        owner_url,
        "UPDATE api_keys SET expires_at = now() + interval '30 s' WHERE key_hash = $1",
        hash_api_key(new["api_key"]),
    )
    await keyring.find(new["api_key"], None)
    clock.now += 20
    await keyring.find(new["api_key"], None)
    assert db.opened == 1
    clock.now += 10
    await keyring.find(new["api_key"], None)
    assert db.opened == 2


async def test_an_unknown_key_is_remembered_briefly(
    keyring: KeyCache, clock: Clock, db: CountingDatabase
) -> None:
    key = mint_api_key()
    for _ in range(3):
        with pytest.raises(InvalidApiKey):
            await keyring.find(key, None)
    assert db.opened == 1
    clock.now += UNKNOWN_KEPT_S
    with pytest.raises(InvalidApiKey):
        await keyring.find(key, None)
    assert db.opened == 2


@pytest.mark.parametrize("form", [bytes.hex, bytes])
async def test_a_forgotten_key_is_refused_at_once(
    sign_up: SignUp, keyring: KeyCache, owner_url: str, form: Callable[[bytes], str | bytes]
) -> None:
    new = await sign_up()
    await keyring.find(new["api_key"], None)
    await keyring.find(new["api_key"], UUID(new["agent_id"]))
    await revoke(owner_url, new["api_key"])
    keyring.forget(form(hash_api_key(new["api_key"])))
    for agent_id in (None, UUID(new["agent_id"])):
        with pytest.raises(InvalidApiKey):
            await keyring.find(new["api_key"], agent_id)


async def test_forgetting_everything_forgets_unknown_keys_too(
    sign_up: SignUp, keyring: KeyCache, db: CountingDatabase
) -> None:
    new = await sign_up()
    await keyring.find(new["api_key"], None)
    unknown = mint_api_key()
    with pytest.raises(InvalidApiKey):
        await keyring.find(unknown, None)
    keyring.forget_all()
    await keyring.find(new["api_key"], None)
    with pytest.raises(InvalidApiKey):
        await keyring.find(unknown, None)
    assert db.opened == 4


async def test_a_revocation_is_heard_over_the_control_channel(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, owner_url: str
) -> None:
    new = await sign_up()
    path = f"/v1/agents/{new['agent_id']}"
    assert (await client.get(path, headers=new["auth"])).status_code == 200
    await revoke(owner_url, new["api_key"])
    assert (await client.get(path, headers=new["auth"])).status_code == 200
    await give_order(deps.redis, KEY_REVOKED, key_hash=hash_api_key(new["api_key"]).hex())
    async with asyncio.timeout(30):
        while (await client.get(path, headers=new["auth"])).status_code != 401:
            await asyncio.sleep(0.01)


async def test_a_revocation_during_a_look_up_is_not_overwritten_by_it(
    sign_up: SignUp, keyring: KeyCache, db: CountingDatabase, owner_url: str
) -> None:
    new = await sign_up()
    db.gate.clear()
    looking = asyncio.create_task(keyring.find(new["api_key"], None))
    await asyncio.wait_for(db.answered.wait(), 30)
    await revoke(owner_url, new["api_key"])
    keyring.forget(hash_api_key(new["api_key"]))
    late = asyncio.create_task(keyring.find(new["api_key"], None))
    await asyncio.sleep(0)
    db.gate.set()
    await asyncio.gather(looking, late, return_exceptions=True)
    with pytest.raises(InvalidApiKey):
        await keyring.find(new["api_key"], None)
    assert isinstance(late.exception(), InvalidApiKey)


async def test_many_requests_with_one_new_key_ask_once(
    sign_up: SignUp, keyring: KeyCache, db: CountingDatabase
) -> None:
    new = await sign_up()
    db.gate.clear()
    finding = [asyncio.create_task(keyring.find(new["api_key"], None)) for _ in range(20)]
    await asyncio.wait_for(db.answered.wait(), 30)
    finding[0].cancel()
    await asyncio.sleep(0)
    db.gate.set()
    found = await asyncio.gather(*finding, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(each, Caller) for each in found[1:])
    assert db.opened == 1


async def test_only_so_many_are_kept_and_the_least_used_go_first(
    sign_up: SignUp, db: CountingDatabase, clock: Clock
) -> None:
    keyring = KeyCache(db, clock, most=2)
    a, b, c = [(await sign_up())["api_key"] for _ in range(3)]
    for key in (a, b, a, c):
        await keyring.find(key, None)
    assert db.opened == 3
    await keyring.find(a, None)
    assert db.opened == 3
    await keyring.find(b, None)
    assert db.opened == 4


async def test_a_database_that_is_away_is_a_503(
    make_settings: Callable[..., Settings], clock: Clock
) -> None:
    away = make_settings(database_url="postgresql://ainfera_app@/ainfera?host=/nowhere/at/all")
    with pytest.raises(Overloaded):
        await KeyCache(Database(away), clock).find(mint_api_key(), None)


async def test_a_failed_look_up_is_not_remembered(
    sign_up: SignUp, db: CountingDatabase, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await sign_up()
    keyring = KeyCache(db, clock)
    with monkeypatch.context() as patch:
        patch.setattr(GatedSession, "execute", _refused)
        with pytest.raises(Overloaded):
            await keyring.find(new["api_key"], None)
    assert (await keyring.find(new["api_key"], None)).agent_id == new["agent_id"]


async def _refused(*_: Any) -> None:
    raise ConnectionRefusedError


async def test_an_agent_is_chosen_by_header_or_body_among_the_tenants_own(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new, other = await sign_up(), await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()["id"]

    async def chosen(header: str | None, in_body: str | None) -> str | None:
        headers = new["auth"] | ({"x-ainfera-agent-id": header} if header else {})
        return (await authenticate(headers, in_body, deps)).agent_id

    assert await chosen(None, None) == new["agent_id"]
    assert await chosen(second, None) == second
    assert await chosen(None, second.upper()) == second
    assert await chosen(new["agent_id"], second) == second
    messages = set()
    for foreign in (other["agent_id"], UNKNOWN_ID, "no-uuid"):
        for header, in_body in ((foreign, None), (None, foreign), (second, foreign)):
            with pytest.raises(NotFound) as refused:
                await chosen(header, in_body)
            messages.add(refused.value.message)
    assert len(messages) == 1
    with pytest.raises(InvalidApiKey):
        await authenticate({"x-ainfera-agent-id": "no-uuid"}, None, deps)
    with pytest.raises(InvalidApiKey):
        await authenticate({"x-api-key": mint_api_key()}, "no-uuid", deps)


async def test_a_bound_key_speaks_for_its_agent_only(
    client: httpx.AsyncClient, sign_up: SignUp, keyring: KeyCache, owner_url: str
) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()["id"]
    key = mint_api_key()
    await sql(
        owner_url,
        "INSERT INTO api_keys (id, tenant_id, agent_id, key_hash) "
        "VALUES (gen_random_uuid(), $1::uuid, $2::uuid, $3)",
        new["tenant_id"],
        second,
        hash_api_key(key),
    )
    assert (await keyring.find(key, None)).agent_id == second
    assert (await keyring.find(key, UUID(second))).agent_id == second
    with pytest.raises(NotFound):
        await keyring.find(key, UUID(new["agent_id"]))


async def test_the_worker_is_told_who_and_by_which_policy(
    sign_up: SignUp, keyring: KeyCache, owner_url: str
) -> None:
    new = await sign_up()
    await sql(
        owner_url,
        "UPDATE tenants SET policy = $2::jsonb WHERE id = $1::uuid",
        new["tenant_id"],
        '{"min_quality": "strong"}',
    )
    await sql(
        owner_url, "UPDATE agents SET min_quality = 0.75 WHERE id = $1::uuid", new["agent_id"]
    )
    told = (await keyring.find(new["api_key"], None)).for_worker()
    assert (told["tenant_id"], told["agent_id"]) == (new["tenant_id"], new["agent_id"])
    policy = CallerPolicy.from_json(told["policy"])
    assert (policy.agent_min_quality, policy.tenant_min_quality) == (
        Decimal("0.75"),
        Decimal("0.70"),
    )


async def test_an_agent_that_is_not_active_makes_no_calls(
    sign_up: SignUp, keyring: KeyCache, owner_url: str
) -> None:
    new = await sign_up()
    await sql(
        owner_url, "UPDATE agents SET status = 'suspended' WHERE id = $1::uuid", new["agent_id"]
    )
    caller = await keyring.find(new["api_key"], None)
    with pytest.raises(Forbidden):
        caller.for_worker()


async def test_a_key_without_a_default_agent_must_name_one(
    sign_up: SignUp, keyring: KeyCache, owner_url: str
) -> None:
    new = await sign_up()
    await sql(
        owner_url,
        "UPDATE api_keys SET default_agent_id = NULL WHERE key_hash = $1",
        hash_api_key(new["api_key"]),
    )
    caller = await keyring.find(new["api_key"], None)
    with pytest.raises(InvalidBody):
        caller.for_worker()
    named = await keyring.find(new["api_key"], UUID(new["agent_id"]))
    assert named.for_worker()["agent_id"] == new["agent_id"]


async def test_an_internal_key_that_is_not_set_opens_nothing(open_app: OpenApp) -> None:
    empty = Settings().internal_key
    async with open_app(internal_key=empty, signup_mode="internal") as (client, _):
        for key in ("", "x"):
            refused = await client.post(
                "/v1/agents/signup",
                json={"agent_handle": "a"},
                headers={"x-ainfera-internal-key": key},
            )
            assert refused.status_code == 401
