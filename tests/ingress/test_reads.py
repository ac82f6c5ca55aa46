"""Audit chains, receipts and decisions, as their owners and everybody else see them."""

import asyncio
from typing import Any

import asyncpg
import httpx
import pytest
from ainfera._internal.http import HttpClient
from ainfera.audit import AuditChain, AuditEvent
from ainfera.receipt import Receipt
from ainfera.verify import verify_chain

from ingress.deps import Deps
from shared.domain.routing import replay
from tests.ingress.conftest import BASE_URL, SignUp, leave_call

UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"


async def events(client: httpx.AsyncClient, new: dict[str, Any], **params: Any) -> list[Any]:
    answer = await client.get(f"/v1/audit/{new['agent_id']}", params=params, headers=new["auth"])
    assert answer.status_code == 200
    assert answer.json()["agent_id"] == new["agent_id"]
    found: list[Any] = answer.json()["events"]
    return found


async def verified(client: httpx.AsyncClient, agent_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(f"/v1/audit/{agent_id}/verify")).json()
    return answer


async def test_the_clients_own_check_accepts_a_chain(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    for _ in range(3):
        await leave_call(database_url, deps, new)
    found = [AuditEvent.model_validate(event) for event in await events(client, new)]
    assert verify_chain(found)
    assert [event.seq for event in found] == [1, 2, 3, 4, 5]
    assert found[0].previous_hash is None
    for event in found:
        assert event.payload["agent_id"] == new["agent_id"]
        assert event.payload["event_type"] == event.event_type
        assert event.payload["seq"] == event.seq
    assert await verified(client, new["agent_id"]) == {
        "agent_id": new["agent_id"],
        "event_count": 5,
        "valid": True,
        "failure_seq": None,
        "failure_reason": None,
    }


async def test_a_name_beyond_ascii_is_hashed_as_the_client_hashes_it(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "Élan \u2028 🌙"}
    agent = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()
    found = await events(client, new | {"agent_id": agent["id"]})
    assert found[0]["payload"]["name"] == body["name"]
    assert verify_chain([AuditEvent.model_validate(event) for event in found])


async def test_pages_begin_behind_since_seq(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    assert [e["seq"] for e in await events(client, new, since_seq=0)] == [1, 2]
    assert [e["seq"] for e in await events(client, new, since_seq=1)] == [2]
    assert await events(client, new, since_seq=2, limit=500) == []
    assert [e["seq"] for e in await events(client, new, limit=1)] == [1]
    path = f"/v1/audit/{new['agent_id']}"
    for params in ({"since_seq": -1}, {"limit": 0}, {"limit": "x"}, {"since_seq": 2**70}):
        refused = await client.get(path, params=params, headers=new["auth"])
        assert refused.status_code == 400


async def test_a_page_has_at_most_500_events_and_verification_takes_them_all(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, owner_url: str
) -> None:
    new = await sign_up()
    connection = await asyncpg.connect(owner_url)
    await connection.execute(
        """SELECT append_audit(jsonb_agg(jsonb_build_object(
             'agent_id', $1::text, 'tenant_id', $2::text, 'event', jsonb_build_array(
               'receipt.created', '{"agent_id":"' || $1 || '","created_at":"',
               '","event_type":"receipt.created","seq":', '}'))))
           FROM generate_series(1, 1100)""",
        new["agent_id"],
        new["tenant_id"],
    )
    await connection.close()
    first = await events(client, new, limit=5000)
    assert len(first) == 500
    then = await events(client, new, limit=500, since_seq=first[-1]["seq"])
    assert [event["seq"] for event in then] == list(range(501, 1001))
    found = await verified(client, new["agent_id"])
    assert (found["event_count"], found["valid"]) == (1102, True)


@pytest.fixture
def tampering(superuser_url: str) -> Any:
    """Edits the books as only somebody with the server in his hands can."""

    async def tamper(statement: str, *values: Any) -> None:
        connection = await asyncpg.connect(superuser_url)
        async with connection.transaction():
            await connection.execute("ALTER TABLE audit_events DISABLE TRIGGER append_only")
            await connection.execute(statement, *values)
            await connection.execute("ALTER TABLE audit_events ENABLE ALWAYS TRIGGER append_only")
        await connection.close()

    return tamper


@pytest.mark.parametrize(
    ("statement", "failure_seq", "reason"),
    [
        (
            "UPDATE audit_events SET payload = replace(payload, '5.00', '9.00')"
            " WHERE agent_id = $1::uuid AND seq = 2",
            2,
            "event_hash",
        ),
        (
            "UPDATE audit_events SET event_type = 'key.revoked'"
            " WHERE agent_id = $1::uuid AND seq = 1",
            1,
            "event_type",
        ),
        ("DELETE FROM audit_events WHERE agent_id = $1::uuid AND seq = 1", 2, "gap"),
        ("DELETE FROM audit_events WHERE agent_id = $1::uuid AND seq = 3", 3, "head"),
        ("DELETE FROM audit_events WHERE agent_id = $1::uuid", 1, "head"),
    ],
)
async def test_tampering_shows(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    deps: Deps,
    database_url: str,
    tampering: Any,
    statement: str,
    failure_seq: int,
    reason: str,
) -> None:
    new = await sign_up()
    await leave_call(database_url, deps, new)
    await tampering(statement, new["agent_id"])
    found = await verified(client, new["agent_id"])
    assert found["valid"] is False
    assert found["failure_seq"] == failure_seq
    assert reason in found["failure_reason"]


async def test_what_was_found_to_hold_is_not_believed_for_long(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    deps: Deps,
    database_url: str,
    tampering: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tail at once, and what was changed behind it once the whole is looked at again."""
    new = await sign_up()
    await leave_call(database_url, deps, new)
    assert (await verified(client, new["agent_id"]))["valid"]
    await leave_call(database_url, deps, new)
    changed = "UPDATE audit_events SET payload = payload || ' ' WHERE agent_id = $1::uuid AND seq ="
    await tampering(f"{changed} 2", new["agent_id"])
    assert (await verified(client, new["agent_id"]))["valid"]
    with monkeypatch.context() as later:
        later.setattr("ingress.chain_checks.BELIEVED_S", -1.0)
        found = await verified(client, new["agent_id"])
        assert (found["valid"], found["failure_seq"]) == (False, 2)
    # a chain that was found broken is not believed in at all
    assert not (await verified(client, new["agent_id"]))["valid"]


async def test_verification_is_open_and_tells_nothing_of_unknown_ids(
    client: httpx.AsyncClient,
) -> None:
    answers = [await client.get(f"/v1/audit/{a}/verify") for a in (UNKNOWN_ID, "no-uuid")]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1


async def test_public_events_hold_no_ids_and_no_amounts(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up(agent_handle="public-one", owner_handle="owner-one")
    answer = await client.get("/v1/audit/public", params={"limit": 2})
    newest = answer.json()["events"]
    assert [event["seq"] for event in newest] == [2, 1]
    assert set(newest[0]) == {
        "seq",
        "event_type",
        "owner_handle",
        "agent_name",
        "canonical_uri",
        "event_hash",
        "created_at",
    }
    assert newest[0]["owner_handle"] == "owner-one"
    assert newest[0]["canonical_uri"] == "ainfera.ai/owner-one/public-one"
    for secret in (new["agent_id"], new["tenant_id"], "5.00"):
        assert secret not in answer.text


async def test_an_owner_without_a_name_gets_one_that_tells_no_id(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    assert new["owner_handle"].startswith("anon-")
    suffix = new["owner_handle"].removeprefix("anon-")
    assert suffix not in new["tenant_id"].replace("-", "")


async def test_a_receipt_is_read_by_its_owner_alone(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new, other = await sign_up(), await sign_up()
    left = await leave_call(database_url, deps, new, charge="0.000000125")
    path = f"/v1/receipts/{left.receipt_id}"
    receipt = (await client.get(path, headers=new["auth"])).json()
    assert receipt["receipt_id"] == left.receipt_id
    assert receipt["inference_id"] == left.inference_id
    assert receipt["audit_url"] == f"{BASE_URL}/v1/audit/{new['agent_id']}/verify"
    assert receipt["cost_usd"] == "0.000000125"
    assert (receipt["input_tokens"], receipt["output_tokens"]) == (10, 20)
    assert (receipt["model_used"], receipt["provider"]) == ("gpt-5.5", "openai")
    assert Receipt.model_validate(receipt).cost_usd == 1.25e-07
    answers = [
        await client.get(f"/v1/receipts/{receipt_id}", headers=auth)
        for receipt_id, auth in (
            (left.receipt_id, other["auth"]),
            (left.inference_id, new["auth"]),
            (UNKNOWN_ID, new["auth"]),
            ("no-uuid", new["auth"]),
        )
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1


async def test_a_decision_can_be_read_and_run_again(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    path = f"/v1/inferences/{left.inference_id}/decision"
    decision = (await client.get(path, headers=new["auth"])).json()
    assert decision["inference_id"] == left.inference_id
    assert decision["cost_actual"] == "0.012500000"
    assert decision["outcome_status"] == "succeeded"
    assert len(decision["candidates"]) == len(deps.catalog.candidates)
    again = replay(decision["inputs"])
    assert again.chosen is not None
    assert again.chosen.slug == decision["chosen_model_slug"]
    assert again.ruleset_hash == decision["ruleset_hash"]


async def test_a_decision_that_lost_its_reasons_still_tells_its_outcome(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new, documented=False)
    path = f"/v1/inferences/{left.inference_id}/decision"
    decision = (await client.get(path, headers=new["auth"])).json()
    assert decision["outcome_status"] == "expired"
    assert decision["inputs"] is None


async def test_no_decision_of_others_of_nobody_or_of_a_pinned_call(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new, other = await sign_up(), await sign_up()
    routed = await leave_call(database_url, deps, new)
    pinned = await leave_call(database_url, deps, new, routed=False)
    answers = [
        await client.get(f"/v1/inferences/{inference_id}/decision", headers=auth)
        for inference_id, auth in (
            (routed.inference_id, other["auth"]),
            (pinned.inference_id, new["auth"]),
            (UNKNOWN_ID, new["auth"]),
            ("no-uuid", new["auth"]),
        )
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1


async def test_the_real_client_walks_and_verifies_a_chain_of_several_pages(
    client: httpx.AsyncClient, sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await sign_up()
    monkeypatch.setattr("ainfera.audit._PAGE_SIZE", 1)
    loop = asyncio.get_running_loop()

    class Bridge(HttpClient):
        """The client's own class, its socket replaced by the application in this process."""

        def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
            options.pop("timeout", None)
            sent = client.request(method, path, headers=new["auth"], **options)
            answer = asyncio.run_coroutine_threadsafe(sent, loop).result(30)
            assert answer.status_code == 200
            body: dict[str, Any] = answer.json()
            return body

    chain = AuditChain(agent_id=new["agent_id"])
    chain._http = Bridge(BASE_URL, new["api_key"], 30)
    assert await asyncio.to_thread(chain.verify)
    assert [event.seq for event in await asyncio.to_thread(lambda: list(chain.events()))] == [1, 2]
    assert (await asyncio.to_thread(chain.verify_remote)).valid
