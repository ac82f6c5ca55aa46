"""The whole gateway as separate processes on ports and stores of its own, for as long as a block.

Each process may be given its own way to the stores, so that a counting proxy can stand there.
"""

import asyncio
import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from shared.processes import leashed, tail

ROOT = Path(__file__).resolve().parents[2]
PROVIDER_KEY = "sk-a-key-that-opens-nothing"

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.05
# one for the run: a database keeps to the key that it was first used with
_MASTER_KEY = base64.b64encode(secrets.token_bytes(32)).decode()


class StackError(RuntimeError):
    """A process that did not start or ended by itself; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Stores:
    """How a process reaches Postgres and Valkey."""

    database_url: str
    redis_url: str


@dataclass(frozen=True, slots=True)
class Child:
    """A process that we started; it ends with us, however we end."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> None:
        """Raises StackError if it has ended."""
        if self.process.poll() is not None:
            raise StackError(
                f"{self.name} ended with code {self.process.returncode}; its log ends:\n"
                f"{tail(self.log, 30)}"
            )

    def stop(self) -> None:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            self.process.send_signal(sig)
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue


@dataclass(slots=True)
class Stack:
    """A running gateway: where it is, whose key opens it, and its processes by name."""

    port: int
    api_key: str = field(repr=False)
    agent_id: str
    children: dict[str, Child]

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self.children.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_child(
    name: str,
    command: Sequence[str],
    logs: Path,
    environment: Mapping[str, str] | None = None,
    *,
    piped: bool = False,
) -> Child:
    """Start a process with nothing of our environment but PATH and HOME."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    log = logs / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*leashed("TERM"), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else out,
            stderr=out,
            text=True,
            cwd=ROOT,
            env={**kept, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
    return Child(name, process, log)


@contextmanager
def running_provider(logs: Path) -> Iterator[tuple[Child, int]]:
    """The fake provider and its port."""
    command = [sys.executable, "-m", "tests.bench.fake_provider"]
    child = start_child("provider", command, logs, piped=True)
    try:
        assert child.process.stdout is not None
        said = child.process.stdout.readline()
        if not said:
            child.process.wait(_STOP_TIMEOUT_S)
            child.alive()
        yield child, int(json.loads(said)["port"])
    finally:
        child.stop()


@asynccontextmanager
async def running_stack(
    logs: Path,
    providers: Mapping[str, str],
    ways: Mapping[str, Stores],
    *,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """Ingress, inference worker and books worker, and an agent with more money than it can spend.

    `providers` maps the slugs of the configured providers to their base URLs. `ways` maps each
    process that shall run to its stores: `ingress` always, `inference`, `inference-2`, `books`.
    """
    port = free_port()
    common = {**_secrets(), **_provider_settings(providers), **_open_doors(), **(settings or {})}
    common |= {"HOST": "127.0.0.1", "PORT": str(port), "FLEET_HOME": str(logs)}
    children: dict[str, Child] = {}
    try:
        for name, stores in ways.items():
            module = ["ingress"] if name == "ingress" else ["workers", name.partition("-")[0]]
            addresses = {"DATABASE_URL": stores.database_url, "REDIS_URL": stores.redis_url}
            command = [sys.executable, "-m", *module]
            children[name] = start_child(name, command, logs, {**common, **addresses})
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30
        ) as client:
            await _ready(client, children)
            agent = await _sign_up(client)
        yield Stack(port, agent["api_key"], agent["agent_id"], children)
        for child in children.values():
            child.alive()
    finally:
        # in threads: a proxy in our loop may be what a process still has to say goodbye to
        await asyncio.gather(*(asyncio.to_thread(child.stop) for child in children.values()))


def _secrets() -> dict[str, str]:
    return {
        "AINFERA_MASTER_KEY": _MASTER_KEY,
        "AINFERA_INTERNAL_KEY": secrets.token_urlsafe(32),
    }


def _provider_settings(providers: Mapping[str, str]) -> dict[str, str]:
    """Each provider's base URL and a key; the OpenAI family's base URL has the version in it."""
    found = {}
    for slug, url in providers.items():
        found[f"AINFERA_{slug.upper()}_BASE_URL"] = url
        found[f"{slug.upper()}_API_KEY"] = PROVIDER_KEY
    return found


def _open_doors() -> dict[str, str]:
    return {
        "SIGNUP_MODE": "open",
        "SIGNUPS_PER_MINUTE": "0",
        "PUBLIC_REQUESTS_PER_MINUTE": "0",
        "SELF_TOPUP": "1",
        "PREVIEW_GRANT_USD": "100000.00",
        "PREVIEW_GRANT_INFERENCES": "1000000000",
    }


async def _ready(client: httpx.AsyncClient, children: Mapping[str, Child]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    said = "no answer"
    while time.monotonic() < deadline:
        for child in children.values():
            child.alive()
        try:
            answer = await client.get("/ready")
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return
        said = answer.text if answer is not None else said
        await asyncio.sleep(_POLL_S)
    log = tail(children["ingress"].log, 30)
    raise StackError(f"The ingress was not ready: {said}; its log ends:\n{log}")


async def _sign_up(client: httpx.AsyncClient) -> dict[str, str]:
    wish = {"agent_handle": f"bench-{secrets.token_hex(4)}", "owner_handle": "bench"}
    answer = await client.post("/v1/agents/signup", json=wish)
    if answer.status_code >= 400:
        raise StackError(f"Signup answered {answer.status_code}: {answer.text}")
    agent: dict[str, str] = answer.json()
    return agent


def redirected(url: str, socket_path: Path) -> str:
    """The same database or Valkey behind another socket: `postgresql://…?host=` or `unix://…`."""
    if url.startswith("unix://"):
        _, _, query = url.partition("?")
        return f"unix://{socket_path}" + (f"?{query}" if query else "")
    return f"{url.partition('?')[0]}?host={socket_path.parent}"
