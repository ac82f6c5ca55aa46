"""`make up`: from nothing to an answered call, found again by the next start, and gone after."""

import base64
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from workers.development import read_env

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 120


class Up:
    """A running `fleet up` and what it has said so far."""

    def __init__(self, home: Path, port: int, **environment: str) -> None:
        self.said = ""
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", "up"],
            cwd=ROOT,
            env={**os.environ, "FLEET_HOME": str(home), "PORT": str(port), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._watchdog = threading.Timer(PATIENCE_S, self.process.kill)
        self._watchdog.start()

    def until(self, wanted: str) -> str:
        """Read on to the line that matches; it is returned."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if re.search(wanted, line):
                return line
        pytest.fail(f"ended without {wanted!r}; it said:\n{self.said}")

    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def commands(self) -> set[str]:
        """What its processes were started with; those that end meanwhile are left out."""
        found = set()
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                found.add(" ".join(process.cmdline()[1:]))
        return found

    def end(self) -> int:
        """Read to the end of the output and reap; the exit code."""
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        code = self.process.wait()
        self._watchdog.cancel()
        return code


@contextmanager
def running_up(home: Path, port: int, **environment: str) -> Iterator[Up]:
    up = Up(home, port, **environment)
    try:
        yield up
    finally:
        up.process.kill()
        up.end()


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
    return number


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def test_up_answers_stops_and_finds_its_data_again(tmp_path: Path, port: int) -> None:
    home = tmp_path / "home"
    with running_up(home, port) as up:
        curl = up.until("^curl ")
        dev = read_env(home / "dev.env")
        assert dev["AINFERA_BASE_URL"] == up.url
        assert f"Bearer {dev['AINFERA_API_KEY']}" in curl
        assert up.url in curl
        assert "simulated" in up.said
        assert set(read_env(home / "running.env")) == {"DATABASE_URL", "REDIS_URL", "HOST", "PORT"}
        for kept in ("dev.env", "secrets.env", "running.env"):
            assert stat.S_IMODE((home / kept).stat().st_mode) == 0o600
        family = up.family()
        assert {"-m ingress", "-m workers inference", "-m workers books"} <= up.commands()

        frames = streamed(dev)
        assert frames[-1] == "data: [DONE]"
        assert len(frames) > 3

        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0, up.said
        assert gone(family)
        assert not (home / "running.env").exists()

    with running_up(home, port) as up:
        up.until("^curl ")
        assert read_env(home / "dev.env") == dev
        assert debits(dev) == 1
        family = up.family()
        up.process.send_signal(signal.SIGINT)
        assert up.end() == 0, up.said
        assert gone(family)

    other_key = base64.b64encode(os.urandom(32)).decode()
    with running_up(home, port, AINFERA_MASTER_KEY=other_key) as up:
        assert up.end() == 2, up.said
        assert "AINFERA_MASTER_KEY is not the key " in up.said
        assert "Ready" not in up.said
        assert "processes" not in up.said


def streamed(dev: dict[str, str]) -> list[str]:
    """What the call that the greeting shows is answered, frame by frame."""
    body = {
        "model": "ainfera-inference",
        "stream": True,
        "messages": [{"role": "user", "content": "Say hello in five words."}],
    }
    with httpx.stream(
        "POST",
        f"{dev['AINFERA_BASE_URL']}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {dev['AINFERA_API_KEY']}"},
        timeout=60,
        trust_env=False,
    ) as answer:
        assert answer.status_code == 200, answer.read()
        return [line for line in answer.iter_lines() if line.startswith("data: ")]


def debits(dev: dict[str, str]) -> int:
    """How often the development agent has paid for a call."""
    answer = httpx.get(
        f"{dev['AINFERA_BASE_URL']}/v1/ledger/{dev['AINFERA_AGENT_ID']}",
        headers={"Authorization": f"Bearer {dev['AINFERA_API_KEY']}"},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return sum(entry["kind"] == "usage" for entry in answer.json()["entries"])


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_up(tmp_path / "home", port) as up:
            assert up.end() == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in up.said
    assert f"process {os.getpid()}" in up.said
    assert f"PORT={port + 1}" in up.said
    assert not (tmp_path / "home").exists()


def test_what_dies_is_started_again_on_servers_of_others(
    tmp_path: Path, port: int, empty_database: str, redis_url: str
) -> None:
    home = tmp_path / "home"
    app_url = empty_database.replace("ainfera_owner@", "ainfera_app@")
    external = {
        "MIGRATION_DATABASE_URL": empty_database,
        "DATABASE_URL": app_url,
        "REDIS_URL": redis_url,
    }
    with running_up(home, port, INFERENCE_WORKERS="2", **external) as up:
        up.until("^curl ")
        assert not (home / "postgres").exists()
        assert not (home / "valkey").exists()
        before = up.family()
        workers = [p for p in before if p.cmdline()[1:] == ["-m", "workers", "inference"]]
        assert len(workers) == 2
        assert all("MIGRATION_DATABASE_URL" not in worker.environ() for worker in workers)
        (web,) = [p for p in before if p.cmdline()[1:] == ["-m", "ingress"]]
        for worker in workers:
            worker.kill()
            up.until(r"inference\.[12] ended with code -9; starting it again in 0.5 s")
        web.kill()
        up.until(r"web\.1 ended with code -9; starting it again in 0.5 s")
        up.until("web.1 .*Uvicorn running")
        assert streamed(read_env(home / "dev.env"))[-1] == "data: [DONE]"
        family = {*before, *up.family()}
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0, up.said
        assert gone(list(family))


def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path, port: int) -> None:
    with running_up(tmp_path / "home", port) as up:
        up.until("schema")
        family = up.family()
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0, up.said
        assert gone(family)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
def test_a_killed_fleet_leaves_nothing(tmp_path: Path, port: int) -> None:
    with running_up(tmp_path / "home", port) as up:
        up.until("web.1 .*Uvicorn running")
        family = up.family()
        assert len(family) > 5
        up.process.kill()
        up.end()
        assert gone(family)
