"""`python -m tests.bench.footprint`: what a number of streams at once costs, by process and store.

The real processes on stores of their own, one ingress, one inference worker, one books worker,
and a fake provider. Half-way through the streams it counts connections and memory; over all of
them the stores' own counters say how many commands and transactions they were.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
from redis.asyncio import Redis

import migrations
from shared.catalog import seed_catalog
from shared.descriptors import raise_descriptor_limit
from shared.embedded import Servers, embedded_servers
from tests.bench.fake_provider import Pace, prompt
from tests.bench.stack import Stack, Stores, running_provider, running_stack
from tests.bench.usage import Meter, difference

_WARM = 10
_SETTLED_S = 1.5  # the last jobs are ended and the last counters are in


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at everything: connections of the stores, megabytes and descriptors by process."""

    valkey_clients: int
    postgres_clients: int
    memory_mb: Mapping[str, float]
    descriptors: Mapping[str, int]
    valkey_mb: float


class Witness:
    """Looks at a running stack from outside, through connections of its own."""

    def __init__(self, stack: Stack, servers: Servers, valkey: Redis, postgres: Any) -> None:
        self._stack = stack
        self._valkey = valkey
        self._postgres = postgres
        stores = {name: server.pid for name, server in servers.running.items()}
        self.meter = Meter({**stack.pids(), **stores})

    async def look(self) -> Seen:
        clients: list[Any] = await self._valkey.client_list()
        memory: dict[str, Any] = await self._valkey.info("memory")
        connected: int = await self._postgres.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'ainfera%'"
        )
        return Seen(
            valkey_clients=len(clients) - 1,
            postgres_clients=connected,
            memory_mb=self.meter.memory_mb(),
            descriptors={n: psutil.Process(p).num_fds() for n, p in self._stack.pids().items()},
            valkey_mb=round(memory["used_memory"] / 2**20, 2),
        )

    async def counters(self) -> dict[str, float]:
        """Calls of each Valkey command, and `transactions` of Postgres, since they started."""
        said: dict[str, Any] = await self._valkey.info("commandstats")
        counted = {name.removeprefix("cmdstat_"): float(v["calls"]) for name, v in said.items()}
        counted["transactions"] = await self._postgres.fetchval(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        )
        return counted


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[tuple[Stack, Witness]]:
    """Everything, in a folder; stopped when the block ends."""
    logs = home / "logs"
    logs.mkdir()
    with embedded_servers(home / "stores") as servers, running_provider(logs) as (_, port):
        await asyncio.to_thread(migrations.upgrade, servers.owner_url)
        await seed_catalog(servers.owner_url)
        ways = dict.fromkeys(
            ("ingress", "inference", "books"), Stores(servers.app_url, servers.redis_url)
        )
        provider = {"anthropic": f"http://127.0.0.1:{port}"}
        postgres = await asyncpg.connect(servers.superuser_url)
        async with (
            Redis.from_url(servers.redis_url) as valkey,
            running_stack(logs, provider, ways, settings={"JOBS_PER_WORKER": "4096"}) as stack,
        ):
            yield stack, Witness(stack, servers, valkey, postgres)
        await postgres.close()


async def stream(client: httpx.AsyncClient, body: Mapping[str, Any]) -> bool:
    """One streamed call; whether it was answered to its end."""
    last = b""
    async with client.stream("POST", "/v1/messages", json=body) as response:
        async for chunk in response.aiter_bytes():
            last = chunk
    return response.status_code == 200 and b"message_stop" in last


async def measure(streams: int, pace: Pace, home: Path) -> None:
    body = {
        "model": "ainfera-inference",
        "max_tokens": 4 * pace.tokens,
        "stream": True,
        "messages": [{"role": "user", "content": prompt(pace)}],
    }
    lasts_s = (pace.first_ms + pace.tokens * pace.each_ms) / 1000
    async with (
        running(home) as (stack, witness),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{stack.port}",
            headers={"x-api-key": stack.api_key},
            limits=httpx.Limits(max_connections=None),
            timeout=lasts_s + 120,
            trust_env=False,
        ) as client,
    ):
        await asyncio.gather(*[stream(client, body) for _ in range(_WARM)])
        idle, counted, cpu = await witness.look(), await witness.counters(), witness.meter.cpu_s()
        calls = [asyncio.create_task(stream(client, body)) for _ in range(streams)]
        await asyncio.sleep(lasts_s * 0.6)
        busy = await witness.look()
        complete = sum(await asyncio.gather(*calls))
        await asyncio.sleep(_SETTLED_S)
        used = difference(witness.meter.cpu_s(), cpu)
        after = await witness.counters()
    grown = {name: value - counted.get(name, 0) for name, value in after.items()}
    say(report(streams, complete, idle, busy, grown, used))


def report(
    streams: int,
    complete: int,
    idle: Seen,
    busy: Seen,
    grown: Mapping[str, float],
    used: Mapping[str, float],
) -> str:
    lines = [f"{streams} streams, {complete} complete"]
    lines.append(f"connections to Valkey    {idle.valkey_clients} idle, {busy.valkey_clients} busy")
    lines.append(
        f"connections to Postgres  {idle.postgres_clients} idle, {busy.postgres_clients} busy"
    )
    lines.append(f"Valkey's own data        {idle.valkey_mb} MB idle, {busy.valkey_mb} MB busy")
    for name, memory in busy.memory_mb.items():
        each = (memory - idle.memory_mb[name]) * 1024 / streams
        files = busy.descriptors.get(name)
        opened = f", {files} descriptors" if files is not None else ""
        lines.append(
            f"{name:10} {idle.memory_mb[name]:6.1f} MB idle, {memory:6.1f} MB busy"
            f" ({each:.0f} kB a stream), {used[name] * 1000 / streams:.1f} CPU ms a stream{opened}"
        )
    lines.append("a stream, by the stores' own counters:")
    for name, count in sorted(grown.items(), key=lambda pair: -pair[1]):
        if count / streams >= 0.05:
            lines.append(f"  {name:20} {count / streams:8.2f}")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench.footprint", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="at once")
    parser.add_argument("--tokens", type=int, default=100, help="of each stream")
    parser.add_argument("--each-ms", type=float, default=100, help="between two tokens")
    told = parser.parse_args()
    raise_descriptor_limit()
    pace = Pace(told.tokens, told.each_ms, told.each_ms)
    with tempfile.TemporaryDirectory(prefix="fleet-footprint-") as home:
        asyncio.run(measure(told.streams, pace, Path(home)))


if __name__ == "__main__":
    main()
