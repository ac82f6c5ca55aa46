"""`python -m tests.bench.settling`: settlements a second, on one hot agent and over a hundred.

A Postgres of its own that syncs every commit to the disk, and nothing else of the fleet. The same
calls are settled one by one, each in a statement of its own over a few connections, and by the
committers that the workers use, which take whatever waits into one statement. Opened and settled
means that each call is held for first, by the same means, without and with thresholds of the
killswitch that are never reached, so that all holds take turns. Every call has an outcome, a
receipt and its audit events, as a routed call has. At the end the books are proved.

    a second   calls that were settled, durably, a second
    p50, p99   from asking for a settlement to knowing that it is durable, with all tasks at work
"""

import argparse
import asyncio
import base64
import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

import migrations
from shared.config import Settings
from shared.db import APP_ROLE, Committer, Connection, Database, connect
from shared.domain.books import in_order
from shared.embedded import embedded_servers
from shared.fleet import quantile
from tests.bench.report import aligned
from tests.workers.ledger_cases import Agent, ending, hold, new_agent, results
from workers.ledger_check import prove

HEADINGS = ["", "calls", "a second", "to one by one", "p50 ms", "p99 ms"]
OPEN, SETTLE = "open_inferences", "settle_inferences"
PREPARED_AT_ONCE = 32
# so many more calls where they are batched, that both take about as long
MORE_BATCHED = 4
# of the killswitch, for each tenant and for all: never reached, so that all holds take turns
FAR_THRESHOLDS = '{"window_s": 3600, "tenant_usd": "1000000", "system_usd": "1000000"}'

Submit = Callable[[str, dict[str, Any]], Awaitable[str]]


@dataclass(slots=True)
class Run:
    """What one way of settling came to."""

    name: str
    calls: int
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.calls / self.seconds

    def cells(self, beside: "Run") -> list[str]:
        p50, p99 = (quantile(sorted(self.waits), share) or 0.0 for share in (0.5, 0.99))
        return [
            self.name,
            f"{self.calls:,}",
            f"{self.rate:,.0f}",
            f"{self.rate / beside.rate:.1f}",
            f"{p50 * 1000:.1f}",
            f"{p99 * 1000:.1f}",
        ]


# -- two ways to ask ----------------------------------------------------------------------------


@asynccontextmanager
async def one_by_one(url: str, connections: int) -> AsyncIterator[Submit]:
    """A statement for each call, over so many connections."""
    async with AsyncExitStack() as stack:
        free: list[Connection] = []
        turn = asyncio.Semaphore(connections)
        for _ in range(connections):
            connection = await connect(url, APP_ROLE, "bench")
            stack.push_async_callback(connection.close)
            free.append(connection)

        async def submit(function: str, item: dict[str, Any]) -> str:
            # in the order of asking
            async with turn:
                connection = free.pop()
                try:
                    return (await results(connection, function, item))[0]
                finally:
                    free.append(connection)

        yield submit


@asynccontextmanager
async def batched(url: str, workers: int, guard: str | None = None) -> AsyncIterator[Submit]:
    """The committers of so many workers, a connection for holds and one for settlements each."""
    db = Database(bench_settings(url))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(db.aclose)
        committers: dict[str, list[Committer]] = {OPEN: [], SETTLE: []}
        for function, found in committers.items():
            for _ in range(workers):
                committer = Committer(db, function, more=guard if function == OPEN else None)
                await committer.start()
                stack.push_async_callback(committer.aclose)
                found.append(committer)

        async def submit(function: str, item: dict[str, Any]) -> str:
            # a call stays with its worker
            which = hash(item["inference_id"]) % workers
            return str((await committers[function][which].submit(item))["result"])

        yield submit


def bench_settings(url: str) -> Settings:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return Settings(database_url=url, master_key=key)


# -- the measurement ----------------------------------------------------------------------------


