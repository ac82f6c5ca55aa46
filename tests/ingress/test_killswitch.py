"""The killswitch: engaged once, heard by every ingress, released by an operator alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any, cast
from uuid import uuid4

import httpx
import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from typer.testing import Result

from ingress.deps import Deps
from shared.control import CONTROL_CHANNEL
from shared.domain.spending import ALL
from shared.errors import KillswitchEngaged
from shared.killswitch import Killswitch, engage, engaged_switches, release
from shared.spending import Spending, tell_spending
from tests.ingress.conftest import OpenApp, SignUp
from tests.test_cli import fleet
from workers.commands.killswitch_books import sentences

Ingresses = tuple[tuple[httpx.AsyncClient, Deps], tuple[httpx.AsyncClient, Deps]]
Fleet = Callable[..., Result]
OPERATOR = "somebody"
WHY = ("--reason", "runaway agent")


@pytest_asyncio.fixture(loop_scope="session")
async def two(open_app: OpenApp) -> AsyncIterator[Ingresses]:
    """Two ingresses on the same stores, each with a subscription of its own."""
    async with open_app() as one, open_app() as other:
        yield one, other


@pytest.fixture
def fleet_command(deps: Deps) -> Fleet:
    told = {
        "DATABASE_URL": deps.settings.database_url,
        "REDIS_URL": deps.settings.redis_url,
        "AINFERA_MASTER_KEY": deps.settings.master_key.get_secret_value(),
    }
    return lambda *words: fleet(*words, **told)


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def released(deps: Deps) -> AsyncIterator[None]:
    """Whatever a test engaged is released after it, here and everywhere."""
    yield
    async with deps.db.everyone() as session:
        for row in await engaged_switches(session):
            await release(session, row.scope, "the test is over", OPERATOR)
        await session.commit()
    deps.killswitch.missed()


def stopped(deps: Deps, tenant_id: str) -> bool:
    try:
        deps.killswitch.check(tenant_id)
    except KillswitchEngaged:
        return True
    return False


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not look():
            await asyncio.sleep(0.01)


async def test_every_ingress_hears_of_it(
    two: Ingresses, sign_up: SignUp, fleet_command: Fleet
) -> None:
    agent = await sign_up()
    for _, deps in two:
        assert not stopped(deps, agent["tenant_id"])
    done = await asyncio.to_thread(
        fleet_command, "killswitch", "engage", "--reason", "runaway", "--yes", "--json"
    )
    assert done.exit_code == 0, done.output
    assert orjson.loads(done.stdout) == {"scope": "all", "state": "engaged", "changed": True}
    for _, deps in two:
        await until(lambda deps=deps: stopped(deps, agent["tenant_id"]))  # type: ignore[misc]
    status = await asyncio.to_thread(fleet_command, "killswitch", "status", "--json")
    (engaged,) = orjson.loads(status.stdout)["engaged"]
    assert (engaged["scope"], engaged["reason"]) == ("all", "runaway")
    await asyncio.to_thread(fleet_command, "killswitch", "release", "--yes")
    for _, deps in two:
        await until(lambda deps=deps: not stopped(deps, agent["tenant_id"]))  # type: ignore[misc]


async def test_it_stops_one_tenant_alone(
    deps: Deps, client: httpx.AsyncClient, sign_up: SignUp, fleet_command: Fleet
) -> None:
    agent, other = await sign_up(), await sign_up()
    words = ("killswitch", "engage", "--tenant", agent["tenant_id"], *WHY, "--yes")
    assert (await asyncio.to_thread(fleet_command, *words)).exit_code == 0
    await until(lambda: stopped(deps, agent["tenant_id"]))
    assert not stopped(deps, other["tenant_id"])
    # reads go on
    wallet = await client.get(f"/v1/wallets/{agent['agent_id']}", headers=agent["auth"])
    assert wallet.status_code == 200


async def test_without_a_yes_nothing_is_done(
    deps: Deps, sign_up: SignUp, fleet_command: Fleet
) -> None:
    asked = await asyncio.to_thread(fleet_command, "killswitch", "engage", *WHY)
    assert asked.exit_code == 1
    unknown = ("killswitch", "engage", "--tenant", str(uuid4()), *WHY, "--yes")
    assert (await asyncio.to_thread(fleet_command, *unknown)).exit_code == 1
    async with deps.db.everyone() as session:
        assert await engaged_switches(session) == []


@pytest.mark.parametrize("reason", [(), ("--reason", ""), ("--reason", " ")])
async def test_without_a_reason_nothing_is_stopped(
    deps: Deps, fleet_command: Fleet, reason: tuple[str, ...]
) -> None:
    asked = await asyncio.to_thread(fleet_command, "killswitch", "engage", "--yes", *reason)
    assert asked.exit_code == 2
    assert "--reason" in asked.stderr
    async with deps.db.everyone() as session:
        assert await engaged_switches(session) == []


async def test_amounts_are_told_without_an_exponent(deps: Deps, fleet_command: Fleet) -> None:
    async with deps.db.everyone() as session:
        few = Decimal("0.000000002")
        assert await engage(session, ALL, "why", OPERATOR, spent_usd=few, threshold_usd=Decimal(0))
        await session.commit()
    told = await asyncio.to_thread(fleet_command, "killswitch", "status", "--json")
    (engaged,) = orjson.loads(told.stdout)["engaged"]
    assert (engaged["spent_usd"], engaged["threshold_usd"]) == ("0.000000002", "0.000000000")


async def test_a_switch_without_a_reason_leaves_no_colon_dangling(
    deps: Deps, fleet_command: Fleet
) -> None:
    """Of an older version, that did not ask for one."""
    async with deps.db.everyone() as session:
        assert await engage(session, ALL, "", OPERATOR)
        await session.commit()
    for word in ("status", "statement"):
        told = await asyncio.to_thread(fleet_command, "killswitch", word)
        assert f"by {OPERATOR}, who gave no reason" in told.stdout
        assert ": \n" not in told.stdout


async def test_an_ingress_that_starts_or_was_cut_off_reads_what_is_engaged(
    open_app: OpenApp, deps: Deps
) -> None:
    """Nobody was told: only Postgres knows, until the connection is made anew."""
    async with deps.db.everyone() as session:
        assert await engage(session, ALL, "", OPERATOR)
        assert not await engage(session, ALL, "", OPERATOR)
        await session.commit()
    async with open_app() as (_, fresh):
        assert stopped(fresh, str(uuid4()))
        async with deps.db.everyone() as session:
            assert await release(session, ALL, "", OPERATOR)
            assert not await release(session, ALL, "", OPERATOR)
            await session.commit()
        assert stopped(fresh, str(uuid4()))
        async with Redis.from_url(fresh.settings.redis_url) as admin:
            await cast(Any, admin).client_kill_filter(_type="pubsub")
        await until(lambda: not stopped(fresh, str(uuid4())))


async def test_an_order_to_stop_is_obeyed_while_postgres_is_away(deps: Deps) -> None:
    class Away:
        def session(self) -> Any:
            raise OSError("away")

    killswitch = Killswitch(cast(Any, Away()))
    killswitch.obey({"type": "killswitch", "scope": "all", "engaged": True})
    with pytest.raises(KillswitchEngaged):
        killswitch.check(str(uuid4()))
    killswitch.obey({"type": "key.revoked", "key_hash": ""})


async def test_acts_are_written_down(deps: Deps, fleet_command: Fleet) -> None:
    await asyncio.to_thread(fleet_command, "killswitch", "engage", "--reason", "why", "--yes")
    async with Redis.from_url(deps.settings.redis_url) as redis:
        pubsub = cast(Any, redis).pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(CONTROL_CHANNEL)
        await pubsub.get_message(timeout=1)
        await asyncio.to_thread(fleet_command, "killswitch", "release", "--yes")
        heard = None
        while heard is None:
            heard = await pubsub.get_message(timeout=5)
        await pubsub.aclose()
    assert orjson.loads(heard["data"]) == {"type": "killswitch", "scope": "all", "engaged": False}
    async with deps.db.everyone() as session:
        connection = await session.connection()
        rows = await connection.exec_driver_sql(
            "SELECT act, detail ->> 'reason' FROM operator_events ORDER BY at DESC LIMIT 2"
        )
        told = [tuple(row) for row in rows]
    assert told[::-1] == [("killswitch.engage", "why"), ("killswitch.release", "")]


async def test_the_closing_statement_over_http_and_by_command(
    deps: Deps, client: httpx.AsyncClient, sign_up: SignUp, fleet_command: Fleet
) -> None:
    agent = await sign_up()
    words = ("--tenant", agent["tenant_id"], *WHY, "--yes")
    done = await asyncio.to_thread(fleet_command, "killswitch", "engage", *words)
    assert done.exit_code == 0, done.output
    internal = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
    base = "/internal/killswitches"
    for path in (base, f"{base}/latest/statement"):
        assert (await client.get(path, headers=agent["auth"])).status_code == 401
    listed = (await client.get(base, headers=internal)).json()["killswitches"]
    newest = listed[0]
    assert (newest["scope"], newest["released_at"]) == (agent["tenant_id"], None)
    latest = (await client.get(f"{base}/latest/statement", headers=internal)).json()
    assert {name: latest[name] for name in newest} == newest
    assert latest["stopped"] == {"calls": 0, "inference_ids": []}
    for which in (newest["id"], "latest"):
        told = await asyncio.to_thread(fleet_command, "killswitch", "statement", which, "--json")
        assert orjson.loads(told.stdout) == latest
    read = (await asyncio.to_thread(fleet_command, "killswitch", "statement", "latest")).stdout
    assert read.splitlines() == [
        f"Killswitch {newest['id']} of tenant {agent['tenant_id']}:",
        f"  engaged {newest['engaged_at']} by {newest['engaged_by']}: runaway agent",
        "  no call was refused",
        "  no call was under way",
        "  still engaged",
    ]
    table = await client.get(f"{base}/{newest['id']}/statement?format=csv", headers=internal)
    by_command = await asyncio.to_thread(fleet_command, "killswitch", "statement", "--csv")
    assert table.text.splitlines() == by_command.stdout.splitlines()
    assert table.text.startswith("killswitch_id,call,inference_id")
    for unknown in (str(uuid4()), "x"):
        gone = await client.get(f"{base}/{unknown}/statement", headers=internal)
        assert gone.status_code == 404
    nothing = await asyncio.to_thread(fleet_command, "killswitch", "statement", str(uuid4()))
    assert nothing.exit_code == 1
    wrong = await asyncio.to_thread(fleet_command, "killswitch", "statement", "newest")
    assert wrong.exit_code == 2


def test_a_statement_is_in_whole_sentences() -> None:
    way = {"calls": 1, "running": 1, "let_in_late": 1, "cost_usd": "0.10", "held_usd": "0.20"}
    assert sentences({"stopped": {"calls": 1}, "under_way": way}) == [
        "1 call was refused",
        "1 call was under way (1 of them let in late); they cost 0.10 USD in all",
        "1 of them still runs and holds 0.20 USD",
    ]
    many = {**way, "calls": 3, "running": 2, "let_in_late": 0}
    assert sentences({"stopped": {"calls": 2}, "under_way": many}) == [
        "2 calls were refused",
        "3 calls were under way; they cost 0.10 USD in all",
        "2 of them still run and hold 0.20 USD",
    ]


async def test_where_it_was_never_engaged_that_is_said(
    deps: Deps, fleet_command: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr("workers.commands.killswitch_books.find_switch", nothing)
    told = await asyncio.to_thread(fleet_command, "killswitch", "statement")
    assert (told.exit_code, told.stderr) == (1, "The killswitch has never been engaged.\n")


async def test_thresholds_by_command(
    deps: Deps, client: httpx.AsyncClient, sign_up: SignUp, fleet_command: Fleet
) -> None:
    tenant = (await sign_up())["tenant_id"]

    async def threshold(*words: str) -> Result:
        return await asyncio.to_thread(fleet_command, "killswitch", "threshold", *words)

    done = await threshold("--tenant", tenant, "--usd", "12.5", "--yes", "--json")
    assert done.exit_code == 0, done.output
    (chosen,) = orjson.loads(done.stdout)["chosen"]
    assert (chosen["scope"], chosen["threshold_usd"]) == (tenant, "12.500000000")
    path = "/internal/killswitches/thresholds"
    internal = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}
    told = (await client.get(path, headers=internal)).json()
    (over_http,) = told["chosen"]
    assert over_http == {**chosen, "threshold_usd": "12.50"}
    assert told.keys() == {"window_seconds", "system_usd", "tenant_usd", "chosen"}
    assert (await client.get(path)).status_code == 401
    off = orjson.loads((await threshold("--usd", "off", "--yes", "--json")).stdout)
    assert (await client.get(path, headers=internal)).json()["system_usd"] is None
    assert off["system_usd"] is None
    assert {each["scope"] for each in off["chosen"]} == {tenant, ALL}
    for words in (("--usd", "0"), ("--usd", "1e-10"), ("--usd", "x"), ("--usd", "Infinity")):
        assert (await threshold(*words, "--yes")).exit_code == 1
    assert (await threshold("--tenant", str(uuid4()), "--usd", "1", "--yes")).exit_code == 1
    scopes: tuple[tuple[str, ...], ...] = (("--tenant", tenant), ())
    for whose in scopes:
        assert (await threshold(*whose, "--usd", "default", "--yes")).exit_code == 0
    assert orjson.loads((await threshold("--json")).stdout)["chosen"] == []


async def test_what_is_spent_is_shown_as_the_books_worker_says_it(
    deps: Deps, client: httpx.AsyncClient
) -> None:
    internal = {"x-ainfera-internal-key": deps.settings.internal_key.get_secret_value()}

    async def shown() -> dict[str, str]:
        text = (await client.get("/metrics", headers=internal)).text
        lines = [line for line in text.splitlines() if line.startswith("ainfera_cost_killswitch_")]
        return dict(line.removeprefix("ainfera_cost_killswitch_").split() for line in lines)

    assert (await shown())["spent_usd"] == "NaN"
    await tell_spending(deps.redis, Spending(Decimal("1.5"), None, Decimal("0.25")))
    found = await shown()
    assert (found["spent_usd"], found["threshold_usd"]) == ("1.5", "+Inf")
    assert found["closest_tenant_ratio"] == "0.25"
    await tell_spending(deps.redis, Spending(Decimal("1.5"), Decimal(4), Decimal(0)))
    assert (await shown())["threshold_usd"] == "4.0"
