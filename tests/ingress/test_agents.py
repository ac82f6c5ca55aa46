"""Signup, registration, cards and spend policies."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import httpx
import pytest
from joserfc import jws
from joserfc.jwk import KeySet, OKPKey

from ingress.deps import Deps
from shared.keys import hash_api_key, mint_agent_key, mint_api_key, sign_card
from tests.ingress.conftest import BASE_URL, OpenApp, SignUp

UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"


async def test_signup_leaves_a_tenant_an_agent_a_wallet_a_key_and_a_grant(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    new = await sign_up(
        agent_handle="melian",
        owner_handle="doriath",
        owner_source="web",
        per_call_cap_usd="1.5",
        daily_cap_usd=20,
        metadata={"role": "queen"},
    )
    assert set(new) - {"auth"} == {
        "agent_id",
        "agent_handle",
        "tenant_id",
        "owner_handle",
        "canonical_uri",
        "did_web",
        "api_key",
        "agent_card_jws",
        "free_tier_inferences_remaining",
    }
    assert new["canonical_uri"] == "ainfera.ai/doriath/melian"
    assert new["did_web"] == "did:web:ainfera.ai:doriath:melian"
    assert new["free_tier_inferences_remaining"] == 100

    agent = (await client.get(f"/v1/agents/{new['agent_id']}", headers=new["auth"])).json()
    assert agent["name"] == "melian"
    assert agent["status"] == "active"
    assert agent["spend_policy"] == {"per_call_cap_usd": "1.50", "daily_cap_usd": "20.00"}
    wallet = (await client.get(f"/v1/wallets/{new['agent_id']}", headers=new["auth"])).json()
    assert Decimal(wallet["balance_usd"]) == 5

    connection = await asyncpg.connect(owner_url)
    row = await connection.fetchrow(
        """SELECT k.key_hash, w.grant_inferences_left, w.grant_expires_at - now() AS lasts,
                  a.metadata::text AS labels
             FROM api_keys k JOIN agents a ON a.tenant_id = k.tenant_id
             JOIN accounts w ON w.agent_id = a.id WHERE k.tenant_id = $1::uuid""",
        new["tenant_id"],
    )
    await connection.close()
    assert row is not None
    assert row["key_hash"] == hash_api_key(new["api_key"])
    assert row["grant_inferences_left"] == 100
    assert row["lasts"].days == 89
    assert "queen" in row["labels"]


async def test_signup_begins_an_audit_chain(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    chain = (await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])).json()
    kinds = [event["event_type"] for event in chain["events"]]
    assert kinds == ["agent.registered", "wallet.topped_up"]
    assert chain["events"][1]["payload"]["amount_usd"] == "5.00"


async def test_the_key_is_stored_nowhere(sign_up: SignUp, superuser_url: str) -> None:
    new = await sign_up()
    connection = await asyncpg.connect(superuser_url)
    tables = await connection.fetch(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    )
    for table in tables:
        rows = await connection.fetch(f'SELECT t::text AS row FROM "{table["table_name"]}" t')
        assert not any(new["api_key"] in row["row"] for row in rows)
    await connection.close()


async def test_a_private_key_is_not_readable_in_the_database(
    sign_up: SignUp, owner_url: str
) -> None:
    new = await sign_up()
    connection = await asyncpg.connect(owner_url)
    sealed = await connection.fetchval(
        "SELECT private_key_sealed FROM agents WHERE id = $1::uuid", new["agent_id"]
    )
    await connection.close()
    assert b"PRIVATE KEY" not in sealed


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "agent_handle"),
        ({"agent_handle": ""}, "agent_handle"),
        ({"agent_handle": "a/b"}, "agent_handle"),
        ({"agent_handle": "a", "owner_handle": "x:y"}, "owner_handle"),
        ({"agent_handle": "a", "per_call_cap_usd": "0.0009"}, "per_call_cap_usd"),
        ({"agent_handle": "a", "per_call_cap_usd": 100.5}, "per_call_cap_usd"),
        ({"agent_handle": "a", "daily_cap_usd": "10000.01"}, "daily_cap_usd"),
        ({"agent_handle": "a", "daily_cap_usd": "NaN"}, "daily_cap_usd"),
        ({"agent_handle": "a", "owner_contact": "a\x00b"}, "owner_contact"),
        ({"agent_handle": "a", "metadata": {"a": "\x00"}}, "metadata"),
        ({"agent_handle": "a", "metadata": {"a": "b" * 20_000}}, "metadata"),
        ({"agent_handle": "a", "metadata": {"a": 2**80}}, "metadata"),
    ],
)
async def test_a_bad_signup_names_the_field(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await client.post("/v1/agents/signup", json=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_request"
    assert field in answer.json()["message"]


async def test_a_lone_surrogate_is_the_clients_fault(client: httpx.AsyncClient) -> None:
    for body in (
        rb'{"agent_handle": "a", "owner_contact": "\ud800"}',
        rb'{"agent_handle": "a", "metadata": {"k": "\ud800"}}',
    ):
        answer = await client.post(
            "/v1/agents/signup", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400


async def test_signup_mode_decides_who_comes_in(open_app: OpenApp) -> None:
    body = {"agent_handle": "varda"}
    async with open_app(signup_mode="closed") as (client, _):
        assert (await client.post("/v1/agents/signup", json=body)).status_code == 403
    async with open_app(signup_mode="internal") as (client, deps):
        refused = await client.post("/v1/agents/signup", json=body)
        assert refused.status_code == 401
        assert refused.json()["code"] == "invalid_internal_key"
        internal = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
        admitted = await client.post("/v1/agents/signup", json=body, headers=internal)
        assert admitted.status_code == 200


async def test_without_a_grant_there_is_no_money_and_no_free_call(open_app: OpenApp) -> None:
    async with open_app(preview_grant_usd="0") as (client, _):
        new = (await client.post("/v1/agents/signup", json={"agent_handle": "a"})).json()
        auth = {"x-api-key": new["api_key"]}
        wallet = (await client.get(f"/v1/wallets/{new['agent_id']}", headers=auth)).json()
    assert new["free_tier_inferences_remaining"] == 0
    assert Decimal(wallet["balance_usd"]) == 0


async def test_register_adds_an_agent_with_an_empty_wallet(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up(owner_handle="valinor")
    body = {"tenant_id": new["tenant_id"], "name": "Second Agent"}
    answer = await client.post("/v1/agents/register", json=body, headers=new["auth"])
    assert answer.status_code == 200
    agent = answer.json()
    assert agent["name"] == "Second Agent"
    assert agent["canonical_uri"] == "ainfera.ai/valinor/second-agent"
    assert agent["created_at"].endswith("Z")
    wallet = (await client.get(f"/v1/wallets/{agent['id']}", headers=new["auth"])).json()
    assert Decimal(wallet["balance_usd"]) == 0
    verified = (await client.get(f"/v1/audit/{agent['id']}/verify")).json()
    assert (verified["event_count"], verified["valid"]) == (1, True)


async def test_a_handle_of_an_owner_is_given_once(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    first = await sign_up(agent_handle="luthien", owner_handle="menegroth")
    wish = {"agent_handle": "luthien", "owner_handle": "menegroth"}
    refused = await client.post("/v1/agents/signup", json=wish)
    assert refused.status_code == 409
    body = refused.json()
    assert body["code"] == "handle_taken"
    assert "ainfera.ai/menegroth/luthien" in body["message"]
    assert "agent_handle" in body["message"]
    connection = await asyncpg.connect(owner_url)
    left = await connection.fetchval(
        "SELECT count(*) FROM tenants WHERE owner_handle = 'menegroth'"
    )
    await connection.close()
    assert left == 1  # nothing is left of the one that was refused

    body = {"tenant_id": first["tenant_id"], "name": "Luthien"}
    refused = await client.post("/v1/agents/register", json=body, headers=first["auth"])
    assert (refused.status_code, refused.json()["code"]) == (409, "handle_taken")
    assert "name" in refused.json()["message"]
    again = await sign_up(agent_handle="beren", owner_handle="menegroth")
    assert again["canonical_uri"] == "ainfera.ai/menegroth/beren"


async def test_of_two_at_once_one_gets_the_handle(client: httpx.AsyncClient) -> None:
    wish = {"agent_handle": "silmaril", "owner_handle": "feanor"}
    answers = await asyncio.gather(*(client.post("/v1/agents/signup", json=wish) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]


async def test_without_an_owner_a_handle_is_never_taken(sign_up: SignUp) -> None:
    uris = [(await sign_up(agent_handle="same"))["canonical_uri"] for _ in range(3)]
    assert len(set(uris)) == 3


async def test_agents_of_others_and_unknown_ones_look_the_same(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    mine, other = await sign_up(), await sign_up()
    paths = ["/v1/agents/{}", "/v1/agents/{}/card", "/v1/wallets/{}", "/v1/ledger/{}"]
    for path in [*paths, "/v1/audit/{}"]:
        answers = [
            await client.get(path.format(agent_id), headers=mine["auth"])
            for agent_id in (other["agent_id"], UNKNOWN_ID, "no-uuid")
        ]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.content for answer in answers}) == 1
    answers = [
        await client.post(
            "/v1/agents/register", json={"tenant_id": tenant, "name": "a"}, headers=mine["auth"]
        )
        for tenant in (other["tenant_id"], UNKNOWN_ID, "no-uuid")
    ]
    assert {answer.status_code for answer in answers} == {404}


async def test_a_card_verifies_with_the_agents_key_and_with_the_key_set(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    path = f"/v1/agents/{new['agent_id']}"
    agent = (await client.get(path, headers=new["auth"])).json()
    for method in ("GET", "POST"):
        card = (await client.request(method, f"{path}/card", headers=new["auth"])).json()
        assert set(card) == {"jws", "payload", "kid"}
        assert card["payload"]["agent_id"] == new["agent_id"]
        assert card["payload"]["handle"] == "varda"
        assert card["payload"]["issued_at"]
        key = OKPKey.import_key(agent["public_key_ed25519"])
        found = jws.deserialize_compact(card["jws"], key, algorithms=["EdDSA"])
        assert found.protected == {"alg": "EdDSA", "kid": card["kid"]}
    uri = card["payload"]["jwks_uri"]
    assert uri.startswith(BASE_URL)
    for address in (uri, "/.well-known/jwks.json"):
        keys = KeySet.import_key_set((await client.get(address)).json())
        jws.deserialize_compact(card["jws"], keys, algorithms=["EdDSA"])
        jws.deserialize_compact(new["agent_card_jws"], keys, algorithms=["EdDSA"])


async def test_cards_are_verified_for_everybody(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new, other = await sign_up(), await sign_up()
    verified = (
        await client.post("/v1/agents/cards/verify", json={"jws": new["agent_card_jws"]})
    ).json()
    assert verified["valid"] is True
    assert verified["payload"]["agent_id"] == new["agent_id"]
    assert verified["kid"]

    forged, _ = sign_card({"agent_id": new["agent_id"]}, mint_agent_key().private_pem)
    stranger, _ = sign_card({"agent_id": UNKNOWN_ID}, mint_agent_key().private_pem)
    head, payload, _ = new["agent_card_jws"].split(".")
    swapped = ".".join((head, payload, other["agent_card_jws"].split(".")[2]))
    reasons = set()
    for token in (forged, stranger, swapped):
        answer = (await client.post("/v1/agents/cards/verify", json={"jws": token})).json()
        assert answer["valid"] is False
        assert answer["payload"] is None
        reasons.add(answer["reason"])
    assert len(reasons) == 1
    nameless, _ = sign_card({"sub": 1}, mint_agent_key().private_pem)
    for token in ("", "a.b.c", "é.é.é", nameless):
        answer = await client.post("/v1/agents/cards/verify", json={"jws": token})
        assert answer.status_code == 200
        assert answer.json()["valid"] is False


async def test_a_spend_policy_changes_field_by_field_and_is_audited(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up(per_call_cap_usd="2")
    path = f"/v1/agents/{new['agent_id']}/spend-policy"

    async def change(**body: Any) -> httpx.Response:
        return await client.patch(path, json=body, headers=new["auth"])

    changed = await change(daily_cap_usd=0.01)
    answer = changed.json()
    today = answer["drain_proof"].pop("day")
    assert datetime.now(UTC).date() - date.fromisoformat(today) <= timedelta(days=1)
    assert answer == {
        "spend_policy": {"per_call_cap_usd": "2.00", "daily_cap_usd": "0.01"},
        "drain_proof_status": "proved",
        "drain_proof": {
            "settled_usd": "0.00",
            "held_usd": "0.00",
            "available_usd": "0.01",
            "largest_hold_usd": "0.00",
        },
    }
    lifted = (await change(per_call_cap_usd=None, daily_cap_usd=None)).json()
    assert lifted["spend_policy"] == {"per_call_cap_usd": None, "daily_cap_usd": None}
    assert lifted["drain_proof_status"] == "no_daily_cap"
    for body in ({}, {"per_call_cap_usd": "0"}, {"daily_cap_usd": 10001}):
        assert (await change(**body)).status_code == 400

    chain = (await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])).json()
    changes = [e["payload"] for e in chain["events"] if e["event_type"] == "spend_policy.changed"]
    assert [c["after"]["daily_cap_usd"] for c in changes] == ["0.01", None]
    assert changes[0]["before"] == {"per_call_cap_usd": "2.00", "daily_cap_usd": None}


async def test_a_key_bound_to_an_agent_sees_that_agent_and_changes_no_policy(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, owner_url: str
) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "sibling"}
    sibling = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()
    key = mint_api_key()
    connection = await asyncpg.connect(owner_url)
    await connection.execute(
        "INSERT INTO api_keys (id, tenant_id, agent_id, key_hash) "
        "VALUES (gen_random_uuid(), $1::uuid, $2::uuid, $3)",
        new["tenant_id"],
        sibling["id"],
        hash_api_key(key),
    )
    await connection.close()
    bound = {"x-api-key": key}
    assert (await client.get(f"/v1/agents/{sibling['id']}", headers=bound)).status_code == 200
    for path in ("agents", "wallets", "ledger", "audit"):
        hidden = await client.get(f"/v1/{path}/{new['agent_id']}", headers=bound)
        assert hidden.status_code == 404
    policy = f"/v1/agents/{sibling['id']}/spend-policy"
    refused = await client.patch(policy, json={"daily_cap_usd": 1}, headers=bound)
    assert refused.status_code == 403
    refused = await client.post("/v1/agents/register", json=body, headers=bound)
    assert refused.status_code == 403