async def measure(
    name: str, submit: Submit, items: list[tuple[Agent, dict[str, Any]]], tasks: int, opens: bool
) -> Run:
    """Settle all items by so many tasks, each waiting for its own answer; hold first if asked."""
    run, waiting = Run(name, len(items)), iter(items)

    async def task(left: Iterator[tuple[Agent, dict[str, Any]]]) -> None:
        for agent, item in left:
            if opens and (told := await submit(OPEN, item)) != "OPENED":
                raise SystemExit(f"A hold was refused: {told}")
            done = ending(agent, item["inference_id"], "0.001")
            asked = time.perf_counter()
            if (told := await submit(SETTLE, done)) != "SETTLED":
                raise SystemExit(f"A call was not settled: {told}")
            run.waits.append(time.perf_counter() - asked)

    begun = time.perf_counter()
    await asyncio.gather(*(task(waiting) for _ in range(tasks)))
    run.seconds = time.perf_counter() - begun
    return run


async def calls_of(
    db: Connection, agents: list[Agent], calls: int, opened: bool
) -> list[tuple[Agent, dict[str, Any]]]:
    """Holds, one agent after the other; in the database already if asked."""
    found = [(agents[n % len(agents)], n) for n in range(calls)]
    items = [(agent, hold(agent, "0.002", ttl_s=3600)) for agent, _ in found]
    for first in range(0, calls if opened else 0, PREPARED_AT_ONCE):
        batch = [item for _, item in items[first : first + PREPARED_AT_ONCE]]
        assert set(await results(db, OPEN, *batch)) == {"OPENED"}
    return items


async def compared(
    db: Connection, url: str, agents: list[Agent], opens: bool, options: argparse.Namespace
) -> AsyncIterator[Run]:
    """The calls of some agents, settled one by one and batched."""
    what = f"{'opened and settled' if opens else 'settled'}, {len(agents)} agent"
    ways = {
        "one by one": (options.calls, one_by_one(url, options.connections)),
        "batched": (options.calls * MORE_BATCHED, batched(url, options.workers)),
    }
    if opens:
        under = batched(url, options.workers, FAR_THRESHOLDS)
        ways["batched, thresholds"] = (options.calls * MORE_BATCHED, under)
    for way, (calls, connected) in ways.items():
        # the first calls find plans and caches cold
        warm = await calls_of(db, agents, options.tasks, not opens)
        items = await calls_of(db, agents, calls, not opens)
        async with connected as submit:
            await measure("", submit, warm, options.tasks, opens)
            name = f"{what}{'s' if len(agents) > 1 else ''}, {way}"
            yield await measure(name, submit, items, options.tasks, opens)


async def compare(url: str, options: argparse.Namespace) -> bool:
    """Print the table; whether the books were in order afterwards."""
    db = await connect(url, APP_ROLE, "bench")
    table = [HEADINGS]
    for opens in (False, True):
        for crowd in (1, options.agents):
            agents = [await new_agent(db, "1000") for _ in range(crowd)]
            runs = [run async for run in compared(db, url, agents, opens, options)]
            table += [run.cells(runs[0]) for run in runs]
            sys.stderr.write("".join(f"{run.name}: {run.rate:,.0f} a second\n" for run in runs))
    names = ("server_version", "fsync", "synchronous_commit")
    version, *synced = [await db.fetchval("SELECT current_setting($1)", name) for name in names]
    proved = await prove(db)
    await db.close()
    holds = f"{sum(each.holds for each in proved)} of {len(proved)} proofs hold afterwards"
    sys.stdout.write(
        f"{aligned(table)}\n\n"
        f"Postgres {version}, fsync {synced[0]}, synchronous_commit {synced[1]}; "
        f"{options.tasks} tasks, one by one over {options.connections} connections, batched by "
        f"{options.workers} workers' committers; {holds}.\n"
    )
    return in_order(proved)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.settling", description="Settlements a second."
    )
    parser.add_argument("--calls", type=int, default=1500, help="one by one; batched four times")
    parser.add_argument("--agents", type=int, default=100, help="beside the one hot agent")
    parser.add_argument("--tasks", type=int, default=128, help="that wait for settlements at once")
    parser.add_argument("--connections", type=int, default=4, help="of those one by one")
    parser.add_argument("--workers", type=int, default=2, help="with a committer each")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fleet-bench-") as home,
        embedded_servers(Path(home), valkey=False) as servers,
    ):
        migrations.upgrade(servers.owner_url)
        in_books = uvloop.run(compare(servers.app_url, options))
    sys.exit(0 if in_books else 1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
