"""Child processes that do not outlive us: the leash, a borrowed identity, an orderly stop.

Each child has a session of its own, so that Ctrl-C in a terminal reaches only us and we
decide the order of the end. On Linux it is also leashed by `setpriv --pdeathsig`: if we are
killed without a chance to stop it, the kernel does. The leash is tied to the thread that
starts the child: start it in the main one.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.config import StartError

_START_TIMEOUT_S = 60.0  # Postgres, after a crash, first replays what it had not written yet
_LEFTOVER_TIMEOUT_S = 20.0
_POLL_S = 0.02


class ServerError(StartError):
    """A server that cannot start; the message says what to do, or what the server said."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the servers run as; `uid` differs from ours only when we are root."""

    uid: int
    gid: int

    @property
    def borrowed(self) -> bool:
        return self.uid != os.geteuid()


@dataclass(slots=True)
class Server:
    """One running server. `stop_signals` go from the friendly to the certain."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signals: Sequence[signal.Signals]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self, patience_s: float = 15.0) -> None:
        """Stop and reap; returns when the process is gone."""
        for sig in (*self.stop_signals, signal.SIGKILL):
            if not self.running:
                return
            self.process.send_signal(sig)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)


def leashed(death_signal: str, identity: Identity | None = None) -> list[str]:
    """The words to put before a command: its leash and, when root lends one, its identity.

    Whoever borrows an identity keeps one capability, to pass through folders closed to others.
    """
    setpriv = shutil.which("setpriv")
    borrowed = identity is not None and identity.borrowed
    if setpriv is None and borrowed:
        raise ServerError(
            "Postgres does not run as root, and `setpriv` (of util-linux), which would run it as "
            "another user, is missing. Install it, start as a normal user, or set DATABASE_URL "
            "and REDIS_URL."
        )
    if setpriv is None:
        return []
    words = [setpriv, "--pdeathsig", death_signal]
    if identity is not None and borrowed:
        words += [f"--reuid={identity.uid}", f"--regid={identity.gid}", "--clear-groups"]
        words += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        # else access(2), by which Postgres looks for its programs, would not count the capability
        words += ["--securebits=+no_setuid_fixup"]
    return words


def run(command: list[str], what: str, text: str | None = None) -> None:
    """Run to the end; raises ServerError with what the command said."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd="/", env=_environment()
    )
    if done.returncode != 0:
        raise ServerError(f"{what} failed:\n{(done.stdout + done.stderr).strip()}")


def start(
    name: str,
    command: list[str],
    log: Path,
    stop_signals: Sequence[signal.Signals],
    ready: Callable[[int], bool],
) -> Server:
    """Start a server and wait until `ready(pid)`; raises ServerError with the end of its log."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    server = Server(name, process, log, stop_signals)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not ready(server.pid):
        if not server.running or time.monotonic() > deadline:
            server.stop()
            raise ServerError(f"{name} did not start; its log ends:\n{tail(log)}")
        time.sleep(_POLL_S)
    return server


def stop_leftover(pid_file: Path, data: Path, stop_signals: Sequence[signal.Signals]) -> None:
    """Stop the server that a crash left behind in the folder `data`.

    Servers work inside their folder: a process of another one only reused the number.
    """
    try:
        leftover = psutil.Process(int(pid_file.read_text().split()[0]))
        if Path(leftover.cwd()) != data:
            return
        for sig in (*stop_signals, signal.SIGKILL):
            leftover.send_signal(sig)
            with suppress(psutil.TimeoutExpired):
                leftover.wait(_LEFTOVER_TIMEOUT_S)
    except (OSError, ValueError, IndexError, psutil.Error):
        return


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _environment() -> dict[str, str]:
    """A clean one: the servers have no use for our secrets, nor for somebody's PGOPTIONS."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
