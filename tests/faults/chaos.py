"""Random faults under a random load, from one seed; then every promise is asked for.

    chaos(seed, seconds) -> Report: `violations` must be 0

The seed decides kinds, moments and victims. Processes run at their own pace, so a seed repeats the
schedule and the load, not each interleaving. A long run goes in rounds on the same fleet: after
each the load pauses, what is open ends, the promises are asked for, what was heard is let go.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg

from tests.faults.breaking import FAULTS, WORKERS, Scene, deck
from tests.faults.clients import PATIENCE_S, POISONED, Agent, Clients
from tests.faults.fleet import Fleet, running_fleet
from tests.faults.measuring import measure
from tests.faults.promises import Books, ask_clients, ask_stores
from tests.faults.provider import running_provider
from tests.faults.report import Report

CLIENTS = 20
AGENTS = 5
POOR_USD = "0.05"
ROUND_S = 300.0
# from here on a run is long: Postgres stays away for half a minute, not for a moment
LONG_S = 180.0
# which is more than a worker waits for a hold
AWAY_S, MOMENT_S = 30.0, 6.0
# a hold outlives the longest absence, as it does with the product's settings
LEAST_HOLD_S = 30
# where a run makes a few faults only, as those without a guard do
FEW_S = 12
# after which the books have looked at all that has run out
BOOKS_S = 30.0
# what is said of one finding; the table has more
LINE = 700
# a job that takes this many workers with it is set aside
MOST_KILLED = 3
GRANTS = "00000000-0000-0000-0000-000000000002"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do in a run. `only` are the faults to make, by a part of their names."""

    seconds: float
    only: str = ""
    clients: int = CLIENTS
    round_s: float = ROUND_S
    measured: bool = True

    @property
    def pause_s(self) -> float:
        return 1.2 if self.seconds >= LONG_S else 0.6

    @property
    def away_s(self) -> float:
        return AWAY_S if self.seconds >= LONG_S else MOMENT_S

    @property
    def hold_ttl_s(self) -> int:
        least = FEW_S if self.only else LEAST_HOLD_S
        return least + int(self.away_s)


async def chaos(seed: int, plan: Plan, log: Path | None = None) -> Report:
    """One run of a fleet of its own."""
    report = Report(seed, log=log)
    with tempfile.TemporaryDirectory(prefix="fleet-chaos-") as home:
        async with (
            running_provider() as provider,
            running_fleet(Path(home), provider, plan.hold_ttl_s) as fleet,
        ):
            agents = await _agents(fleet)
            load = Clients(fleet.urls, agents, provider, random.Random(seed + 1))
            load.patience_s = PATIENCE_S + plan.away_s
            scene = Scene(fleet, load, random.Random(seed), plan.away_s)
            await _rounds(scene, plan, report)
    return report


async def _rounds(scene: Scene, plan: Plan, report: Report) -> None:
    fleet, load, began = scene.fleet, scene.load, time.monotonic()
    supervisor = asyncio.create_task(fleet.supervise())
    ends_at, cards = began + plan.seconds, list[str]()
    async with load.connected():
        while (left_s := ends_at - time.monotonic()) > 1 or not report.rounds:
            report.rounds += 1
            seconds = min(plan.round_s, max(left_s, 1))
            loading = asyncio.create_task(load.load(plan.clients, seconds))
            await _break(scene, report, loading, seconds, plan, cards)
            await loading
            await _ask_round(scene, plan, report)
            report.seconds = time.monotonic() - began
            if supervisor.done():
                supervisor.result()
    supervisor.cancel()


async def _break(
    scene: Scene,
    report: Report,
    loading: "asyncio.Task[None]",
    seconds: float,
    plan: Plan,
    cards: list[str],
) -> None:
    """One fault after the other, with pauses between, until the load ends."""
    rng, ends_at = scene.rng, time.monotonic() + seconds - 1
    await asyncio.sleep(min(1.5, seconds / 4))
    while time.monotonic() < ends_at and not loading.done():
        if not cards:
            cards += deck(rng, plan.only, scene.fleet.disk is not None)
        name = cards.pop()
        report.faults[name] += 1
        if report.log is None:
            report.say(name)
        await FAULTS[name].make(scene)
        await asyncio.sleep(rng.uniform(0.3, 2 * plan.pause_s))


async def _ask_round(scene: Scene, plan: Plan, report: Report) -> None:
    fleet, load = scene.fleet, scene.load
    settled_in = await _settle(fleet, plan)
    await fleet.ready()
    silent = await fleet.all_alive(15)
    report.findings.note("all workers are alive", silent)
    if plan.measured:
        await measure(fleet, load, report.times, report.findings)
        await _settle(fleet, plan)
    report.calls += len(load.heard)
    await _ask(scene, report)
    load.forget()
    news = [*report.findings.news()]
    for broken in news:
        report.say(broken[:LINE])
    if news:
        report.say(f"logs are kept in {_kept_logs(fleet, f'{report.seed}-{report.rounds}')}")
    memory = ", ".join(f"{name} {size}" for name, size in report.memory_mb.items())
    report.say(
        f"round {report.rounds}: {report.faults.total()} faults, {report.deaths.total()} killed, "
        f"{report.calls} calls, open calls ended within {settled_in:.1f} s, "
        f"{report.settled} settled, ratio {report.ratio:.3f}, {report.violations} violations; "
        f"MB: {memory}, this process {fleet.own_memory_mb()}"
    )


