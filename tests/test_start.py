"""How processes refuse to start: one line that names the setting, and an exit code for why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import SettingsError, read_settings
from shared.listening import AddressError, refuse_address
from shared.preflight import Unreachable, check_postgres, check_valkey
from tests.conftest import MASTER_KEY
from tests.nursery import nursery

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = (
    ("ingress",),
    ("workers", "inference"),
    ("workers", "books"),
    ("workers.cli", "work", "inference"),
)
NOWHERE = {
    "DATABASE_URL": "postgresql://someone:hidden@127.0.0.1:1/ainfera",
    "REDIS_URL": "redis://:hidden@127.0.0.1:1/0",
}
SETTINGS, UNREACHABLE = 2, 1


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, "AINFERA_MASTER_KEY": MASTER_KEY, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def forked(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `run` tells, of a process that is spared its imports."""
    told = {**os.environ, "AINFERA_MASTER_KEY": MASTER_KEY, **environment}
    return nursery().run(words, told, timeout=60)


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize("words", PROCESSES, ids=" ".join)
def test_a_setting_that_is_missing_is_named(words: tuple[str, ...]) -> None:
    done = run(*words, REDIS_URL=NOWHERE["REDIS_URL"])
    assert done.returncode == SETTINGS, done.stderr
    assert one_line(done.stderr).startswith("DATABASE_URL is not set")
    assert done.stdout == ""


@pytest.mark.parametrize("words", PROCESSES, ids=" ".join)
def test_a_server_that_does_not_answer_is_named(words: tuple[str, ...]) -> None:
    done = forked(*words, **NOWHERE)
    assert done.returncode == UNREACHABLE, done.stderr
    assert one_line(done.stderr).startswith("DATABASE_URL: Postgres at 127.0.0.1:1 ")
    assert "hidden" not in done.stdout + done.stderr


def test_both_are_asked_for(database_url: str) -> None:
    for process in ("ingress", "workers inference"):
        done = forked(*process.split(), DATABASE_URL=database_url)
        assert done.returncode == SETTINGS, done.stderr
        assert one_line(done.stderr).startswith("REDIS_URL is not set")
        changed = {"DATABASE_URL": database_url, "REDIS_URL": NOWHERE["REDIS_URL"]}
        done = forked(*process.split(), **changed)
        assert done.returncode == UNREACHABLE, done.stderr
        assert one_line(done.stderr).startswith("REDIS_URL: Valkey at 127.0.0.1:1 ")


def test_a_database_without_a_schema_says_what_to_do(empty_database: str, redis_url: str) -> None:
    app_url = empty_database.replace("ainfera_owner@", "ainfera_app@")
    done = forked("ingress", DATABASE_URL=app_url, REDIS_URL=redis_url)
    assert done.returncode == UNREACHABLE, done.stderr
    assert "fleet migrate" in one_line(done.stderr)


@pytest.mark.parametrize(
    "url", ["", "mysql://h/d", "postgresql://u:hidden@h:port/d", "postgresql://u:hidden@[::1/d"]
)
async def test_a_database_url_that_makes_no_sense_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL") as refused:
        await check_postgres("DATABASE_URL", url)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("url", ["", "http://h", "redis://:hidden@h:port", "redis://h/name"])
async def test_a_redis_url_that_makes_no_sense_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL") as refused:
        await check_valkey(url)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://u@/d?host=/nowhere/at/all", "postgresql://u:hidden@nowhere.invalid/d"]
)
async def test_where_postgres_was_looked_for_is_told_without_the_password(url: str) -> None:
    with pytest.raises(Unreachable, match=r"/nowhere/at/all|nowhere\.invalid") as refused:
        await check_postgres("DATABASE_URL", url)
    assert "hidden" not in str(refused.value)


def test_a_host_that_is_none_is_told_as_such() -> None:
    done = forked("ingress", **NOWHERE, HOST="no-such-host.invalid")
    assert done.returncode == SETTINGS
    assert one_line(done.stderr).startswith("HOST=no-such-host.invalid ")
    for host in ("no-such-host.invalid", "203.0.113.7"):
        with pytest.raises(SettingsError, match=r"HOST=.*127\.0\.0\.1.*0\.0\.0\.0") as refused:
            refuse_address(host, 8080)
        assert "PORT=" not in str(refused.value)


def test_every_form_of_a_host_can_be_listened_on() -> None:
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        refuse_address(host, 0)
    if Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text():
        refuse_address("::1", 0)
        refuse_address("::", 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on every port")
def test_a_port_for_root_alone_is_told_as_such() -> None:
    with pytest.raises(AddressError, match="PORT=8080"):
        refuse_address("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("told", "good"),
    [
        ({"IDLE_DEADLINE_SECONDS": "300.5"}, False),  # the default of the other one is too short
        ({"HOLD_TTL_SECONDS": "359"}, False),
        ({"HOLD_TTL_SECONDS": "360"}, True),
        ({"HOLD_TTL_SECONDS": "6", "IDLE_DEADLINE_SECONDS": "2"}, True),
    ],
)
def test_a_hold_outlives_the_silence_of_a_provider(
    told: dict[str, str], good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    if good:
        read_settings()
        return
    with pytest.raises(SettingsError, match=r"HOLD_TTL_SECONDS: .*IDLE_DEADLINE_SECONDS"):
        read_settings()
