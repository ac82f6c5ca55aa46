"""The whole system with several of each process, which come and go while it works.

Processes are called `ingress-1`, `inference-2`, `books-1`; the stores, the provider and we who
look at it stay. What was promised is read from the database.
"""

import asyncio
import base64
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg
import httpx
import psutil
from redis.asyncio import Redis

import migrations
from shared.catalog import seed_catalog
from shared.embedded import Servers, embedded_servers
from shared.fleet import list_workers
from tests.bench.stack import (
    PROVIDER_KEY,
    Child,
    StackError,
    free_port,
    running_provider,
    start_child,
)
from tests.bench.usage import Meter

_START_TIMEOUT_S = 60.0
_POLL_S = 0.05
_FIRST = ("inference-1", "inference-2", "books-1", "ingress-1", "ingress-2")

# each counts what may not be; all of them are 0
_PROMISES = {
    "calls without an end": "SELECT count(*) FROM inferences WHERE state NOT IN "
    "('settled', 'refused')",
    "settled calls without exactly one receipt": "SELECT count(*) FROM inferences i WHERE state = "
    "'settled' AND hold_state = 'posted' AND 1 <> "
    "(SELECT count(*) FROM receipts r WHERE r.inference_id = i.id)",
    "routed calls without exactly one outcome": "SELECT count(*) FROM inferences i WHERE routed "
    "AND state = 'settled' AND 1 <> "
    "(SELECT count(*) FROM routing_outcomes o WHERE o.inference_id = i.id)",
    "calls whose one transfer is not what was settled": "SELECT count(*) FROM inferences i WHERE "
    "ARRAY(SELECT amount FROM transfers t WHERE t.inference_id = i.id) <> "
    "CASE WHEN settled_usd > 0 THEN ARRAY[settled_usd] ELSE ARRAY[]::numeric[] END",
    "settled above their hold": "SELECT count(*) FROM inferences WHERE settled_usd > hold_usd",
    "wallets that are not the sum of their entries": "SELECT count(*) FROM accounts a WHERE kind = "
    "'wallet' AND (balance < held OR balance <> (SELECT coalesce(sum(amount), 0) "
    "FROM ledger_entries e WHERE e.account_id = a.id))",
    "sum of the ledger": "SELECT trim_scale(coalesce(sum(amount), 0)) FROM ledger_entries",
}
_HELD = (
    "SELECT (SELECT count(*) FROM inferences WHERE hold_state = 'pending') + "
    "(SELECT count(*) FROM accounts WHERE held <> 0)"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: megabytes (shared memory divided among its users), descriptors, connections."""

    memory_mb: Mapping[str, float]
    descriptors: Mapping[str, int]
    valkey_clients: int
    valkey_data_mb: float
    postgres_clients: int
    jobs: Mapping[str, int]


@dataclass
class Fleet:
    """The running system; `doors` are the ports of its ingresses, by name."""

    servers: Servers
    logs: Path
    provider_port: int
    told: Mapping[str, str]
    valkey: Redis
    postgres: Any
    http: httpx.AsyncClient
    others: Mapping[str, int]
    members: dict[str, Child] = field(default_factory=dict)
    doors: dict[str, int] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a process; see `ready`."""
        kind = name.partition("-")[0]
        told = dict(self.told)
        if kind == "ingress":
            self.doors[name] = free_port()
            told["PORT"] = str(self.doors[name])
        module = ["ingress"] if kind == "ingress" else ["workers", kind]
        self.members[name] = start_child(
            name, [sys.executable, "-m", *module], self.logs, {**told, "FLEET_HOME": str(self.logs)}
        )

    async def ready(self, *names: str) -> None:
        """Returns when an ingress says it is ready, a worker that it is there."""
        async with asyncio.timeout(_START_TIMEOUT_S):
            for name in names:
                while not await self._is_ready(name):
                    self.members[name].alive()
                    await asyncio.sleep(_POLL_S)

    async def _is_ready(self, name: str) -> bool:
        if name not in self.doors:
            return await self.worker_id(name) is not None
        with suppress(httpx.TransportError):
            answer = await self.http.get(f"http://127.0.0.1:{self.doors[name]}/ready")
            return answer.status_code == 200
        return False

    async def worker_id(self, name: str) -> str | None:
        """What the fleet calls this worker, if it is there."""
        pid = self.members[name].pid
        return next((w.id for w in await list_workers(self.valkey) if w.pid == pid), None)

    def kill(self, name: str) -> None:
        """kill -9."""
        self._note_cpu()
        self.members.pop(name).process.kill()

    async def end(self, name: str) -> float:
        """SIGTERM, and the seconds until it was gone. It stays a door until then, which refuses."""
        child, began = self.members[name], perf_counter()
        child.process.send_signal(signal.SIGTERM)
        while child.process.poll() is None:
            self._note_cpu()
            await asyncio.sleep(_POLL_S)
        del self.members[name]
        self.doors.pop(name, None)
        return perf_counter() - began

    def _note_cpu(self) -> None:
        """What a process used is known only while it lives."""
        self.cpu_s |= {n: s for n, s in self._meter().cpu_s().items() if s}

    def _meter(self) -> Meter:
        alive = {n: c.pid for n, c in self.members.items() if psutil.pid_exists(c.pid)}
        return Meter({**alive, **self.others})

    def cpu_so_far(self) -> dict[str, float]:
        self._note_cpu()
        return dict(self.cpu_s)

    async def look(self) -> Seen:
        clients: list[Any] = await self.valkey.client_list()
        memory: dict[str, Any] = await self.valkey.info("memory")
        connected = await self.postgres.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'ainfera%'"
        )
        by_pid = {worker.pid: worker.jobs for worker in await list_workers(self.valkey)}
        pids = {name: child.pid for name, child in self.members.items()}
        return Seen(
            memory_mb=self._meter().memory_mb(),
            descriptors={name: psutil.Process(pid).num_fds() for name, pid in pids.items()},
            valkey_clients=len(clients) - 1,
            valkey_data_mb=round(memory["used_memory"] / 2**20, 1),
            postgres_clients=connected,
            jobs={name: by_pid[pid] for name, pid in pids.items() if pid in by_pid},
        )

    async def sign_up(self) -> str:
        """An agent with more money than it can spend; its key."""
        wish = {"agent_handle": f"crowd-{secrets.token_hex(4)}", "owner_handle": "bench"}
        url = f"http://127.0.0.1:{next(iter(self.doors.values()))}/v1/agents/signup"
        answer = await self.http.post(url, json=wish)
        if answer.status_code >= 400:
            raise StackError(f"Signup answered {answer.status_code}: {answer.text}")
        key: str = answer.json()["api_key"]
        return key

    async def provider_calls(self) -> int:
        answer = await self.http.get(f"http://127.0.0.1:{self.provider_port}/asked")
        return int(answer.json()["calls"])

    async def settled(self) -> int:
        """Calls that were settled; one whose provider was asked is, whatever came of it."""
        return int(
            await self.postgres.fetchval("SELECT count(*) FROM inferences WHERE state = 'settled'")
        )

    async def taken_over(self) -> int:
        """Calls whose first worker did not end them."""
        return int(
            await self.postgres.fetchval("SELECT count(*) FROM inferences WHERE attempt > 1")
        )

    async def holds_gone_s(self, patience_s: float) -> float | None:
        """Seconds until no money is held any more; None if some still is then."""
        began = perf_counter()
        while await self.postgres.fetchval(_HELD):
            if perf_counter() - began > patience_s:
                return None
            await asyncio.sleep(_POLL_S)
        return perf_counter() - began

    async def broken_promises(self) -> dict[str, Any]:
        """By promise: how often it was broken. Each is 0."""
        return {what: await self.postgres.fetchval(query) for what, query in _PROMISES.items()}


