"""The `fleet` command by hand: what it prints, what it refuses, and with which exit code."""

import asyncio
import base64
import socket

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from shared.queue import INFERENCE_QUEUE
from workers.cli import main


def fleet(*words: str, **environment: str) -> Result:
    shown = {"NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    return CliRunner().invoke(main, words, env=shown | environment)


def test_help_teaches() -> None:
    done = fleet("--help")
    assert done.exit_code == 0
    for command in ("up", "work", "migrate", "seed", "secrets", "health", "signup"):
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
    assert len(first) == 6
    assert set(first.values()).isdisjoint(second.values())


@pytest.mark.parametrize("command", ["migrate", "seed"])
def test_without_a_database_it_says_what_to_set(command: str) -> None:
    done = fleet(command)
    assert done.exit_code == 1
    assert "MIGRATION_DATABASE_URL" in done.stderr
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
    async def health() -> int:
        done = await asyncio.to_thread(fleet, "health", "inference", REDIS_URL=redis_url)
        return done.exit_code

    assert await health() == 1
    async with Redis.from_url(redis_url) as client:
        await client.set(f"{INFERENCE_QUEUE}:health-check", "j_complete=0")
    assert await health() == 0
