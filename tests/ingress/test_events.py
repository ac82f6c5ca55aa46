"""Whose events may be read: from the replay, from the queue, from the database."""

from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from ingress.deps import Deps
from shared.db import APP_ROLE, connect
from shared.domain.inference import Dialect
from shared.errors import ProviderError
from shared.ids import mint_id
from shared.keys import hash_api_key, mint_api_key, request_sealer
from shared.queue import Envelope
from shared.replay_stream import ReplayLimits, ReplayWriter
from shared.stream import Record, RecordKind, pack_failure
from tests.ingress.call_cases import agent_of, leave
from tests.ingress.conftest import SignUp, leave_call
from tests.workers.ledger_cases import call
from tests.workers.letter_cases import burial

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORDS = b'event: delta\ndata: {"text":"Hi"}\nid: 1\n\nevent: completed\ndata: {}\nid: 2\n\n'


def envelope_of(agent: dict[str, Any]) -> Envelope:
    caller = {"tenant_id": agent["tenant_id"], "agent_id": agent["agent_id"], "policy": {}}
    return Envelope(mint_id(), mint_id(), Dialect.NATIVE, "nobody", caller, 1.0, "trace", b"{}")


async def keep(deps: Deps, envelope: Envelope, *said: tuple[RecordKind, bytes]) -> None:
    writer = ReplayWriter(envelope, 1, ReplayLimits())
    id_ = envelope.inference_id.bytes
    records = [Record(id_, 1, kind, seq, body) for seq, (kind, body) in enumerate(said)]
    writer.gather([record.pack() for record in records], records[-1].seq)
    for command in writer.take(0.0):
        await deps.redis.execute_command(*command)  # type: ignore[no-untyped-call]


OPENING = b'{"model":"gpt-5.5","provider":"openai","simulated":false,"ignored":[]}'
ANSWER = (
    (RecordKind.OPEN, OPENING),
    (RecordKind.DATA, b'event: delta\ndata: {"text":"Hi"}\n\n'),
    (RecordKind.DONE, b"event: completed\ndata: {}\n\n"),
)


async def events(
    client: httpx.AsyncClient, inference_id: UUID, headers: dict[str, str]
) -> httpx.Response:
    return await client.get(f"/v1/inferences/{inference_id}/events", headers=headers)


async def bound_key(database_url: str, agent: dict[str, Any], to: str) -> dict[str, str]:
    """The headers of a key of this tenant that is bound to one agent."""
    key = mint_api_key()
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO api_keys (id, tenant_id, agent_id, key_hash) VALUES ($1, $2, $3, $4)",
        mint_id(),
        UUID(agent["tenant_id"]),
        UUID(to),
        hash_api_key(key),
    )
    await connection.close()
    return {"authorization": f"Bearer {key}"}


async def sibling_of(client: httpx.AsyncClient, agent: dict[str, Any]) -> str:
    body = {"tenant_id": agent["tenant_id"], "name": "sibling"}
    answer = await client.post("/v1/agents/register", json=body, headers=agent["auth"])
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def test_they_are_read_with_the_headers_of_the_call(
    client: httpx.AsyncClient, deps: Deps, sign_up: SignUp
) -> None:
    agent = await sign_up()
    envelope = envelope_of(agent)
    await keep(deps, envelope, *ANSWER)
    answer = await events(client, envelope.inference_id, agent["auth"])
    assert (answer.status_code, answer.content) == (200, WORDS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-ainfera-receipt-id"] == str(envelope.receipt_id)
    assert answer.headers["x-ainfera-model"] == "gpt-5.5"
    assert answer.headers["x-ainfera-stream-mode"] == "native"


@pytest.mark.parametrize("kept_in", ["replay", "queue", "database"])
async def test_another_tenant_and_another_agent_s_key_find_nothing(
    client: httpx.AsyncClient,
    deps: Deps,
    sign_up: SignUp,
    database_url: str,
    kept_in: str,
) -> None:
    agent, stranger = await sign_up(), await sign_up(agent_handle="stranger")
    envelope = envelope_of(agent)
    inference_id = envelope.inference_id
    if kept_in == "replay":
        await keep(deps, envelope, *ANSWER)
    elif kept_in == "queue":
        await deps.queue.enqueue(envelope)
    else:
        left = await leave_call(database_url, deps, agent)
        inference_id = UUID(left.inference_id)
        own = await events(client, inference_id, agent["auth"])
        assert own.status_code == 410
        assert own.json()["state"] == "succeeded"
        assert own.json()["receipt_id"] == left.receipt_id
    unknown = await events(client, mint_id(), agent["auth"])
    assert unknown.status_code == 404
    sibling = await bound_key(database_url, agent, await sibling_of(client, agent))
    for headers in (stranger["auth"], sibling):
        hidden = await events(client, inference_id, headers)
        assert hidden.status_code == 404
        assert hidden.content == unknown.content
    if kept_in == "replay":
        mine = await bound_key(database_url, agent, agent["agent_id"])
        assert (await events(client, inference_id, mine)).status_code == 200


@pytest.mark.parametrize(
    ("left", "status"),
    [
        ({}, "succeeded"),
        ({"status": "cancelled"}, "cancelled"),
        ({"status": "failed_midstream"}, "failed"),
        ({"status": "rejected_funds", "refused": True}, "failed"),
        ({"status": "expired", "refused": True}, "expired"),
        ("dead", "dead"),
    ],
)
@pytest.mark.parametrize("routed", [True, False])
async def test_how_a_call_ended_is_told_in_one_word_everywhere(
    client: httpx.AsyncClient,
    deps: Deps,
    sign_up: SignUp,
    left: Any,
    status: str,
    routed: bool,
) -> None:
    new = await sign_up()
    connection = await connect(deps.settings.database_url, APP_ROLE, "test")
    if left == "dead":
        sealer = request_sealer(deps.settings.master_key.get_secret_value())
        inference = str(mint_id())
        buried = burial(agent_of(new), inference, 4, sealer, routed=routed)
        await call(connection, "bury_inferences", buried)
    else:
        inference = await leave(connection, agent_of(new), "0.5", routed=routed, **left)
    await connection.close()
    told = await client.get(f"/v1/inferences/{inference}", headers=new["auth"])
    assert told.json()["status"] == status
    gone = await events(client, UUID(inference), new["auth"])
    assert (gone.status_code, gone.json()["state"]) == (410, status)
    assert status == "dead" or f"over: {status}" in gone.json()["message"]


async def test_a_failed_call_is_one_error_event(
    client: httpx.AsyncClient, deps: Deps, sign_up: SignUp
) -> None:
    """The call was answered with a status; reading its events again worked."""
    agent = await sign_up()
    envelope = envelope_of(agent)
    failure = ProviderError("It broke.", provider="openai", upstream_status=500).failure()
    await keep(deps, envelope, (RecordKind.FAIL, pack_failure(failure)))
    answer = await events(client, envelope.inference_id, agent["auth"])
    assert answer.status_code == 200
    assert answer.text.startswith("event: error\n")
    assert '"upstream_status":500' in answer.text
    assert answer.text.endswith("\nid: 0\n\n")
    again = {**agent["auth"], "last-event-id": "0"}
    assert (await events(client, envelope.inference_id, again)).status_code == 204


async def test_no_key_no_events(client: httpx.AsyncClient, deps: Deps, sign_up: SignUp) -> None:
    envelope = envelope_of(await sign_up())
    await keep(deps, envelope, *ANSWER)
    assert (await events(client, envelope.inference_id, {})).status_code == 401
