"""A tenant's routing policy over HTTP, what operators publish, and how soon it is heard."""

import asyncio
import csv
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
import pytest_asyncio
from sqlalchemy import text

from ingress.deps import Deps
from shared.domain.policy_version import BUILT_IN, PolicyVersion
from shared.ids import mint_id
from shared.policies import known_versions, publish, rollback, store_version, tell_policies_changed
from tests.ingress.conftest import OpenApp, SignUp, leave_call
from tests.test_cli import fleet

PATH = "/v1/routing-policy"
Fleet = Callable[..., Any]


@pytest.fixture
def command(deps: Deps) -> Fleet:
    told = {"DATABASE_URL": deps.settings.database_url, "REDIS_URL": deps.settings.redis_url}

    async def run(*words: str, code: int = 0) -> Any:
        done = await asyncio.to_thread(fleet, "policy", *words, **told)
        assert done.exit_code == code, done.output
        return orjson.loads(done.stdout) if "--json" in words and code == 0 else done

    return run


@pytest_asyncio.fixture(loop_scope="session")
async def as_before(deps: Deps) -> AsyncIterator[None]:
    """The default of all is what it was."""
    yield
    async with deps.db.everyone() as s:
        await publish(s, "flat-1", "", "test")
        await s.commit()
    await deps.routing.policies.read()


async def policy_of(deps: Deps, new: dict[str, Any]) -> Any:
    return (await deps.keyring.find(new["api_key"], None)).policy


def listens(deps: Deps) -> bool:
    """What was asked for before is asked for again."""
    return deps.keyring._forgotten > 0


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.01)


async def set_floor(client: httpx.AsyncClient, new: dict[str, Any], **body: Any) -> httpx.Response:
    path = f"/v1/agents/{new['agent_id']}/routing-policy"
    return await client.patch(path, json=body, headers=new["auth"])


async def test_says_what_is_in_force_and_where_it_comes_from(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    found = (await client.get(PATH, headers=new["auth"])).json()
    assert [found[name] for name in ("min_quality", "policy_version", "default_output_tokens")] == [
        None,
        None,
        None,
    ]
    in_force = found["in_force"]
    assert in_force["policy_version"] == {"value": "flat-1", "source": "system"}
    assert in_force["min_quality"]["code"] == {"value": 0.5, "source": "default"}
    assert in_force["default_output_tokens"] == {"value": 1024, "source": "policy_version"}
    assert in_force["preference_live"] == {"value": False, "source": "system"}
    assert {each["version"] for each in found["known_versions"]} >= {"flat-1", "task-floors-1"}

    body = {"policy_version": "task-floors-1", "default_output_tokens": 300}
    put = await client.put(PATH, json=body, headers=new["auth"])
    assert put.status_code == 200, put.text
    assert put.json() == (await client.get(PATH, headers=new["auth"])).json()
    in_force = put.json()["in_force"]
    assert in_force["policy_version"] == {"value": "task-floors-1", "source": "tenant"}
    assert in_force["min_quality"]["code"] == {"value": 0.78, "source": "task_type"}
    assert in_force["default_output_tokens"] == {"value": 300, "source": "tenant"}

    # what is absent stays, null takes a word back, a tier keeps its name
    put = await client.put(
        PATH, json={"min_quality": "strong", "default_output_tokens": None}, headers=new["auth"]
    )
    found = put.json()
    assert (found["min_quality"], found["policy_version"], found["default_output_tokens"]) == (
        "strong",
        "task-floors-1",
        None,
    )
    assert found["in_force"]["min_quality"]["code"] == {"value": 0.7, "source": "tenant"}


async def test_an_agents_own_floor_is_told_beside_the_tenants(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()
    await client.put(PATH, json={"min_quality": 0.6}, headers=new["auth"])
    for floor, told in ((0.9, 0.9), ("strong", 0.7), ("0.55", 0.55)):
        put = await set_floor(client, new, min_quality=floor)
        assert put.status_code == 200, put.text
        in_force = put.json()["in_force"]["min_quality"]["code"]
        assert in_force == {"value": told, "source": "agent"}
        found = (await client.get(PATH, headers=new["auth"])).json()
        assert found["agents"] == [{"agent_id": new["agent_id"], "min_quality": told}]
        assert put.json()["min_quality"] == told
    # what the tenant said holds for its other agent as before
    assert found["in_force"]["min_quality"]["code"] == {"value": 0.6, "source": "tenant"}
    theirs = await deps.keyring.find(new["api_key"], UUID(second["id"]))
    assert theirs.policy["agent_min_quality"] is None
    assert (await policy_of(deps, new))["agent_min_quality"] == "0.55"

    put = await set_floor(client, new, min_quality=None)
    assert put.json()["min_quality"] is None
    assert put.json()["in_force"]["min_quality"]["code"] == {"value": 0.6, "source": "tenant"}
    assert (await client.get(PATH, headers=new["auth"])).json()["agents"] == []
    assert (await policy_of(deps, new))["agent_min_quality"] is None


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"min_quality": 1.01}, "min_quality", "from 0 to 1"),
        ({"min_quality": True}, "min_quality", "from 0 to 1"),
        ({"min_quality": "best"}, "min_quality", "good, strong, frontier"),
        ({"policy_version": "flat-1"}, "policy_version", "no such field"),
        ({}, "min_quality", "is needed"),
    ],
)
async def test_an_agents_floor_that_is_wrong_is_refused_and_named(
    client: httpx.AsyncClient, sign_up: SignUp, body: Any, field: str, words: str
) -> None:
    new = await sign_up()
    refused = await set_floor(client, new, **body)
    assert refused.status_code == 400
    assert refused.json()["message"].startswith(f"{field}: ")
    assert words in refused.json()["message"]
    assert (await client.get(PATH, headers=new["auth"])).json()["agents"] == []


