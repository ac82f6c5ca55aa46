"""A fleet on servers of its own that can be broken: two ingresses, two workers, the books."""

import asyncio
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

import migrations
from shared.catalog import seed_catalog
from shared.embedded import Servers, embedded_servers
from shared.processes import tail
from tests.e2e.stack import environment, free_port, start
from tests.faults.provider import NumberingProvider

LEASE_S = 1.5
CALL_DEADLINE_S = 6.0
HOLD_TTL_S = 12
COMMANDS = {
    "web1": ["ingress"],
    "web2": ["ingress"],
    "inference1": ["tests.faults.doomed", "inference"],
    "inference2": ["tests.faults.doomed", "inference"],
    "books": ["workers", "books"],
}
SETTINGS = {
    "LEASE_SECONDS": str(LEASE_S),
    "CALL_DEADLINE_SECONDS": str(CALL_DEADLINE_S),
    "IDLE_DEADLINE_SECONDS": "2",
    "CONNECT_TIMEOUT_SECONDS": "2",
    "HOLD_TTL_SECONDS": str(HOLD_TTL_S),
    "REDRIVE_AFTER_SECONDS": "1",
    "REPLAY_SECONDS": "60",
    "PREVIEW_GRANT_USD": "500",
    "PREVIEW_GRANT_INFERENCES": "1000000",
    "MAX_QUEUE_AGE_SECONDS": "20",
    "ANTHROPIC_API_KEY": "sk-ant-standin",
    "OPENAI_API_KEY": "sk-standin",
}
# What was committed survives the end of Postgres, though not that of the machine.
POSTGRES = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
START_PATIENCE_S = 60.0
START_S = 10.0


@dataclass
class Fleet:
    """The processes, by name; `restarts` says who ends when, and is started again."""

    home: Path
    servers: Servers
    told: dict[str, str]
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)
    away_at: float = 0.0
    closing: bool = False

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports.values()]

    @property
    def redis(self) -> Redis:
        client: Redis = Redis.from_url(self.servers.redis_url)
        return client

    def order(self, name: str) -> Path:
        return self.home / f"{name}.doom"

    def begin(self, name: str) -> None:
        told = {**self.told, "AINFERA_DOOM_FILE": str(self.order(name))}
        if name in self.ports:
            told["PORT"] = str(self.ports[name])
        self.began[name] = time.monotonic()
        self.processes[name] = start(COMMANDS[name], self.home / f"{name}.log", told)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)

    def doom(self, name: str, point: str, passes: int) -> None:
        """Let a worker end itself at a point; whether it comes to it is up to the load."""
        order = self.order(name)
        order.with_suffix(".new").write_text(f"{point} {passes}", "ascii")
        order.with_suffix(".new").replace(order)

    async def supervise(self) -> None:
        """Start again whoever has ended, as an orchestrator does; note whom nobody killed."""
        while not self.closing:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    self.deaths[name] += 1
                    if process.returncode != -signal.SIGKILL and not self._starting(name):
                        self.ended.append(f"{name} ended by itself with {process.returncode}")
                    await asyncio.sleep(0.3)
                    self.begin(name)
            await asyncio.sleep(0.1)

    def _starting(self, name: str) -> bool:
        """Whether it found a server away when it began: it says so and ends, by design."""
        return self.began[name] - START_S < self.away_at < self.began[name] + START_S

    async def ready(self) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        async with aiohttp.ClientSession() as session:
            for url in self.urls:
                while not await _is_ready(session, url):
                    if time.monotonic() > deadline:
                        raise RuntimeError(tail(self.home / "web1.log", 30))
                    await asyncio.sleep(0.1)

    async def stop_server(self, name: str, sig: signal.Signals) -> None:
        self.away_at = time.monotonic()
        process = self.servers.running[name].process
        process.send_signal(sig)
        while process.poll() is None:
            await asyncio.sleep(0.02)

    async def start_server(self, name: str) -> None:
        """The same command on the same data; by the main thread, which holds the leash."""
        server = self.servers.running[name]
        with server.log.open("ab") as out:
            server.process = subprocess.Popen(  # noqa: ASYNC220 - not in a thread: see processes.py
                server.process.args,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
            )
        answers = self._postgres_answers if name == "postgres" else self._valkey_answers
        deadline = time.monotonic() + START_PATIENCE_S
        while not await answers():
            if time.monotonic() > deadline or not server.running:
                raise RuntimeError(tail(server.log, 30))
            await asyncio.sleep(0.05)

    async def _postgres_answers(self) -> bool:
        with suppress(OSError, asyncpg.PostgresError):
            connection = await asyncpg.connect(self.servers.superuser_url, timeout=5)
            await connection.close()
            return True
        return False

    async def _valkey_answers(self) -> bool:
        with suppress(RedisError, OSError):
            async with self.redis as client:
                return bool(await client.ping())
        return False

    def close(self) -> None:
        self.closing = True
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.processes.values():
            process.wait()


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError, TimeoutError):
        async with session.get(f"{url}/ready", timeout=aiohttp.ClientTimeout(5)) as answer:
            return answer.status == 200
    return False


@asynccontextmanager
async def running_fleet(home: Path, provider: NumberingProvider) -> AsyncIterator[Fleet]:
    """A fleet that is ready, on an empty database; all of it is gone after the block."""
    with embedded_servers(home / "servers", postgres_options=POSTGRES) as servers:
        await asyncio.to_thread(migrations.upgrade, servers.owner_url)
        await seed_catalog(servers.owner_url)
        changes = {
            **SETTINGS,
            "AINFERA_ANTHROPIC_BASE_URL": provider.url,
            "AINFERA_OPENAI_BASE_URL": f"{provider.url}/v1",
        }
        told = environment(servers.app_url, servers.redis_url, 0, changes)
        ports = {name: free_port() for name in ("web1", "web2")}
        fleet = Fleet(home, servers, told, ports)
        try:
            for name in COMMANDS:
                fleet.begin(name)
            await fleet.ready()
            yield fleet
        finally:
            fleet.close()
