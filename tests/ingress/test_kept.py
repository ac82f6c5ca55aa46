"""Accepting a call that is kept: what the queue refuses, and what it does not answer."""

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio
from redis.exceptions import ConnectionError as RedisAway

from ingress.deps import Deps
from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.kept import KeptCalls
from shared.queue import Envelope, InferenceQueue, Priority
from tests.ingress.conftest import OpenApp, SignUp

BODY: dict[str, Any] = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "Hi."}]}
Kept = tuple[dict[str, Any], dict[str, str]]
KEYED: Kept = ({}, {"idempotency-key": "a key"})
IN_BACKGROUND: Kept = ({"background": True}, {})
SLOW_COMMIT = """
CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON kept_calls DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION slow_commit();
"""
COMMITTING = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND state = 'active' AND query ILIKE 'COMMIT%'
"""


async def states(database_url: str, agent_id: str) -> list[str]:
    connection = await asyncpg.connect(database_url)
    query = "SELECT state FROM kept_calls WHERE agent_id = $1::uuid"
    rows = await connection.fetch(query, agent_id)
    await connection.close()
    return [row["state"] for row in rows]


async def wait_in_line(deps: Deps, agent: dict[str, Any], priority: Priority) -> None:
    """One job of the tenant that nobody takes: an empty queue has room whatever its limits."""
    caller = {"tenant_id": agent["tenant_id"], "agent_id": agent["agent_id"], "policy": {}}
    waiting = Envelope(mint_id(), mint_id(), Dialect.NATIVE, "reply", caller, 1.0, "trace", b"{}")
    assert (await deps.queue.enqueue(waiting, priority)).result == "QUEUED"


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def empty_queue(deps: Deps) -> None:
    """What an earlier test left in the queue would have waited for too long by now."""
    await deps.redis.flushdb()


@pytest.mark.parametrize("kept", [KEYED, IN_BACKGROUND])
@pytest.mark.parametrize(
    ("limits", "status"), [({"max_tenant_queue": 1}, 429), ({"max_queue_depth": 1}, 503)]
)
async def test_what_the_queue_has_no_room_for_is_not_kept(
    open_app: OpenApp,
    sign_up: SignUp,
    database_url: str,
    kept: Kept,
    limits: dict[str, int],
    status: int,
) -> None:
    new = await sign_up()
    more, headers = kept
    async with open_app(**limits) as (client, deps):
        await wait_in_line(deps, new, Priority(int("background" in more)))
        answer = await client.post(
            "/v1/inference", json={**BODY, **more}, headers={**new["auth"], **headers}
        )
    assert answer.status_code == status, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert await states(database_url, new["agent_id"]) == []


@pytest.mark.parametrize("kept", [KEYED, IN_BACKGROUND])
async def test_what_was_refused_is_taken_back_once_postgres_is_there_again(
    open_app: OpenApp,
    sign_up: SignUp,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    kept: Kept,
) -> None:
    """Else it would be driven, and charged, after its client was told to ask again."""
    new = await sign_up()
    more, headers = kept
    real, tries = KeptCalls.withdraw, 0

    async def away_at_first(self: KeptCalls, envelope: Envelope) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionRefusedError
        await real(self, envelope)

    monkeypatch.setattr(KeptCalls, "withdraw", away_at_first)
    monkeypatch.setattr("shared.kept.WITHDRAW_EVERY_S", 0.01)
    async with open_app(max_tenant_queue=1) as (client, deps):
        await wait_in_line(deps, new, Priority(int("background" in more)))
        answer = await client.post(
            "/v1/inference", json={**BODY, **more}, headers={**new["auth"], **headers}
        )
        assert answer.status_code == 429, "why it was refused, not why it could not be taken back"
        async with asyncio.timeout(10):
            while await states(database_url, new["agent_id"]):
                await asyncio.sleep(0.01)


async def test_a_background_call_is_accepted_while_the_queue_is_away(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is in the database: the sweeper brings it into the queue."""

    async def enqueue(*_: object, **__: object) -> None:
        raise RedisAway("gone")

    new = await sign_up()
    monkeypatch.setattr(InferenceQueue, "enqueue", enqueue)
    answer = await client.post(
        "/v1/inference", json={**BODY, "background": True}, headers=new["auth"]
    )
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert await states(database_url, new["agent_id"]) == ["accepted"]


@pytest.mark.parametrize("kept", [KEYED, IN_BACKGROUND])
async def test_a_database_that_says_nothing_is_not_waited_for(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    superuser_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    kept: Kept,
) -> None:
    """503 at last; and what was written after all, when it went on, is taken back."""
    new = await sign_up()
    more, headers = kept
    monkeypatch.setattr("ingress.kept.CALL_PATIENCE_S", 0.1)
    monkeypatch.setattr("shared.kept.WITHDRAW_EVERY_S", 0.05)
    # the commit waits at the server, and goes on in spite of a client that is gone
    monkeypatch.setattr("asyncpg.connection.Connection._cancel", _no_cancel)
    locking = await asyncpg.connect(superuser_url)
    await locking.execute(SLOW_COMMIT)
    await locking.execute("SELECT pg_advisory_lock(4711)")
    answer = await client.post(
        "/v1/inference", json={**BODY, **more}, headers={**new["auth"], **headers}
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    await locking.execute("SELECT pg_advisory_unlock(4711)")
    async with asyncio.timeout(10):
        while await locking.fetchval(COMMITTING):
            await asyncio.sleep(0.01)
        while [task for task in asyncio.all_tasks() if task.get_name() == "withdraw"]:
            await asyncio.sleep(0.01)
    await locking.execute("DROP FUNCTION slow_commit() CASCADE")
    await locking.close()
    assert await states(database_url, new["agent_id"]) == []


async def _no_cancel(*_: object) -> None:
    return None


async def test_an_enqueue_that_was_not_answered_is_repeated(
    client: httpx.AsyncClient, sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = InferenceQueue.enqueue, []

    async def enqueue(self: InferenceQueue, *args: Any, **more: Any) -> Any:
        queued = await real(self, *args, **more)
        tries.append(queued.result)
        if len(tries) == 1:
            raise RedisAway("the answer was lost")
        return queued

    new = await sign_up()
    monkeypatch.setattr(InferenceQueue, "enqueue", enqueue)
    answer = await client.post(
        "/v1/inference", json={**BODY, "background": True}, headers=new["auth"]
    )
    assert answer.status_code == 202
    assert tries == ["QUEUED", "EXISTS"]


async def test_a_bound_key_sees_its_own_agents_calls_alone(
    client: httpx.AsyncClient, sign_up: SignUp, database_url: str
) -> None:
    new = await sign_up()
    asked = await client.post(
        "/v1/inference", json={**BODY, "background": True}, headers=new["auth"]
    )
    path = f"/v1/inferences/{asked.json()['inference_id']}"
    assert (await client.get(path, headers=new["auth"])).json()["status"] == "queued"
    registered = await client.post(
        "/v1/agents/register",
        json={"tenant_id": new["tenant_id"], "name": "second"},
        headers=new["auth"],
    )
    connection = await asyncpg.connect(database_url)
    # the tenant's key, bound to its other agent from now on
    await connection.execute(
        "UPDATE api_keys SET agent_id = $1::uuid WHERE tenant_id = $2::uuid",
        registered.json()["id"],
        new["tenant_id"],
    )
    await connection.close()
    keyring = client._transport.app.state.deps.keyring  # type: ignore[attr-defined]
    keyring.forget_all()
    for answer in (
        await client.get(path, headers=new["auth"]),
        await client.post(f"{path}/cancel", headers=new["auth"]),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