async def _agents(fleet: Fleet) -> list[Agent]:
    """Each of a tenant of its own; the last has money for a few calls at once only."""
    agents = []
    async with aiohttp.ClientSession() as session:
        for number in range(AGENTS):
            url = f"{fleet.urls[0]}/v1/agents/signup"
            async with session.post(url, json={"agent_handle": f"agent{number}"}) as answer:
                said = await answer.json()
                agents.append(Agent(said["agent_id"], said["api_key"], number == AGENTS - 1))
    connection = await asyncpg.connect(fleet.servers.superuser_url)
    try:
        taken = await connection.fetchval(
            "SELECT (transfer_funds(new_id(), a.id, $2::uuid, a.balance - $3::numeric, "
            "'grant_return')).result FROM accounts a WHERE a.agent_id = $1::uuid",
            agents[-1].id,
            GRANTS,
            POOR_USD,
        )
        assert taken == "CREATED", taken
    finally:
        await connection.close()
    return agents


SETTLED = """
SELECT NOT EXISTS (SELECT FROM inferences WHERE state = 'held')
   AND NOT EXISTS (SELECT FROM kept_calls WHERE state = 'accepted')
"""


async def _settle(fleet: Fleet, plan: Plan) -> float:
    """Wait until nothing is open any more, for as long as that may take; how long it took."""
    began = time.monotonic()
    for name in WORKERS:  # what was ordered and has not happened does not happen now
        fleet.order(name).write_text("nowhere 1", "ascii")
    await asyncio.sleep(2)
    connection = await asyncpg.connect(fleet.servers.superuser_url)
    try:
        while time.monotonic() - began < plan.hold_ttl_s + BOOKS_S:
            if await connection.fetchval(SETTLED) and not await _jobs(fleet):
                break
            await asyncio.sleep(0.25)
    finally:
        await connection.close()
    return time.monotonic() - began


async def _jobs(fleet: Fleet) -> bool:
    async with fleet.redis as redis:
        return [key async for key in redis.scan_iter(match="*inference}:job:*", count=1000)] != []


async def _ask(scene: Scene, report: Report) -> None:
    findings, heard, provider = report.findings, scene.load.heard, scene.load.provider
    connection = await asyncpg.connect(scene.fleet.servers.superuser_url)
    try:
        async with scene.fleet.redis as redis:
            await ask_stores(connection, redis, findings)
        books = await Books.read(connection, {h.inference_id for h in heard if h.inference_id})
        rows = await connection.fetch("SELECT state, count(*) FROM inferences GROUP BY 1")
        report.states = {row["state"]: row["count"] for row in rows}
        report.settled = await connection.fetchval("SELECT count(*) FROM receipts")
    finally:
        await connection.close()
    ask_clients(heard, provider, books, findings)
    findings.note("no process ends by itself", scene.fleet.ended)
    findings.note("another body under a known key is refused", _let_through(scene))
    losses = report.faults["Valkey total loss"] + report.faults["Valkey restart"]
    findings.note(f"a poison job kills {MOST_KILLED} workers at most", _poisoned(scene, losses))
    report.deaths, report.moods = scene.fleet.deaths, provider.moods
    report.asked, report.again = provider.asked, provider.again
    report.kinds.update(each.kind for each in heard)
    report.ends.update(" and ".join(each.ends) or "nothing" for each in heard)
    report.told_away.update(heard.status for heard in scene.comers)
    scene.comers.clear()
    report.conflicts = scene.load.conflicts
    report.seen, report.memory_mb = scene.seen, scene.fleet.memory_mb()


def _let_through(scene: Scene) -> list[str]:
    """409; or 503, where the database could not be asked."""
    told = scene.load.conflicts
    return [f"status {status}: {n}" for status, n in told.items() if status not in (409, 503, 529)]


def _poisoned(scene: Scene, losses: int) -> list[str]:
    """Of a call that is kept, Postgres counts the attempts; of others a lost queue forgets them."""
    notes = scene.fleet.home / "poisoned"
    killed = Counter(notes.read_text("ascii").split() if notes.exists() else ())
    scene.seen["workers poisoned"] = killed.total()
    most = {
        str(heard.call): MOST_KILLED + (0 if heard.key else losses)
        for heard in scene.load.heard
        if heard.kind == POISONED
    }
    return [f"call {call}: {n}" for call, n in killed.items() if n > most.get(call, n)]


def _kept_logs(fleet: Fleet, name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"fleet-chaos-logs-{name}"
    folder.mkdir(exist_ok=True)
    for log in (*fleet.home.glob("*.log"), *(fleet.home / "servers" / "logs").glob("*.log")):
        with suppress(OSError):
            shutil.copy(log, folder)
    return folder
