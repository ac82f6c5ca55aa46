"""A fleet on servers of its own that can be broken: two ingresses, two workers, the books."""

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg
import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError

import migrations
from shared.catalog import seed_catalog
from shared.embedded import Servers, embedded_servers
from shared.fleet import list_workers
from shared.processes import tail
from tests.e2e.stack import environment, free_port
from tests.faults.provider import NumberingProvider
from tests.faults.small_disk import own_disks
from tests.nursery import BENT, Child, nursery

LEASE_S = 1.5
CALL_DEADLINE_S = 6.0
COMMANDS = {
    "web1": ["tests.faults.misclocked", "ingress"],
    "web2": ["tests.faults.misclocked", "ingress"],
    "inference1": ["tests.faults.doomed", "inference"],
    "inference2": ["tests.faults.doomed", "inference"],
    "books": ["tests.faults.misclocked", "workers", "books"],
}
SETTINGS = {
    "LEASE_SECONDS": str(LEASE_S),
    # never reached: all holds take turns, and what counts against them is proved in the end
    "KILLSWITCH_TENANT_USD": "1000000",
    "KILLSWITCH_SYSTEM_USD": "1000000",
    "CALL_DEADLINE_SECONDS": str(CALL_DEADLINE_S),
    "IDLE_DEADLINE_SECONDS": "2",
    "CONNECT_TIMEOUT_SECONDS": "2",
    "REDRIVE_AFTER_SECONDS": "1",
    "REPLAY_SECONDS": "60",
    "PREVIEW_GRANT_USD": "500",
    "PREVIEW_GRANT_INFERENCES": "1000000",
    "MAX_QUEUE_AGE_SECONDS": "20",
    "ANTHROPIC_API_KEY": "sk-ant-standin",
    "OPENAI_API_KEY": "sk-standin",
}
# What was committed survives the end of Postgres, though not that of the machine.
POSTGRES = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
}
MOST_OF_A_LOG = 8 * 1024 * 1024
START_PATIENCE_S = 60.0
START_S = 10.0
REFUSAL = "cannot be used: "