async def test_an_agents_floor_is_set_by_a_key_of_its_tenant_alone(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new, other = await sign_up(), await sign_up()
    unknown = await set_floor(client, {**other, "agent_id": str(mint_id())}, min_quality=0.9)
    foreign = await set_floor(client, {**other, "agent_id": new["agent_id"]}, min_quality=0.9)
    assert (unknown.status_code, foreign.status_code) == (404, 404)
    assert unknown.json() == foreign.json()
    for wish in ({"scopes": ["read"]}, {"scopes": ["admin"], "agent_id": new["agent_id"]}):
        made = (await client.post("/v1/keys", json=wish, headers=new["auth"])).json()
        auth = {"x-api-key": made["api_key"]}
        assert (await set_floor(client, {**new, "auth": auth}, min_quality=1)).status_code == 403
    assert (await client.get(PATH, headers=new["auth"])).json()["agents"] == []


async def test_an_agents_floor_is_in_its_own_chain_once(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()
    for floor in (0.7, "strong", None):  # a tier is its number, so the second changes nothing
        await set_floor(client, new, min_quality=floor)
    events = {}
    for agent in (new["agent_id"], second["id"]):
        found = (await client.get(f"/v1/audit/{agent}", headers=new["auth"])).json()["events"]
        events[agent] = [e for e in found if e["event_type"] == "routing_policy.changed"]
        assert (await client.get(f"/v1/audit/{agent}/verify")).json()["valid"]
    assert events[second["id"]] == []
    told = [(e["payload"]["before"], e["payload"]["after"]) for e in events[new["agent_id"]]]
    unset, strong = {"agent_min_quality": None}, {"agent_min_quality": "0.7"}
    assert told == [(unset, strong), (strong, unset)]
    assert events[new["agent_id"]][0]["payload"]["changed_by"].startswith("key ")


async def test_every_ingress_hears_an_agents_floor(
    client: httpx.AsyncClient, sign_up: SignUp, open_app: OpenApp
) -> None:
    new = await sign_up()
    async with open_app() as (_, elsewhere):
        assert (await policy_of(elsewhere, new))["agent_min_quality"] is None
        await set_floor(client, new, min_quality="frontier")

        async def heard() -> bool:
            return bool((await policy_of(elsewhere, new))["agent_min_quality"] == "0.85")

        await until(heard)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"min_quality": 1.01}, "min_quality", "from 0 to 1"),
        ({"min_quality": True}, "min_quality", "from 0 to 1"),
        ({"min_quality": "best"}, "min_quality", "good, strong, frontier"),
        ({"min_quality": 0.1234567891}, "min_quality", "nine places"),
        ({"policy_version": "nobodys"}, "policy_version", "known are flat-1, task-floors-1"),
        ({"policy_version": 7}, "policy_version", "string"),
        ({"default_output_tokens": 0}, "default_output_tokens", "at least 1"),
        ({"default_output_tokens": True}, "default_output_tokens", "whole number"),
        ({"floors": {}}, "floors", "no such field"),
        ({}, None, "name min_quality"),
    ],
)
async def test_what_is_wrong_is_refused_and_named(
    client: httpx.AsyncClient, sign_up: SignUp, body: Any, field: str | None, words: str
) -> None:
    new = await sign_up()
    refused = await client.put(PATH, json=body, headers=new["auth"])
    assert refused.status_code == 400
    assert words in refused.json()["message"]
    assert refused.json()["message"].startswith(f"{field or 'body'}: ")
    assert (await client.get(PATH, headers=new["auth"])).json()["min_quality"] is None


