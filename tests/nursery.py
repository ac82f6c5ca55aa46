"""Processes of a fleet that begin where their imports end: `nursery().begin(...)`.

A process of ours spends more CPU on its imports than most tests on all the rest, and the tests
start far over a hundred. So one process imports everything, once, and theirs are forks of it. What
runs in a fork is the product's own `__main__`, in a session, an environment and a log of its own
(tests/forking.py). That it also starts from nothing is seen by tests/test_up.py and test_start.py.
"""

import atexit
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.02
BENT = "bent"


@dataclass(slots=True)
class Child:
    """One of the nursery's processes; what `subprocess.Popen` is to a process of one's own."""

    pid: int
    nursery: "Nursery"
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.nursery.ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(POLL_S)
        return code

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, sig: int) -> None:
        # until its end was told to us, its number is no other's
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process whose forks the others are. It ends when we do, and they end with it."""

    def __init__(self, *words: str) -> None:
        ours, its = socket.socketpair()
        command = [sys.executable, "-m", "tests.forking", str(its.fileno()), *words]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            pass_fds=[its.fileno()],
            start_new_session=True,
        )
        its.close()
        self._lines, self._socket = ours.makefile("rb"), ours
        self._lock = threading.Lock()

    def begin(
        self,
        command: Sequence[str],
        log: Path,
        told: Mapping[str, str],
        errors: Path | None = None,
    ) -> Child:
        """Start `python -m <command>` in the environment `told`.

        Both of its outputs go to the log, unless there is a file of its own for the errors.
        """
        order = {"command": command, "told": dict(told)}
        order |= {"log": str(log), "errors": str(errors or log)}
        return Child(self.ask(order), self)

    def run(
        self, command: Sequence[str], told: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run`, with both outputs captured; raises `subprocess.TimeoutExpired`."""
        with tempfile.TemporaryDirectory() as folder:
            out, errors = Path(folder, "out"), Path(folder, "errors")
            child = self.begin(command, out, told, errors)
            try:
                code = child.wait(timeout)
            finally:
                child.kill()
            return subprocess.CompletedProcess(
                command, code, out.read_text("utf-8"), errors.read_text("utf-8")
            )

    def ask(self, order: dict[str, Any]) -> Any:
        with self._lock:
            self._socket.sendall(orjson.dumps(order) + b"\n")
            return orjson.loads(self._lines.readline())

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
        self._process.wait()


@functools.cache
def nursery(*words: str) -> Nursery:
    """The one of this process; with `BENT`, one whose forks have a time of day that can jump."""
    begun = Nursery(*words)
    atexit.register(begun.close)
    return begun
