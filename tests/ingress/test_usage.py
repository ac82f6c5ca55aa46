"""Figures by day, caps in sum, and how an agent fares: right, honest when empty, nobody else's."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingress import attributions
from ingress.deps import Deps
from shared.db import Connection, connect
from shared.domain.ledger import PROVIDER_COST_ACCOUNT
from shared.ids import mint_id
from shared.keys import hash_api_key, mint_api_key
from shared.models import ApiKeyRow
from tests.ingress.call_cases import agent_of, leave, leave_at
from tests.ingress.conftest import SignUp
from tests.workers.ledger_cases import cap_tenant

VIEWS = ("/v1/usage/daily", "/v1/caps/rollup", "/v1/usage/by-session", "/v1/usage/by-parent-agent")
NOBODY = "01890000-0000-7000-8000-000000000000"


@pytest_asyncio.fixture(loop_scope="session")
async def owner(owner_url: str) -> AsyncIterator[Connection]:
    connection = await connect(owner_url, None, "test")
    yield connection
    await connection.close()


async def read(client: httpx.AsyncClient, path: str, new: dict[str, Any], **query: Any) -> Any:
    answer = await client.get(path, headers=new["auth"], params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def bound_key(deps: Deps, new: dict[str, Any], agent_id: str) -> dict[str, str]:
    """The headers of a key that is bound to one agent."""
    key = mint_api_key()
    row = ApiKeyRow(
        id=mint_id(),
        tenant_id=UUID(new["tenant_id"]),
        agent_id=UUID(agent_id),
        key_hash=hash_api_key(key),
    )
    async with deps.db.everyone() as s:
        s.add(row)
        await s.commit()
    return {"x-api-key": key}


async def second_agent(client: httpx.AsyncClient, new: dict[str, Any]) -> str:
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    made = await client.post("/v1/agents/register", json=body, headers=new["auth"])
    path, other = "/v1/wallets/topup", str(made.json()["id"])
    topup = {"agent_id": other, "amount_usd": "5"}
    assert (await client.post(path, json=topup, headers=new["auth"])).status_code == 200
    return other


async def test_a_new_tenant_gets_honest_empties(client: httpx.AsyncClient, sign_up: SignUp) -> None:
    new = await sign_up()
    assert await read(client, "/v1/usage/daily", new) == {
        "days": [],
        "totals": {"calls": 0, "cost_usd": "0.00"},
    }
    assert await read(client, "/v1/caps/rollup", new) == {
        "agents": 1,
        "policies_set": 0,
        "budget": {"set": None, "used_usd": "0.00"},
        "latency_p50_ms": None,
        "breaches": {"quality": 0, "reliability": 0},
    }
    assert await read(client, f"/v1/agents/{new['agent_id']}/metrics", new) == {
        "agent_id": new["agent_id"],
        "window_hours": 24,
        "calls": 0,
        "cost_usd": "0.00",
        "latency_p50_ms": None,
        "latency_p95_ms": None,
        "error_rate": None,
        "fallback_rate": None,
        "top_models": [],
    }
    assert await read(client, "/v1/usage/by-session", new) == {"sessions": [], "has_more": False}
    assert await read(client, "/v1/usage/by-parent-agent", new) == {
        "parent_agents": [],
        "has_more": False,
    }


async def plant_each_way(owner: Connection, new: dict[str, Any]) -> None:
    """Ten calls: four ok, two fallbacks, four errors; 1.20 USD."""
    agent = agent_of(new)
    await leave(owner, agent, "0.1")
    await leave(owner, agent, "0.2", routed=False)
    await leave(owner, agent, "0.1", "cancelled")
    await leave(owner, agent, "0.1", "cancelled", routed=False)
    await leave(owner, agent, "0.3", tried=True)
    await leave(owner, agent, "0.1", "cancelled", tried=True)
    await leave(owner, agent, "0.1", "failed_midstream", tried=True)
    await leave(owner, agent, "0.2", "failed_midstream", routed=False)
    await leave(owner, agent, "0", "rejected_floor", refused=True)
    await leave(owner, agent, "0", "rejected_cap", refused=True, routed=False)


async def test_every_call_counts_once_and_as_what_it_was(
    client: httpx.AsyncClient, sign_up: SignUp, owner: Connection
) -> None:
    new, other = await sign_up(), await sign_up()
    await plant_each_way(owner, new)
    await leave(owner, agent_of(other), "0.7")
    usage = await read(client, "/v1/usage/daily", new)
    (day,) = usage["days"]
    assert day["by_status"] == {"ok": 4, "fallback": 2, "error": 4}
    assert (day["calls"], day["cost_usd"]) == (10, "1.20")
    assert usage["totals"] == {"calls": 10, "cost_usd": "1.20"}
    metrics = await read(client, f"/v1/agents/{new['agent_id']}/metrics", new)
    assert (metrics["calls"], metrics["cost_usd"]) == (10, "1.20")
    assert (metrics["error_rate"], metrics["fallback_rate"]) == (0.4, 0.2)
    assert (metrics["latency_p50_ms"], metrics["latency_p95_ms"]) == (12, 12)
    assert metrics["top_models"] == [{"model": "a-model", "calls": 8, "cost_usd": "1.20"}]
    rollup = await read(client, "/v1/caps/rollup", new)
    assert rollup["budget"]["used_usd"] == "1.20"
    assert rollup["latency_p50_ms"] == 12
    assert rollup["breaches"] == {"quality": 1, "reliability": 1}


async def test_caps_add_up_over_agents(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, owner: Connection
) -> None:
    new = await sign_up(daily_cap_usd="2.5")
    second = await second_agent(client, new)
    path = f"/v1/agents/{second}/spend-policy"
    await client.patch(path, json={"per_call_cap_usd": "1"}, headers=new["auth"])
    rollup = await read(client, "/v1/caps/rollup", new)
    assert (rollup["agents"], rollup["policies_set"]) == (2, 2)
    assert rollup["budget"] == {"set": "2.50", "used_usd": "0.00"}
    assert "tenant_cap_usd" not in rollup
    await cap_tenant(owner, agent_of(new), "7.5")
    capped = await read(client, "/v1/caps/rollup", new)
    assert (capped["tenant_cap_usd"], capped["budget"]) == ("7.50", rollup["budget"])


async def test_a_bound_key_sees_its_own_agents_figures(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, owner: Connection
) -> None:
    new = await sign_up(daily_cap_usd="2.5")
    second = await second_agent(client, new)
    await leave(owner, agent_of(new), "0.4")
    await leave(owner, agent_of({**new, "agent_id": second}), "0.3")
    mine = {"auth": await bound_key(deps, new, second)}
    assert (await read(client, "/v1/usage/daily", new))["totals"]["cost_usd"] == "0.70"
    assert (await read(client, "/v1/usage/daily", mine))["totals"]["cost_usd"] == "0.30"
    rollup = await read(client, "/v1/caps/rollup", mine)
    assert (rollup["agents"], rollup["budget"]) == (1, {"set": None, "used_usd": "0.30"})
    wallets = await read(client, "/v1/wallets", mine)
    assert [wallet["agent_id"] for wallet in wallets["wallets"]] == [second]
    for view in ("agents/{}/metrics", "ledger/{}", "wallets/{}"):
        path = f"/v1/{view.format(new['agent_id'])}"
        assert (await client.get(path, headers=mine["auth"])).status_code == 404


@pytest.mark.parametrize("view", ["agents/{}/metrics", "ledger/{}", "wallets/{}"])
async def test_other_tenants_agents_are_unknown_ones(
    client: httpx.AsyncClient, sign_up: SignUp, view: str
) -> None:
    mine, other = await sign_up(), await sign_up()
    answers = [
        await client.get(f"/v1/{view.format(agent)}", headers=mine["auth"])
        for agent in (other["agent_id"], NOBODY, "x")
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1


async def test_a_day_begins_at_midnight_utc(
    client: httpx.AsyncClient, sign_up: SignUp, owner: Connection
) -> None:
    new = await sign_up()
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    midnight = today - timedelta(days=2)
    for at, cost in (
        (midnight - timedelta(microseconds=1), "0.1"),
        (midnight, "0.2"),
        (midnight + timedelta(hours=23, minutes=59, seconds=59), "0.3"),
        (midnight + timedelta(days=1), "0.4"),
    ):
        await leave_at(owner, agent_of(new), at, cost)
    found = await read(client, "/v1/usage/daily", new)
    told = [(day["date"], day["cost_usd"]) for day in found["days"]]
    first = (midnight - timedelta(days=1)).date()
    days = [(first + timedelta(days=n)).isoformat() for n in range(3)]
    assert told == list(zip(days, ("0.10", "0.50", "0.40"), strict=True))
    # a window of three days begins with the midnight itself
    window = await read(client, "/v1/usage/daily", new, days=3)
    assert [day["cost_usd"] for day in window["days"]] == ["0.50", "0.40"]


ENDINGS = st.tuples(
    st.sampled_from(["succeeded", "failed_provider", "failed_midstream", "cancelled", "expired"]),
    st.decimals(0, "1.2", places=9),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(endings=st.lists(ENDINGS, max_size=6))
async def test_the_days_sum_up_to_the_ledger(
    client: httpx.AsyncClient, sign_up: SignUp, owner: Connection, endings: list[Any]
) -> None:
    """Also where a charge outgrew its hold: what a wallet did not pay is no cost of its owner."""
    new, other = await sign_up(), await sign_up()
    whose = (agent_of(new), agent_of(other))
    for status, charge, routed, tried, whom in endings:
        await leave(owner, whose[whom], f"{charge:f}", status, routed=routed, tried=tried)
    for tenant in (new, other):
        paid = await owner.fetchval(
            "SELECT coalesce(sum(amount), 0) FROM transfers WHERE tenant_id = $1"
            " AND credit_account = $2 AND kind = 'usage'",
            UUID(tenant["tenant_id"]),
            PROVIDER_COST_ACCOUNT,
        )
        usage = await read(client, "/v1/usage/daily", tenant)
        mine = [each for each in endings if (tenant is new) == (each[4] == 0)]
        assert usage["totals"]["calls"] == len(mine)
        assert Decimal(usage["totals"]["cost_usd"]) == paid
        for day in usage["days"]:
            assert sum(day["by_status"].values()) == day["calls"]
        failed = [each for each in mine if each[0] not in ("succeeded", "cancelled")]
        assert sum(day["by_status"]["error"] for day in usage["days"]) == len(failed)


async def test_usage_as_a_table(
    client: httpx.AsyncClient, sign_up: SignUp, owner: Connection
) -> None:
    new = await sign_up()
    await leave(owner, agent_of(new), "0.25", tried=True)
    for asked in ({"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}):
        headers = {**new["auth"], **asked.get("headers", {})}
        params = asked.get("params", {})
        answer = await client.get("/v1/usage/daily", headers=headers, params=params)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        header, row = csv.reader(io.StringIO(answer.text))
        assert header == ["date", "calls", "cost_usd", "ok", "fallback", "error"]
        assert row[1:] == ["1", "0.25", "0", "1", "0"]
    headers = {**new["auth"], "accept": "application/json, text/csv"}
    preferred = await client.get("/v1/usage/daily", headers=headers)
    assert preferred.headers["content-type"] == "application/json"


@pytest.mark.parametrize("days", [0, 367, "x"])
async def test_a_window_that_cannot_be_is_refused(
    client: httpx.AsyncClient, sign_up: SignUp, days: Any
) -> None:
    new = await sign_up()
    answer = await client.get("/v1/usage/daily", headers=new["auth"], params={"days": days})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_cost_by_session_and_by_parent_agent(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    owner: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new, other = await sign_up(), await sign_up()
    named = (("=cmd|x", "planner", "0.2"), ("s-2", "planner", "0.7"), ("=cmd|x", None, "0.1"))
    for tenant in (new, other):
        for session, parent, cost in named if tenant is new else (("s-2", "planner", "0.9"),):
            inference = await leave(owner, agent_of(tenant), cost)
            await owner.execute(
                "INSERT INTO call_attributions (inference_id, tenant_id, agent_id, session_id,"
                " parent_agent_id) VALUES ($1, $2, $3, $4, $5)",
                *(UUID(inference), UUID(tenant["tenant_id"]), UUID(tenant["agent_id"])),
                *(session, parent),
            )
    sessions = (await read(client, "/v1/usage/by-session", new))["sessions"]
    assert [(s["session_id"], s["calls"], s["cost_usd"]) for s in sessions] == [
        ("s-2", 1, "0.70"),
        ("=cmd|x", 2, "0.30"),
    ]
    assert sessions[1]["first_at"] < sessions[1]["last_at"]
    for limit, more in ((1, True), (len(sessions), False)):
        page = await read(client, "/v1/usage/by-session", new, limit=limit)
        assert (len(page["sessions"]), page["has_more"]) == (limit, more)
    (parent,) = (await read(client, "/v1/usage/by-parent-agent", new))["parent_agents"]
    assert (parent["parent_agent_id"], parent["calls"]) == ("planner", 2)
    assert parent["cost_usd"] == "0.90"
    # the table is all of them by name, whatever the limit of a page
    table = await client.get("/v1/usage/by-session?format=csv&limit=1", headers=new["auth"])
    assert table.headers["content-disposition"] == 'attachment; filename="usage-by-session.csv"'
    parents = await client.get("/v1/usage/by-parent-agent?format=csv", headers=new["auth"])
    assert "usage-by-parent-agent.csv" in parents.headers["content-disposition"]
    assert [row.split(",")[0] for row in table.text.splitlines()] == [
        "session_id",
        "'=cmd|x",
        "s-2",
    ]
    monkeypatch.setattr(attributions, "MOST_ROWS", 1)
    in_pages = await client.get("/v1/usage/by-session?format=csv", headers=new["auth"])
    assert in_pages.text == table.text
