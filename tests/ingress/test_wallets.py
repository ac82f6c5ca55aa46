"""Wallets, top-ups and the ledger."""

import csv
import io
from decimal import Decimal

import asyncpg
import httpx
import pytest

from ingress.deps import Deps
from tests.ingress.conftest import OpenApp, SignUp, leave_call

TOPUP = "/v1/wallets/topup"
UNKNOWN_ID = "01890000-0000-7000-8000-000000000000"


async def test_a_wallet_says_what_is_held(
    client: httpx.AsyncClient, sign_up: SignUp, owner_url: str
) -> None:
    new = await sign_up()
    connection = await asyncpg.connect(owner_url)
    await connection.execute(
        "UPDATE accounts SET held = 1.000000001 WHERE agent_id = $1::uuid", new["agent_id"]
    )
    await connection.close()
    wallet = await client.get(f"/v1/wallets/{new['agent_id']}", headers=new["auth"])
    assert wallet.json() == {
        "agent_id": new["agent_id"],
        "balance_usd": "5.00",
        "available_usd": "3.999999999",
        "held_usd": "1.000000001",
    }


async def test_the_table_of_wallets_is_all_of_them(
    client: httpx.AsyncClient, sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await sign_up()
    for n in range(4):
        body = {"tenant_id": new["tenant_id"], "name": f"agent {n}"}
        await client.post("/v1/agents/register", json=body, headers=new["auth"])
    page = (await client.get("/v1/wallets?limit=3", headers=new["auth"])).json()
    assert (len(page["wallets"]), page["has_more"]) == (3, True)
    whole = await client.get("/v1/wallets?format=csv&limit=3", headers=new["auth"])
    header, *rows = csv.reader(io.StringIO(whole.text))
    assert header == ["agent_id", "name", "balance_usd", "available_usd", "held_usd"]
    assert [row[0] for row in rows[:3]] == [wallet["agent_id"] for wallet in page["wallets"]]
    assert len(rows) == 5
    assert rows[4] == [new["agent_id"], new["agent_handle"], "5.00", "5.00", "0.00"]
    monkeypatch.setattr("ingress.wallets.MOST_WALLETS", 2)
    in_pages = await client.get("/v1/wallets?format=csv", headers=new["auth"])
    assert in_pages.text == whole.text


@pytest.mark.parametrize("amount", ["2.5", 2.5, "2.500000000"])
async def test_a_topup_moves_money_and_is_audited(
    client: httpx.AsyncClient, sign_up: SignUp, amount: str | float
) -> None:
    new = await sign_up()
    body = {"agent_id": new["agent_id"], "amount_usd": amount}
    answer = await client.post(TOPUP, json=body, headers=new["auth"])
    assert answer.json() == {"agent_id": new["agent_id"], "new_balance_usd": "7.50"}
    ledger = (await client.get(f"/v1/ledger/{new['agent_id']}", headers=new["auth"])).json()
    assert [entry["kind"] for entry in ledger["entries"]] == ["topup", "grant"]
    chain = (await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])).json()
    event = chain["events"][-1]["payload"]
    assert event["event_type"] == "wallet.topped_up"
    assert event["transfer_id"] == ledger["entries"][0]["id"]


@pytest.mark.parametrize("amount", ["0", "-1", "NaN", "Infinity", "1e9", "0.0000000001", None, "x"])
async def test_a_bad_amount_is_refused(
    client: httpx.AsyncClient, sign_up: SignUp, amount: str | None
) -> None:
    new = await sign_up()
    body = {"agent_id": new["agent_id"], "amount_usd": amount}
    answer = await client.post(TOPUP, json=body, headers=new["auth"])
    assert answer.status_code == 400
    assert "amount_usd" in answer.json()["message"]


async def test_nobody_puts_money_into_a_wallet_of_others(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    mine, other = await sign_up(), await sign_up()
    bodies = [{"agent_id": a, "amount_usd": 1} for a in (other["agent_id"], UNKNOWN_ID, "x")]
    answers = [await client.post(TOPUP, json=body, headers=mine["auth"]) for body in bodies]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert (await client.post(TOPUP, json=bodies[0])).status_code == 401


async def test_where_self_topup_is_off_only_the_operator_may(open_app: OpenApp) -> None:
    async with open_app(self_topup=False) as (client, deps):
        new = (await client.post("/v1/agents/signup", json={"agent_handle": "a"})).json()
        body = {"agent_id": new["agent_id"], "amount_usd": "1"}
        refused = await client.post(TOPUP, json=body, headers={"x-api-key": new["api_key"]})
        assert refused.status_code == 403
        internal = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
        assert (await client.post(TOPUP, json=body, headers=internal)).status_code == 200
        unknown = {"agent_id": UNKNOWN_ID, "amount_usd": "1"}
        assert (await client.post(TOPUP, json=unknown, headers=internal)).status_code == 404


async def test_a_topup_happens_once_for_an_idempotency_key(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new, other = await sign_up(), await sign_up()
    headers = new["auth"] | {"idempotency-key": "first"}
    body = {"agent_id": new["agent_id"], "amount_usd": "1"}
    for _ in range(2):
        answer = await client.post(TOPUP, json=body, headers=headers)
        assert answer.json()["new_balance_usd"] == "6.00"
    changed = await client.post(TOPUP, json=body | {"amount_usd": "2"}, headers=headers)
    assert (changed.status_code, changed.json()["code"]) == (409, "idempotency_conflict")
    chain = (await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])).json()
    assert [e["event_type"] for e in chain["events"]].count("wallet.topped_up") == 2
    theirs = await client.post(
        TOPUP,
        json={"agent_id": other["agent_id"], "amount_usd": "1"},
        headers=other["auth"] | {"idempotency-key": "first"},
    )
    assert theirs.json()["new_balance_usd"] == "6.00"


async def test_the_ledger_is_newest_first_and_adds_up(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    call = await leave_call(database_url, deps, new, charge="0.012500001")
    ledger = (await client.get(f"/v1/ledger/{new['agent_id']}", headers=new["auth"])).json()
    assert ledger["agent_id"] == new["agent_id"]
    usage, grant = ledger["entries"]
    assert usage["amount_usd"] == "-0.012500001"
    assert usage["inference_id"] == call.inference_id
    assert usage["balance_after_usd"] == ledger["balance_usd"] == "4.987499999"
    assert set(grant) == {
        "id",
        "agent_id",
        "amount_usd",
        "balance_after_usd",
        "kind",
        "memo",
        "inference_id",
        "created_at",
    }
    total = sum(Decimal(entry["amount_usd"]) for entry in ledger["entries"])
    assert total == Decimal(ledger["balance_usd"])


async def test_the_ledger_is_cut_to_its_limit(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    body = {"agent_id": new["agent_id"], "amount_usd": "1"}
    await client.post(TOPUP, json=body, headers=new["auth"])
    path = f"/v1/ledger/{new['agent_id']}"
    for limit, expected in ((1, ["topup"]), (100_000, ["topup", "grant"])):
        answer = await client.get(path, params={"limit": limit}, headers=new["auth"])
        assert [entry["kind"] for entry in answer.json()["entries"]] == expected
    refused = await client.get(path, params={"limit": 0}, headers=new["auth"])
    assert refused.status_code == 400