@dataclass
class Fleet:
    """The processes, by name; `restarts` says who ends when, and is started again."""

    home: Path
    servers: Servers
    told: dict[str, str]
    ports: dict[str, int]
    processes: dict[str, Child] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)
    changes: dict[str, dict[str, str]] = field(default_factory=dict)
    told_to_end: set[str] = field(default_factory=set)
    disk: Path | None = None
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

    def clock(self, name: str) -> Path:
        """The file whose seconds are added to the time of day of a process."""
        return self.home / f"{name}.clock"

    def begin(self, name: str) -> None:
        told = {
            **self.told,
            "AINFERA_DOOM_FILE": str(self.order(name)),
            "AINFERA_CLOCK_FILE": str(self.clock(name)),
            **self.changes.get(name, {}),
        }
        if name in self.ports:
            told["PORT"] = str(self.ports[name])
        self.began[name] = time.monotonic()
        log = self.home / f"{name}.log"
        self.processes[name] = nursery(BENT).begin(COMMANDS[name], log, told)

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)

    def drain(self, name: str) -> None:
        """End a process as a release does: it finishes what it has, within its grace time."""
        self.told_to_end.add(name)
        self.processes[name].send_signal(signal.SIGTERM)

    def doom(self, name: str, point: str, passes: int) -> None:
        """Let a worker end itself at a point; whether it comes to it is up to the load."""
        order = self.order(name)
        order.with_suffix(".new").write_text(f"{point} {passes}", "ascii")
        order.with_suffix(".new").replace(order)

    async def supervise(self) -> None:
        """Start again whoever has ended, as an orchestrator does; note whom nobody killed."""
        while not self.closing:
            for name, process in self.processes.items():
                if (code := process.poll()) is not None:
                    self.deaths[name] += 1
                    self._note_end(name, code)
                    await asyncio.sleep(0.3)
                    self.begin(name)
            self._trim_logs()
            await asyncio.sleep(0.1)

    def _note_end(self, name: str, code: int) -> None:
        if name in self.told_to_end:
            self.told_to_end.discard(name)
            if code in (0, -signal.SIGTERM):
                return
        if code != -signal.SIGKILL and not self._refused(name):
            self.ended.append(f"{name} ended by itself with {code}")

    def _trim_logs(self) -> None:
        """Processes append, so that a log that is cut off goes on from its beginning."""
        for log in (*self.home.glob("*.log"), *(self.home / "servers" / "logs").glob("*.log")):
            if log.stat().st_size > MOST_OF_A_LOG:
                os.truncate(log, 0)

    def memory_mb(self) -> dict[str, int]:
        """Resident memory by process, those of the servers with all of their children."""
        found: Counter[str] = Counter()
        for name, process in self.processes.items():
            found[name] = _resident(process.pid)
        for name, server in self.servers.running.items():
            found[name] = _resident(server.pid)
        return {name: size // 2**20 for name, size in found.items()}

    def own_memory_mb(self) -> int:
        return int(psutil.Process().memory_full_info().uss) // 2**20

    def pids(self, server: str) -> list[int]:
        """A server's processes, itself first."""
        root = psutil.Process(self.servers.running[server].pid)
        return [root.pid, *(child.pid for child in root.children(recursive=True))]

    def _refused(self, name: str) -> bool:
        """Whether it found a server away when it began: it says so and ends, by design."""
        if REFUSAL in tail(self.home / f"{name}.log", 1):
            return True
        return self.began[name] - START_S < self.away_at < self.began[name] + START_S

    async def ready(self) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        async with aiohttp.ClientSession() as session:
            for url in self.urls:
                while not await _is_ready(session, url):
                    if time.monotonic() > deadline:
                        raise RuntimeError(tail(self.home / "web1.log", 30))
                    await asyncio.sleep(0.1)

    def note_away(self) -> None:
        """A server is away, or was until now: who begins about now may rightly end again."""
        self.away_at = time.monotonic()

    @contextmanager
    def frozen(self, server: str) -> Iterator[None]:
        """All processes of a server stand still, which no connection shows."""
        self.note_away()
        # the first of them, once it stands, starts no more; of the others some may just have ended
        os.kill(self.servers.running[server].pid, signal.SIGSTOP)
        pids = self.pids(server)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.note_away()

    async def stop_server(self, name: str, sig: signal.Signals) -> None:
        self.note_away()
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
        self.note_away()
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

    async def all_alive(self, patience_s: float) -> list[str]:
        """Wait until each worker says that it is there; the names of those who do not."""
        deadline = time.monotonic() + patience_s
        while True:
            heard: set[int] = set()
            with suppress(RedisError, OSError):
                async with self.redis as redis:
                    heard = {worker.pid for worker in await list_workers(redis)}
            silent = [
                name
                for name, process in self.processes.items()
                if name not in self.ports and process.pid not in heard
            ]
            if not silent or time.monotonic() > deadline:
                return silent
            await asyncio.sleep(0.1)

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


def _resident(pid: int) -> int:
    """Bytes that a process and its children have for themselves alone."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
        return sum(each.memory_full_info().uss for each in family)
    return 0


@asynccontextmanager
async def running_fleet(
    home: Path, provider: NumberingProvider, hold_ttl_s: int
) -> AsyncIterator[Fleet]:
    """A fleet that is ready, on an empty database; all of it is gone after the block."""
    with (
        own_disks(home / "servers") as disk,
        embedded_servers(home / "servers", postgres_options=POSTGRES) as servers,
    ):
        await asyncio.to_thread(migrations.upgrade, servers.owner_url)
        await seed_catalog(servers.owner_url)
        changes = {
            **SETTINGS,
            "HOLD_TTL_SECONDS": str(hold_ttl_s),
            "AINFERA_ANTHROPIC_BASE_URL": provider.url,
            "AINFERA_OPENAI_BASE_URL": f"{provider.url}/v1",
        }
        told = environment(servers.app_url, servers.redis_url, 0, changes)
        ports = {name: free_port() for name in ("web1", "web2")}
        fleet = Fleet(home, servers, told, ports, disk=disk)
        try:
            for name in COMMANDS:
                fleet.begin(name)
            await fleet.ready()
            yield fleet
        finally:
            fleet.close()
