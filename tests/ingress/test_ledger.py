"""The ledger by pages and as one table: nothing twice, nothing missing, nothing of others."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ingress import ledger
from shared.db import Connection, connect
from tests.ingress.call_cases import agent_of, leave, leave_at
from tests.ingress.conftest import SignUp


@pytest_asyncio.fixture(loop_scope="session")
async def owner(owner_url: str) -> AsyncIterator[Connection]:
    connection = await connect(owner_url, None, "test")
    yield connection
    await connection.close()


async def many(owner: Connection, new: dict[str, Any], count: int = 7) -> None:
    """Entries of which some bear the very same moment."""
    at = datetime.now(UTC) - timedelta(days=1)
    for n in range(count):
        await leave_at(owner, agent_of(new), at - timedelta(hours=n // 3), "0.001")


async def page(client: httpx.AsyncClient, new: dict[str, Any], **query: Any) -> Any:
    path = f"/v1/ledger/{new['agent_id']}"
    answer = await client.get(path, headers=new["auth"], params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_pages_are_the_whole_without_a_seam(
    client: httpx.AsyncClient, sign_up: SignUp, owner: Connection
) -> None:
    new = await sign_up()
    await many(owner, new)
    whole = await page(client, new)
    assert (len(whole["entries"]), whole["has_more"], whole["next_cursor"]) == (8, False, None)
    for size in (1, 2, 3, 7):
        found: list[Any] = []
        cursor: dict[str, Any] = {}
        while True:
            told = await page(client, new, limit=size, **cursor)
            found += told["entries"]
            if not told["has_more"]:
                break
            assert len(told["entries"]) == size
            cursor = {"before": told["next_cursor"]}
        assert found == whole["entries"]


async def test_entries_of_others_are_no_place_to_go_on_from(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    mine, other = await sign_up(), await sign_up()
    theirs = (await page(client, other))["entries"][0]["id"]
    path, headers = f"/v1/ledger/{mine['agent_id']}", mine["auth"]
    unknown = "01890000-0000-7000-8000-000000000000"
    answers = [
        await client.get(path, headers=headers, params={"before": before, **more})
        for before in (theirs, unknown)
        for more in ({}, {"format": "csv"})
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1


async def test_filters(client: httpx.AsyncClient, sign_up: SignUp, owner: Connection) -> None:
    new = await sign_up()
    at = datetime.now(UTC) - timedelta(days=2)
    for n in range(3):
        await leave_at(owner, agent_of(new), at + timedelta(hours=n), "0.001")
    kinds = {entry["kind"] for entry in (await page(client, new, kind="usage"))["entries"]}
    assert kinds == {"usage"}
    both = await page(client, new, kind=["grant", "usage"])
    assert len(both["entries"]) == 4
    until = (at + timedelta(hours=2)).isoformat()
    within = await page(client, new, since=(at + timedelta(hours=1)).isoformat(), until=until)
    assert len(within["entries"]) == 1  # the first is within, the last is not
    without_zone = (at + timedelta(hours=1)).replace(tzinfo=None).isoformat()
    assert len((await page(client, new, since=without_zone, until=until))["entries"]) == 1
    nowhere = {"since": "0001-01-01T00:00:00+14:00"}, {"until": "9999-12-31T23:59:59-14:00"}
    for wrong in ({"kind": "gift"}, {"since": "yesterday"}, {"before": "x"}, *nowhere):
        path = f"/v1/ledger/{new['agent_id']}"
        refused = await client.get(path, headers=new["auth"], params=wrong)
        assert refused.status_code == 400
        assert next(iter(wrong)) in refused.json()["message"]


async def test_the_table_is_all_of_it_page_by_page(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    owner: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read in pages that entries of one moment straddle; the limit of JSON is none of its own."""
    monkeypatch.setattr(ledger, "EXPORTED_AT_ONCE", 4)
    new = await sign_up()
    await many(owner, new)
    whole = await page(client, new)
    path = f"/v1/ledger/{new['agent_id']}"
    answer = await client.get(path, headers=new["auth"], params={"format": "csv", "limit": 1})
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["id"] for row in rows] == [entry["id"] for entry in whole["entries"]]
    total = sum(Decimal(row["amount_usd"]) for row in rows)
    assert total == 5 - Decimal("0.007")
    assert {row["memo"] for row in rows} == {"", "preview grant"}


async def test_memos_of_clients_are_no_formulas(
    client: httpx.AsyncClient, sign_up: SignUp, owner: Connection
) -> None:
    new = await sign_up()
    inference = await leave(owner, agent_of(new), "0.5")
    await owner.execute(
        """INSERT INTO transfers (tenant_id, debit_account, credit_account, amount, kind, memo)
           SELECT tenant_id, '00000000-0000-0000-0000-000000000003', id, 1, 'topup', '=1+1'
             FROM accounts WHERE agent_id = $1::uuid""",
        new["agent_id"],
    )
    path = f"/v1/ledger/{new['agent_id']}?format=csv"
    answer = await client.get(path, headers=new["auth"])
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert rows[0]["memo"] == "'=1+1"
    assert (rows[1]["amount_usd"], rows[1]["inference_id"]) == ("-0.500000000", inference)


async def test_wallets_by_pages(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new, _ = await sign_up(), await sign_up()
    for name in ("second", "=third"):
        body = {"tenant_id": new["tenant_id"], "name": name}
        await client.post("/v1/agents/register", json=body, headers=new["auth"])
    whole = (await client.get("/v1/wallets", headers=new["auth"])).json()
    assert [w["name"] for w in whole["wallets"]] == ["=third", "second", "varda"]
    assert (whole["has_more"], whole["next_cursor"]) == (False, None)
    first = (await client.get("/v1/wallets?limit=2", headers=new["auth"])).json()
    assert (first["wallets"], first["has_more"]) == (whole["wallets"][:2], True)
    path = f"/v1/wallets?before={first['next_cursor']}"
    assert (await client.get(path, headers=new["auth"])).json()["wallets"] == whole["wallets"][2:]
    table = await client.get("/v1/wallets?format=csv", headers=new["auth"])
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [row["name"] for row in rows] == ["'=third", "second", "varda"]
    assert rows[2]["balance_usd"] == "5.00"
