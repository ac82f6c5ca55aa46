"""Random faults under a random load, from one seed; then every promise is asked for.

    chaos(seed, minutes) -> Report: `violations` must be 0

The seed decides kinds, moments and victims. Processes run at their own pace, so a seed repeats the
schedule and the load, not each interleaving.
"""

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg

from shared.fleet import list_workers
from tests.faults.clients import Agent, Clients
from tests.faults.doomed import POINTS
from tests.faults.fleet import HOLD_TTL_S, LEASE_S, Fleet, running_fleet
from tests.faults.promises import Books, Findings, ask_clients, ask_stores
from tests.faults.provider import Mood, NumberingProvider, running_provider

CLIENTS = 20
AGENTS = 5
POOR_USD = "0.05"
# what a hold that nobody ends may last, and the books' round after it
SETTLING_S = HOLD_TTL_S + 15 + 15.0
WORKERS = ("inference1", "inference2")
GRANTS = "00000000-0000-0000-0000-000000000002"

Fault = Callable[[Fleet, random.Random], Awaitable[None]]


async def kill_worker(fleet: Fleet, rng: random.Random) -> None:
    fleet.kill(rng.choice(WORKERS))


async def doom_worker(fleet: Fleet, rng: random.Random) -> None:
    fleet.doom(rng.choice(WORKERS), rng.choice(list(POINTS)), rng.randint(1, 4))


async def freeze_worker(fleet: Fleet, rng: random.Random) -> None:
    process = fleet.processes[rng.choice(WORKERS)]
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(LEASE_S * rng.uniform(1.2, 2.5))
    process.send_signal(signal.SIGCONT)


async def kill_ingress(fleet: Fleet, rng: random.Random) -> None:
    fleet.kill(rng.choice(("web1", "web2")))


async def kill_books(fleet: Fleet, rng: random.Random) -> None:
    fleet.kill("books")


async def restart_valkey(fleet: Fleet, rng: random.Random) -> None:
    await fleet.stop_server("valkey", rng.choice((signal.SIGKILL, signal.SIGTERM)))
    await asyncio.sleep(rng.uniform(0, 1))
    await fleet.start_server("valkey")


async def lose_valkey(fleet: Fleet, rng: random.Random) -> None:
    async with fleet.redis as redis:
        await redis.flushall()


async def cut_connection(fleet: Fleet, rng: random.Random) -> None:
    async with fleet.redis as redis:
        mine = await redis.client_id()
        ids = [each["id"] for each in await redis.client_list() if each["id"] != str(mine)]
        if ids:
            await redis.client_kill_filter(_id=rng.choice(ids))


async def crash_postgres(fleet: Fleet, rng: random.Random) -> None:
    await fleet.stop_server("postgres", signal.SIGQUIT)
    await asyncio.sleep(rng.uniform(0, 2))
    await fleet.start_server("postgres")


FAULTS: dict[str, tuple[Fault, int]] = {
    "worker kill -9": (kill_worker, 3),
    "worker kill -9 at a point": (doom_worker, 8),
    "worker frozen past its lease": (freeze_worker, 3),
    "ingress kill -9": (kill_ingress, 2),
    "books kill -9": (kill_books, 1),
    "Valkey restart": (restart_valkey, 2),
    "Valkey total loss": (lose_valkey, 3),
    "one connection killed": (cut_connection, 4),
    "Postgres crash": (crash_postgres, 2),
}


@dataclass
class Report:
    """What happened in one run, and what of it broke a promise."""

    seed: int
    seconds: float
    findings: Findings
    faults: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    moods: Counter[Mood] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    states: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    asked: int = 0
    again: int = 0
    settled: int = 0

    @property
    def violations(self) -> int:
        return self.findings.violations

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.kinds.most_common())
        ends = ", ".join(f"{name} {count}" for name, count in self.ends.most_common())
        moods = [f"{mood} {count}" for mood, count in self.moods.items() if mood is not Mood.FINE]
        ratio = self.asked / self.settled if self.settled else 0
        return "\n".join(
            [
                f"seed {self.seed}, {self.seconds:.0f} s",
                "| fault | times |",
                "| --- | --- |",
                *[f"| {name} | {count} |" for name, count in self.faults.most_common()],
                f"| provider faults | {len(moods) and ', '.join(moods)} |",
                f"| processes killed | {self.deaths.total()} {dict(self.deaths)} |",
                f"| calls of clients | {self.calls}: {kinds} |",
                f"| what they were told | {ends} |",
                f"| jobs by their end | {self.states} |",
                f"| provider calls per settled call | {self.asked}/{self.settled} = {ratio:.3f} |",
                f"| of these, asked again though the provider was not at fault | {self.again} |",
                f"| **violations** | **{self.violations}** |",
                "| promise | violations |",
                "| --- | --- |",
                *self.findings.lines(),
            ]
        )


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


