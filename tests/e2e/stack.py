"""A running stack for the suites: the real processes on a database and a Valkey of their own.

The processes are those of the Procfile, spared their imports (see tests/nursery.py), and all that
a suite knows of them is their address, their logs and what they wrote into the stores.
"""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from shared.embedded import APP_ROLE, CALLER_ROLE
from shared.processes import tail
from tests.nursery import Child, nursery

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "web": ["ingress"],
    "inference": ["workers", "inference"],
    "books": ["workers", "books"],
}
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
# one for the run: a database keeps to the key that it was first used with
MASTER_KEY = secrets.token_urlsafe(32)


@dataclass(slots=True)
class Stack:
    """Where a stack is. `superuser_url` and `redis_url` are for looking at what it wrote."""

    url: str
    logs: Path
    superuser_url: str
    redis_url: str
    internal_key: str
    processes: dict[str, Child] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict, repr=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One plain HTTP request. There is no TLS here: no certificates are read for it."""
        return httpx.request(method, self.url + path, verify=False, timeout=60, **options)

    def log_text(self) -> str:
        """What all processes have said so far, on both of their outputs."""
        return "\n".join(path.read_text("utf-8") for path in sorted(self.logs.glob("*.log")))

    def kill(self, name: str) -> None:
        """End one process as nobody would: at once."""
        self.processes[name].kill()
        self.processes[name].wait()

    def start(self, name: str, **changes: str) -> None:
        """Start one process, again or for the first time; `changes` are settings of its own."""
        told = {**self.told, **changes}
        self.processes[name] = start(COMMANDS[name], self.logs / f"{name}.log", told)

    def stop(self) -> None:
        """As Ctrl-C stops it; what does not stop in time is killed."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            if process.poll() is None:
                process.kill()
                process.wait()


def environment(
    database_url: str, redis_url: str, port: int, changes: Mapping[str, str]
) -> dict[str, str]:
    """What the processes are told; nothing of the caller's own environment but where Python is."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        "DATABASE_URL": database_url,
        "CALLER_DATABASE_URL": database_url.replace(f"//{APP_ROLE}@", f"//{CALLER_ROLE}@"),
        "REDIS_URL": redis_url,
        "PORT": str(port),
        "SIGNUP_MODE": "open",
        "SIGNUPS_PER_MINUTE": "0",
        "PUBLIC_REQUESTS_PER_MINUTE": "0",
        "SELF_TOPUP": "true",
        "AINFERA_MASTER_KEY": MASTER_KEY,
        "AINFERA_INTERNAL_KEY": secrets.token_urlsafe(32),
        "MAX_BODY_BYTES": str(1024 * 1024),
        "DRAIN_GRACE_SECONDS": "5",
        # a crowd of one tenant's calls may have the one worker to itself
        "JOBS_PER_TENANT": "256",
        # short, so that a test can wait until what was told is gone
        "REPLAY_SECONDS": "6",
        **changes,
    }


@contextmanager
def running_stack(
    home: Path,
    database_url: str,
    superuser_url: str,
    redis_url: str,
    changes: Mapping[str, str],
    names: tuple[str, ...] = tuple(COMMANDS),
) -> Iterator[Stack]:
    """Start the processes, wait until they are ready, and stop them when the block ends."""
    port = free_port()
    told = environment(database_url, redis_url, port, changes)
    stack = Stack(
        url=f"http://127.0.0.1:{port}",
        logs=home,
        superuser_url=superuser_url,
        redis_url=redis_url,
        internal_key=told["AINFERA_INTERNAL_KEY"],
        told=told,
    )
    try:
        for name in names:
            stack.start(name)
        wait_until_ready(stack)
        yield stack
    finally:
        stack.stop()


def start(command: list[str], log: Path, told: Mapping[str, str]) -> Child:
    return nursery().begin(command, log, told)


def wait_until_ready(stack: Stack) -> None:
    """Returns when the ingress says that it is ready; raises if a process ended instead."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(stack):
        for name, process in stack.processes.items():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{name} did not start; its log ends:\n{tail(stack.logs / f'{name}.log', 40)}"
                )
        time.sleep(0.05)


def answers(stack: Stack) -> bool:
    with suppress(httpx.TransportError):
        return stack.request("GET", "/ready").status_code == 200
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
