"""The `fleet` command by hand: what it prints, what it refuses, and with which exit code."""

import asyncio
import base64
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from shared.queue import INFERENCE_QUEUE
from workers.cli import COMPOSE_PASSWORDS, main
from workers.presence import Presence


def fleet(*words: str, **environment: str) -> Result:
    shown = {"NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    return CliRunner().invoke(main, words, env=shown | environment)


def test_help_teaches() -> None:
    done = fleet("--help")
    assert done.exit_code == 0
    commands = ("up", "work", "migrate", "seed", "secrets", "health", "signup")
    for command in (*commands, "status", "workers", "drain", "resume"):
        assert f" {command} " in done.stdout
        page = fleet(command, "--help")
        assert page.exit_code == 0
        assert "Example: " in page.stdout or command == "seed"


def test_secrets_are_fresh_and_fit() -> None:
    first, second = (
        dict(line.split("=", 1) for line in fleet("secrets", "--compose").stdout.splitlines())
        for _ in range(2)
    )
    assert len(base64.b64decode(first["AINFERA_MASTER_KEY"], validate=True)) == 32
    assert len(first) == 7
    assert set(first.values()).isdisjoint(second.values())


@pytest.mark.parametrize("command", ["migrate", "seed"])
def test_without_a_database_it_says_what_to_set(command: str) -> None:
    done = fleet(command)
    assert done.exit_code == 2
    assert "MIGRATION_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["migrate", "seed"])
def test_a_database_that_does_not_answer_is_named(command: str) -> None:
    done = fleet(command, DATABASE_URL="postgresql://someone:hidden@127.0.0.1:1/ainfera")
    assert done.exit_code == 1
    assert done.stderr.startswith("DATABASE_URL: Postgres at 127.0.0.1:1 ")
    assert len(done.stderr.splitlines()) == 1
    done = fleet(command, MIGRATION_DATABASE_URL="mysql://h/d")
    assert done.exit_code == 2
    assert done.stderr.startswith("MIGRATION_DATABASE_URL ")


def test_health_says_what_it_asked_and_what_is_not_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for host, asked in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("127.0.0.2", "127.0.0.2")):
        done = fleet("health", "web", HOST=host, PORT=str(port))
        assert done.exit_code == 1
        assert f"http://{asked}:{port}/ready" in done.stderr
    for process in ("inference", "books"):
        done = fleet("health", process)
        assert done.exit_code == 2
        assert done.stderr.startswith("REDIS_URL is not set")
        done = fleet("health", process, REDIS_URL="redis://:hidden@127.0.0.1:1")
        assert done.exit_code == 1
        assert done.stderr.startswith("REDIS_URL: Valkey at 127.0.0.1:1 ")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("health", "web"), ("migrate",), ("up",)])
def test_a_wrong_setting_is_told_in_a_line(command: tuple[str, ...]) -> None:
    for wrong in ({"PORT": "http"}, {"PREVIEW_GRANT_USD": "five"}, {"PREVIEW_GRANT_USD": "-1"}):
        done = fleet(*command, **wrong)
        assert done.exit_code == 2
        assert next(iter(wrong)) in done.stderr
        assert "Traceback" not in done.stderr


def test_migrate_and_seed_can_be_repeated(empty_database: str) -> None:
    for _ in range(2):
        assert fleet("migrate", MIGRATION_DATABASE_URL=empty_database).exit_code == 0
        done = fleet("seed", MIGRATION_DATABASE_URL=empty_database)
        assert done.exit_code == 0, done.stderr
        assert "models" in done.stdout


def test_signup_says_that_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = fleet("signup", "x", "--url", f"http://127.0.0.1:{port}")
    assert done.exit_code == 1
    assert f"No fleet answers at http://127.0.0.1:{port}" in done.stderr
    assert fleet("health", "web", PORT=str(port)).exit_code == 1


async def test_a_worker_is_well_while_it_says_so(redis_url: str) -> None:
    async def health(kind: str) -> int:
        done = await asyncio.to_thread(fleet, "health", kind, REDIS_URL=redis_url)
        return done.exit_code

    assert await health("inference") == 1
    async with Redis.from_url(redis_url) as client:
        presence = Presence("inference", INFERENCE_QUEUE)
        presence.open(client)
        await presence.beat("running", 0, 1)
        assert await health("inference") == 0
        assert await health("books") == 1
        await presence.leave()
    assert await health("inference") == 1


def test_secrets_are_written_for_their_owner_alone_and_over_nothing(tmp_path: Path) -> None:
    to = tmp_path / ".env"
    done = fleet("secrets", "--compose", "--write", str(to))
    assert (done.exit_code, done.stdout) == (0, "")
    assert to.stat().st_mode & 0o777 == 0o600
    written = to.read_text()
    names = [line.partition("=")[0] for line in written.splitlines()]
    assert names[:2] == ["AINFERA_MASTER_KEY", "AINFERA_INTERNAL_KEY"]
    assert names[2:] == list(COMPOSE_PASSWORDS)
    again = fleet("secrets", "--write", str(to))
    assert again.exit_code == 1
    assert to.read_text() == written


def test_signup_asks_where_the_settings_say(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        done = fleet("signup", "somebody", PORT=port, FLEET_HOME=str(tmp_path), AINFERA_BASE_URL="")
    assert done.exit_code == 1
    assert f"http://127.0.0.1:{port}" in done.output