async def test_reading_takes_read_and_changing_an_admins_key_of_the_tenant(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()

    async def with_key(**wish: Any) -> dict[str, str]:
        made = await client.post("/v1/keys", json=wish, headers=new["auth"])
        return {"x-api-key": made.json()["api_key"]}

    reader = await with_key(scopes=["read"])
    bound = await with_key(scopes=["read", "admin"], agent_id=new["agent_id"])
    for auth in (reader, bound):
        assert (await client.get(PATH, headers=auth)).status_code == 200
        assert (await client.put(PATH, json={"min_quality": 1}, headers=auth)).status_code == 403


async def test_a_change_is_in_every_agents_chain_once(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    body = {"tenant_id": new["tenant_id"], "name": "second"}
    second = (await client.post("/v1/agents/register", json=body, headers=new["auth"])).json()
    for _ in range(2):  # the same again changes nothing
        await client.put(PATH, json={"min_quality": 0.7}, headers=new["auth"])
    for agent in (new["agent_id"], second["id"]):
        found = (await client.get(f"/v1/audit/{agent}", headers=new["auth"])).json()["events"]
        (event,) = [e for e in found if e["event_type"] == "routing_policy.changed"]
        assert event["payload"]["before"]["min_quality"] is None
        assert event["payload"]["after"]["min_quality"] == "0.7"
        assert event["payload"]["changed_by"].startswith("key ")
        assert (await client.get(f"/v1/audit/{agent}/verify")).json()["valid"]


async def test_every_ingress_hears_a_tenants_change_and_no_other_tenants_keys_are_asked_again(
    client: httpx.AsyncClient, sign_up: SignUp, open_app: OpenApp
) -> None:
    new, other = await sign_up(), await sign_up()
    async with open_app() as (_, elsewhere):

        async def kept() -> bool:
            assert (await policy_of(elsewhere, new))["tenant_min_quality"] is None
            await policy_of(elsewhere, other)
            return listens(elsewhere) and len(elsewhere.keyring._known) == 2

        await until(kept)
        await client.put(PATH, json={"min_quality": 0.7}, headers=new["auth"])

        async def heard() -> bool:
            return bool((await policy_of(elsewhere, new))["tenant_min_quality"] == "0.7")

        await until(heard)
        known = {kept.caller.tenant_id for kept in elsewhere.keyring._known.values()}
        assert known == {new["tenant_id"], other["tenant_id"]}


async def test_every_ingress_hears_a_publication_and_asks_for_no_key_again(
    client: httpx.AsyncClient, sign_up: SignUp, open_app: OpenApp, deps: Deps, as_before: None
) -> None:
    follows, named, bears = await sign_up(), await sign_up(), await sign_up()
    await client.put(PATH, json={"policy_version": "flat-1"}, headers=named["auth"])
    await client.put(PATH, json={"default_output_tokens": 50}, headers=bears["auth"])
    async with open_app() as (_, elsewhere):

        async def kept() -> bool:
            found = [await policy_of(elsewhere, new) for new in (follows, named, bears)]
            assert {policy["version"] for policy in found} == {"flat-1"}
            return listens(elsewhere) and len(elsewhere.keyring._known) == len(found)

        await until(kept)
        until_then = {k: kept.until for k, kept in elsewhere.keyring._known.items()}
        version = PolicyVersion("longer-1", default_output_tokens=2048)
        async with deps.db.everyone() as s:
            await store_version(s, version, "test")
            await publish(s, "longer-1", "", "test")
            await s.commit()
        await tell_policies_changed(deps.redis)

        async def heard() -> bool:
            return bool((await policy_of(elsewhere, follows))["version"] == "longer-1")

        await until(heard)
        assert (await policy_of(elsewhere, follows))["default_output_tokens"] == 2048
        assert (await policy_of(elsewhere, named))["version"] == "flat-1"
        told = await policy_of(elsewhere, bears)
        assert (told["version"], told["default_output_tokens"]) == ("longer-1", 50)
        assert {k: kept.until for k, kept in elsewhere.keyring._known.items()} == until_then


async def test_a_version_that_a_process_has_not_heard_of_is_looked_up(
    client: httpx.AsyncClient, sign_up: SignUp, deps: Deps
) -> None:
    """The order was lost: the tenant's word is enough."""
    new = await sign_up()
    async with deps.db.everyone() as s:
        await store_version(s, PolicyVersion("unheard-1", default_output_tokens=77), "test")
        await s.commit()
    put = await client.put(PATH, json={"policy_version": "unheard-1"}, headers=new["auth"])
    assert put.status_code == 200, put.text

    async def heard() -> bool:
        return bool((await policy_of(deps, new))["default_output_tokens"] == 77)

    await until(heard)


# -- operators ----------------------------------------------------------------------------------


async def test_the_seeded_versions_are_the_built_in_ones(deps: Deps) -> None:
    async with deps.db.everyone() as s:
        known = await known_versions(s)
    for version in BUILT_IN:
        assert known[version.version] == version
        stored = "SELECT document_hash FROM policy_versions WHERE version = :version"
        (row,) = await deps.db.run(stored, version=version.version)
        assert row.document_hash == version.hash


async def test_publishing_is_asked_for_written_down_and_taken_back(
    command: Fleet, deps: Deps, tmp_path: Path, as_before: None
) -> None:
    document = tmp_path / "mine.toml"
    document.write_text('version = "mine-1"\n[floors]\ncode = 0.8\n')
    valid = await command("validate", str(document), "--json")
    assert valid == {"valid": True, "problems": []}

    refused = await command("publish", str(document), code=1)  # nobody agrees
    assert "Nothing was done" in refused.stderr or "Aborted" in refused.stderr
    publishing = ("publish", str(document), "--yes", "--json", "--reason", "why not")
    assert (await command(*publishing))["changed"]
    assert not (await command(*publishing))["changed"]
    shown = await command("show", "--json")
    assert (shown["active"], shown["document"]["floors"]) == (True, {"code": "0.8"})
    (turn,) = shown["publications"]
    assert (turn["before"], turn["act"], turn["reason"]) == ("flat-1", "publish", "why not")
    again = tmp_path / "again.toml"
    again.write_text((await command("show", "mine-1")).stdout)
    assert (await command("publish", str(again), "--yes", "--json"))["changed"] is False

    back = await command("rollback", "--yes", "--json")
    assert back == {"version": "flat-1", "before": "mine-1", "changed": True}
    nothing = await command("rollback", "--yes", code=1)
    assert "nothing to go back to" in nothing.stderr
    assert "never active" in (await command("rollback", "task-floors-1", "-y", code=1)).stderr
    listed = await command("list", "--json")
    assert listed["active"] == "flat-1"
    assert [turn["act"] for turn in listed["publications"]][-2:] == ["publish", "rollback"]
    query = "SELECT act FROM operator_events WHERE target = 'mine-1' ORDER BY at"
    assert [row.act for row in await deps.db.run(query)] == ["policy.add", "policy.publish"]


async def test_a_version_never_changes(command: Fleet, tmp_path: Path) -> None:
    document = tmp_path / "flat.toml"
    document.write_text('version = "flat-1"\n[floors]\ncode = 0.8\n')
    for more in ("--yes", "--dry-run"):
        refused = await command("publish", str(document), more, code=1)
        assert "give this one another name" in refused.stderr
    document.write_text('version = "Flat"\nfloors = 3\n')
    wrong = await command("validate", str(document), code=1)
    assert f"{document}: line 1: version: " in wrong.stdout
    assert f"{document}: line 2: floors: " in wrong.stdout
    refused = await command("publish", str(document), "--yes", code=1)
    assert "line 1: version" in refused.stderr
    assert "known are flat-1" in (await command("publish", "nothing", "-y", code=1)).stderr


async def test_a_dry_run_says_which_recorded_calls_would_change(
    client: httpx.AsyncClient,
    sign_up: SignUp,
    deps: Deps,
    database_url: str,
    command: Fleet,
    tmp_path: Path,
) -> None:
    """Calls of who names a version are left out, and so are those whose reasons are not known."""
    before = await command("publish", "task-floors-1", "--dry-run", "--json")
    ours, own = await sign_up(), await sign_up()
    await client.put(PATH, json={"policy_version": "flat-1"}, headers=own["auth"])
    calls = [await leave_call(database_url, deps, ours) for _ in range(3)]
    await leave_call(database_url, deps, own)
    await leave_call(database_url, deps, ours, documented=False)
    document = tmp_path / "strict.toml"
    document.write_text('version = "strict-1"\n[floors]\nchat = 0.94\n')
    table = tmp_path / "changes.csv"
    dry = ("publish", str(document), "--dry-run", "--json", "--csv", str(table))
    found = await command(*dry)
    assert found["calls"] - before["calls"] == 3
    assert found["left_out"]["own_version"] == before["left_out"]["own_version"] + 1
    assert found["left_out"]["undocumented"] == before["left_out"]["undocumented"] + 1
    rows = list(csv.DictReader(table.read_text().splitlines()))
    mine = [row for row in rows if row["inference_id"] in {call.inference_id for call in calls}]
    assert len(mine) == 3
    assert {(row["to"], row["floor_after"]) for row in mine} == {("claude-opus-4-7", "0.94")}
    assert len(rows) == found["changed"]
    assert float(found["projected_usd"]["difference"]) > 0
    assert "was not written" in (await command(*dry, code=1)).stderr
    query = "SELECT count(*) AS n FROM policy_versions WHERE version = 'strict-1'"
    assert (await deps.db.run(query))[0].n == 0

    newest = await command("compare", "flat-1", str(document), "--limit", "2", "--json")
    assert newest["calls"] == 1  # of the two newest one is undocumented
    of_one = ("compare", "flat-1", str(document), "--tenant", own["tenant_id"])
    assert (await command(*of_one, "--json"))["calls"] == 1
    words = await command(*of_one)
    assert "1 of 1 decisions change" in words.stdout
    assert "1 calls compared" in words.stderr
    none = await command("compare", "flat-1", "task-floors-1", "--since", "0s", "--json")
    assert (none["calls"], none["projected_usd"]["percent"]) == (0, None)


async def test_the_gate_is_flipped_by_command_and_heard(
    command: Fleet, client: httpx.AsyncClient, sign_up: SignUp, deps: Deps, open_app: OpenApp
) -> None:
    assert (await command("preference", "status", "--json"))["set_by"] is None
    try:
        on = await command("preference", "on", "--yes", "--reason", "trial", "--json")
        assert on == {"live": True, "changed": True}
        assert not (await command("preference", "on", "--yes", "--json"))["changed"]

        async def heard() -> bool:
            return deps.routing.policies.preference_live

        await until(heard)
        # what the environment says is only the first value
        async with open_app(routing_preference_live=False) as (_, elsewhere):
            assert elsewhere.routing.policies.preference_live
        assert (await command("preference", "status", "--json"))["reason"] == "trial"
        new = await sign_up()
        told = (await client.get(PATH, headers=new["auth"])).json()["in_force"]
        assert told["preference_live"]["value"] is True
    finally:
        headers = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
        path = "/internal/routing-preference"
        off = await client.post(path, json={"live": False, "reason": "over"}, headers=headers)
    assert off.json() == {"live": False, "changed": True}
    async with open_app(routing_preference_live=True) as (_, elsewhere):
        assert not elsewhere.routing.policies.preference_live
    query = text("SELECT act, actor FROM operator_events WHERE target = 'preference' ORDER BY at")
    async with deps.db.everyone() as s:
        acts = [tuple(row) for row in await s.execute(query)]
    assert [act for act, _ in acts] == ["preference.on", "preference.off"]
    assert acts[1][1] == "internal key"


async def test_of_two_who_publish_at_once_both_are_in_the_history(
    deps: Deps, as_before: None
) -> None:
    async def turn(version: str) -> None:
        async with deps.db.everyone() as s:
            await publish(s, version, "", "test")
            await s.commit()

    await asyncio.gather(*(turn(v) for v in ("task-floors-1", "flat-1") * 5))
    rows = await deps.db.run("SELECT * FROM policy_publications ORDER BY seq")
    assert [row.seq for row in rows] == [*range(1, len(rows) + 1)]
    assert [row.before for row in rows[1:]] == [row.version for row in rows[:-1]]
    async with deps.db.everyone() as s:
        assert (await rollback(s, "flat-1", "", "test")).version == "flat-1"