@asynccontextmanager
async def running_fleet(home: Path, settings: Mapping[str, str]) -> AsyncIterator[Fleet]:
    """Two ingresses, two inference workers and the books on stores of their own, all ready."""
    logs = home / "logs"
    logs.mkdir()
    with embedded_servers(home / "stores") as servers, running_provider(logs) as (provider, port):
        await asyncio.to_thread(migrations.upgrade, servers.owner_url)
        await seed_catalog(servers.owner_url)
        postgres = await asyncpg.connect(servers.superuser_url)
        others = {name: server.pid for name, server in servers.running.items()}
        async with (
            Redis.from_url(servers.redis_url) as valkey,
            httpx.AsyncClient(trust_env=False, timeout=30) as http,
        ):
            fleet = Fleet(
                servers=servers,
                logs=logs,
                provider_port=port,
                told={**_told(servers, port), **settings},
                valkey=valkey,
                postgres=postgres,
                http=http,
                others={**others, "provider": provider.pid},
            )
            try:
                for name in _FIRST:
                    fleet.start(name)
                await fleet.ready(*_FIRST)
                yield fleet
            finally:
                children = fleet.members.values()
                await asyncio.gather(*(asyncio.to_thread(child.stop) for child in children))
                await postgres.close()


def _told(servers: Servers, provider_port: int) -> dict[str, str]:
    return {
        "DATABASE_URL": servers.app_url,
        "REDIS_URL": servers.redis_url,
        "HOST": "127.0.0.1",
        "AINFERA_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "AINFERA_INTERNAL_KEY": secrets.token_urlsafe(32),
        "AINFERA_ANTHROPIC_BASE_URL": f"http://127.0.0.1:{provider_port}",
        "ANTHROPIC_API_KEY": PROVIDER_KEY,
        "SIGNUP_MODE": "open",
        "SIGNUPS_PER_MINUTE": "0",
        "PREVIEW_GRANT_USD": "100000.00",
        "PREVIEW_GRANT_INFERENCES": "1000000000",
        # the clients do as a proxy does: a connection that is refused is tried elsewhere
        "DRAIN_NOTICE_SECONDS": "0",
    }