async def chaos(
    seed: int,
    seconds: float = 35.0,
    *,
    only: str = "",
    clients: int = CLIENTS,
    pause_s: float = 1.2,
) -> Report:
    """One run. `only` are the faults to make, by a part of their names; all if it is empty."""
    with tempfile.TemporaryDirectory(prefix="fleet-chaos-") as home:
        async with running_provider() as provider, running_fleet(Path(home), provider) as fleet:
            return await _run(fleet, provider, seed, seconds, only, clients, pause_s)


async def _run(
    fleet: Fleet,
    provider: NumberingProvider,
    seed: int,
    seconds: float,
    only: str,
    clients: int,
    pause_s: float,
) -> Report:
    rng, began = random.Random(seed), time.monotonic()
    load = Clients(fleet.urls, await _agents(fleet), provider, random.Random(seed + 1))
    report = Report(seed, 0, Findings())
    supervisor = asyncio.create_task(fleet.supervise())
    loading = asyncio.create_task(load.load(clients, seconds))
    await _break(fleet, rng, report, loading, seconds, only, pause_s)
    await loading
    settled_in = await _settle(fleet)
    say(f"load has ended, {load.calls} calls; settled after {settled_in:.1f} s")
    if supervisor.done():
        supervisor.result()
    await _ask(fleet, load, provider, report)
    supervisor.cancel()
    report.seconds = time.monotonic() - began
    return report


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


async def _break(
    fleet: Fleet,
    rng: random.Random,
    report: Report,
    loading: "asyncio.Task[None]",
    seconds: float,
    only: str,
    pause_s: float,
) -> None:
    """One fault after the other, with pauses between, until the load ends."""
    table = {name: made for name, made in FAULTS.items() if only in name}
    ends_at, told_at = time.monotonic() + seconds - 1, time.monotonic()
    await asyncio.sleep(1.5)
    while time.monotonic() < ends_at and not loading.done():
        name = rng.choices(list(table), [weight for _, weight in table.values()])[0]
        report.faults[name] += 1
        say(name)
        await table[name][0](fleet, rng)
        await asyncio.sleep(rng.uniform(0.3, 2 * pause_s))
        if time.monotonic() - told_at > 60:
            told_at = time.monotonic()
            say(f"{report.faults.total()} faults, {fleet.deaths.total()} deaths")


SETTLED = """
SELECT NOT EXISTS (SELECT FROM inferences WHERE state = 'held')
   AND NOT EXISTS (SELECT FROM kept_calls WHERE state = 'accepted')
"""


async def _settle(fleet: Fleet) -> float:
    """Wait until nothing is open any more, for as long as that may take; how long it took."""
    began = time.monotonic()
    for name in WORKERS:  # what was ordered and has not happened does not happen now
        fleet.order(name).write_text("nowhere 1", "ascii")
    await asyncio.sleep(2)
    connection = await asyncpg.connect(fleet.servers.superuser_url)
    try:
        while time.monotonic() - began < SETTLING_S:
            if await connection.fetchval(SETTLED) and not await _jobs(fleet):
                break
            await asyncio.sleep(0.25)
    finally:
        await connection.close()
    return time.monotonic() - began


async def _jobs(fleet: Fleet) -> bool:
    async with fleet.redis as redis:
        return [key async for key in redis.scan_iter(match="*inference}:job:*", count=1000)] != []


async def _ask(fleet: Fleet, load: Clients, provider: NumberingProvider, report: Report) -> None:
    findings, heard = report.findings, load.heard
    connection = await asyncpg.connect(fleet.servers.superuser_url)
    try:
        async with fleet.redis as redis:
            await ask_stores(connection, redis, findings)
            alive = Counter(worker.kind for worker in await list_workers(redis))
        books = await Books.read(connection)
    finally:
        await connection.close()
    ask_clients(heard, provider, books, findings)
    findings.note("no process ends by itself", fleet.ended)
    missing = [f"{alive}"] if alive["inference"] < 2 or alive["books"] < 1 else []
    findings.note("all workers are alive", missing)
    report.deaths, report.moods, report.asked = fleet.deaths, provider.moods, provider.asked
    report.again = provider.again
    report.calls, report.settled = len(heard), len(books.receipts)
    report.kinds = Counter(each.kind for each in heard)
    report.ends = Counter(" and ".join(each.ends) or "nothing" for each in heard)
    report.states = dict(Counter(books.state.values()))
