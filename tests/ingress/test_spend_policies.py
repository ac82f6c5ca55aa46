"""Caps changed while calls are in flight; receipts by their rule; what operators do to money."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pytest
from sqlalchemy import text
from typer.testing import Result

from ingress.deps import Deps
from shared.db import APP_ROLE, connect
from tests.ingress.conftest import SignUp, leave_call
from tests.test_cli import fleet
from tests.workers.ledger_cases import Agent, cap_tenant, hold, results

Fleet = Callable[..., Any]


@pytest.fixture
def command(deps: Deps) -> Fleet:
    told = {"DATABASE_URL": deps.settings.database_url, "REDIS_URL": deps.settings.redis_url}

    async def run(*words: str) -> Result:
        return await asyncio.to_thread(fleet, *words, **told)

    return run


def as_agent(new: dict[str, Any]) -> Agent:
    return Agent(new["tenant_id"], new["agent_id"], UUID(int=0))


async def test_a_lowered_cap_tells_whether_calls_in_flight_can_still_pass_it(
    client: httpx.AsyncClient, sign_up: SignUp, database_url: str
) -> None:
    new = await sign_up(daily_cap_usd=5)
    path = f"/v1/agents/{new['agent_id']}/spend-policy"

    async def change(**body: Any) -> Any:
        return (await client.patch(path, json=body, headers=new["auth"])).json()

    db = await connect(database_url, APP_ROLE, "test")
    try:
        assert await results(db, "open_inferences", hold(as_agent(new), "2")) == ["OPENED"]
        exact = await change(daily_cap_usd=2)
        assert exact["drain_proof_status"] == "proved"
        assert (
            exact["drain_proof"]["held_usd"] == exact["drain_proof"]["largest_hold_usd"] == "2.00"
        )
        assert (await change(daily_cap_usd="1.99"))["drain_proof_status"] == "in_flight_exceeds_cap"
        over = await change(daily_cap_usd=3, per_call_cap_usd="1.99")
        assert over["drain_proof_status"] == "in_flight_exceeds_cap"
        assert await results(db, "open_inferences", hold(as_agent(new), "1.1")) == ["DAILY_CAP"]
    finally:
        await db.close()


async def test_a_proof_waits_for_a_hold_that_is_being_made(
    client: httpx.AsyncClient, sign_up: SignUp, database_url: str, superuser_url: str
) -> None:
    new = await sign_up()
    path = f"/v1/agents/{new['agent_id']}/spend-policy"
    db = await connect(database_url, APP_ROLE, "test")
    waiting = """SELECT count(*) FROM pg_stat_activity
                  WHERE wait_event_type = 'Lock' AND query LIKE '%FROM accounts WHERE agent_id%'"""
    watch = await connect(superuser_url, None, "test")
    try:
        async with db.transaction():
            await results(db, "open_inferences", hold(as_agent(new), "2"))
            asked = client.patch(path, json={"daily_cap_usd": 1}, headers=new["auth"])
            changing = asyncio.create_task(asked)
            async with asyncio.timeout(20):
                while not await watch.fetchval(waiting):
                    await asyncio.sleep(0.01)
        assert (await changing).json()["drain_proof_status"] == "in_flight_exceeds_cap"
    finally:
        await db.close()
        await watch.close()


async def test_what_is_proved_holds_while_a_crowd_asks_for_money(
    client: httpx.AsyncClient, sign_up: SignUp, database_url: str
) -> None:
    new = await sign_up()
    path = f"/v1/agents/{new['agent_id']}/spend-policy"
    crowd = [await connect(database_url, APP_ROLE, "test") for _ in range(8)]
    try:
        asking = asyncio.gather(
            *(results(each, "open_inferences", hold(as_agent(new), "0.3")) for each in crowd)
        )
        changing = client.patch(path, json={"daily_cap_usd": "1.3"}, headers=new["auth"])
        _, answer = await asyncio.gather(asking, changing)
        proof = answer.json()
        held = await crowd[0].fetchval(
            "SELECT held FROM accounts WHERE agent_id = $1", UUID(new["agent_id"])
        )
        seen = Decimal(proof["drain_proof"]["held_usd"])
        if proof["drain_proof_status"] == "proved":
            assert seen <= held <= Decimal("1.3")
        else:  # the crowd was first: nothing was added after the proof
            assert seen == held > Decimal("1.3")
    finally:
        for each in crowd:
            await each.close()


async def test_a_receipt_names_the_rule_by_which_it_was_billed(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str
) -> None:
    new = await sign_up()
    left = await leave_call(database_url, deps, new)
    path = f"/v1/receipts/{left.receipt_id}"
    receipt = (await client.get(path, headers=new["auth"])).json()
    assert receipt["billing"] == {
        "rule": "partial-work-v1",
        "basis": "provider_usage",
        "outcome": "succeeded",
    }


# -- operators ----------------------------------------------------------------------------------


async def test_an_operator_takes_a_charge_back(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str, command: Fleet
) -> None:
    new = await sign_up()
    await leave_call(database_url, deps, new, charge="0.5")
    ledger = (await client.get(f"/v1/ledger/{new['agent_id']}", headers=new["auth"])).json()
    usage = next(each["id"] for each in ledger["entries"] if each["kind"] == "usage")
    make = ("corrections", "make", usage, "--reason", "billed twice", "--yes", "--json")

    too_much = await command(*make, "--amount", "0.6")
    assert too_much.exit_code == 1
    assert "0.5" in too_much.stderr
    id = str(uuid4())
    for result in ("CREATED", "EXISTS"):
        done = orjson.loads((await command(*make, "--amount", "0.2", "--id", id)).stdout)
        assert (done["result"], done["remaining_usd"]) == (result, "0.300000000")
    unknown = ("corrections", "make", str(uuid4()), "-y", "--reason")
    assert [(await command(*unknown, why)).exit_code for why in ("x", " ")] == [1, 2]
    assert (await command(*make, "--amount", "-1")).exit_code == 2

    listed = orjson.loads(
        (await command("corrections", "list", "--json", "--tenant", new["tenant_id"])).stdout
    )
    assert [(each["id"], each["corrects"], each["reason"]) for each in listed] == [
        (id, usage, "billed twice")
    ]
    after = (await client.get(f"/v1/ledger/{new['agent_id']}", headers=new["auth"])).json()
    newest = after["entries"][0]
    assert (newest["kind"], newest["amount_usd"], newest["memo"]) == (
        "correction",
        "0.20",
        "billed twice",
    )
    chain = (await client.get(f"/v1/audit/{new['agent_id']}/verify")).json()
    assert chain["valid"]
    events = (await client.get(f"/v1/audit/{new['agent_id']}", headers=new["auth"])).json()
    told = [e["payload"] for e in events["events"] if e["event_type"] == "wallet.corrected"]
    assert [(each["corrects"], each["amount_usd"]) for each in told] == [(usage, "0.200000000")]
    assert await acts(deps, "transfer.correct", usage) == 1


async def test_what_was_taken_back_already_says_by_what(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, database_url: str, command: Fleet
) -> None:
    new = await sign_up()
    await leave_call(database_url, deps, new, charge="0.0000001")
    ledger = (await client.get(f"/v1/ledger/{new['agent_id']}", headers=new["auth"])).json()
    usage = next(each["id"] for each in ledger["entries"] if each["kind"] == "usage")
    make = ("corrections", "make", usage, "--reason", "again", "--yes")
    ids = [str(uuid4()), str(uuid4())]
    for id, more in zip(ids, (("--amount", "0.00000004"), ()), strict=True):
        done = await command(*make, "--id", id, *more)
        assert done.exit_code == 0, done.output
        assert "E-" not in done.stdout
    again = await command(*make)
    assert again.exit_code == 1
    assert again.stderr == (
        f"All of it was taken back already, by the transfers {', '.join(ids)}.\n"
    )


async def acts(deps: Deps, act: str, target: str) -> int:
    query = "SELECT count(*) FROM operator_events WHERE act = :act AND target = :target"
    async with deps.db.everyone() as s:
        found: int = (await s.execute(text(query), {"act": act, "target": target})).scalar_one()
    return found


async def test_an_operator_caps_a_tenant_and_lifts_the_cap(
    sign_up: SignUp, deps: Deps, database_url: str, command: Fleet
) -> None:
    new = await sign_up()
    tenant = ("caps", "tenant", new["tenant_id"], "--yes", "--json")
    db = await connect(database_url, APP_ROLE, "test")
    try:
        await results(db, "open_inferences", hold(as_agent(new), "2"))
        set_to = orjson.loads((await command(*tenant, "--daily", "1.5", "--reason", "x")).stdout)
        assert set_to == {
            "tenant_id": new["tenant_id"],
            "daily_cap_usd": "1.500000000",
            "before_usd": None,
            "settled_usd": "0.000000000",
            "held_usd": "2.000000000",
            "available_usd": "0.000000000",
            "agents": 1,
            "drain_proof_status": "in_flight_exceeds_cap",
        }
        assert await results(db, "open_inferences", hold(as_agent(new), "0.1")) == ["TENANT_CAP"]
        show = ("caps", "show", new["tenant_id"])
        del set_to["before_usd"]
        assert orjson.loads((await command(*show, "--json")).stdout) == set_to
        told = (await command(*show)).stdout
        assert "may spend 1.500000000 USD in a day (UTC); 0.000000000 settled today" in told
        lifted = orjson.loads((await command(*tenant, "--lift")).stdout)
        assert (lifted["daily_cap_usd"], lifted["before_usd"]) == (None, "1.500000000")
        assert (await cap_tenant(db, as_agent(new), None))["before"] is None
        assert "has no cap" in (await command(*show)).stdout
    finally:
        await db.close()
    assert await acts(deps, "cap.tenant", new["tenant_id"]) == 2
    for wrong in ((), ("--daily", "1", "--lift"), ("--daily", "x")):
        assert (await command(*tenant, *wrong)).exit_code == 2
    unknown = await command("caps", "tenant", str(uuid4()), "--daily", "1", "-y")
    assert unknown.exit_code == 1
    assert (await command("caps", "show", str(uuid4()))).exit_code == 1
