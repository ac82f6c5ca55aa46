"""The servers of a home: real, private, found again, and never left behind."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from shared.embedded import (
    APP_ROLE,
    OWNER_ROLE,
    Servers,
    embedded_servers,
    refuse_claimed,
    servers_identity,
)
from shared.processes import ServerError, leashed


async def test_roles_are_neither_superuser_nor_each_other(servers: Servers) -> None:
    connection = await asyncpg.connect(servers.app_url)
    try:
        rows = await connection.fetch(
            "SELECT rolname, rolsuper, rolcreaterole, rolbypassrls FROM pg_roles"
            " WHERE rolname IN ($1, $2)",
            OWNER_ROLE,
            APP_ROLE,
        )
        assert await connection.fetchval("SELECT current_user") == APP_ROLE
        owner = await connection.fetchval(
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        )
    finally:
        await connection.close()
    assert {tuple(row) for row in rows} == {
        (OWNER_ROLE, False, False, False),
        (APP_ROLE, False, False, False),
    }
    assert owner == OWNER_ROLE


async def test_valkey_keeps_everything(tmp_path: Path) -> None:
    with embedded_servers(tmp_path / "home", postgres=False) as running:
        async with Redis.from_url(running.redis_url) as client:
            settings = await client.config_get("maxmemory-policy", "appendonly", "appendfsync")
            await client.set("kept", "1")
    assert settings == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
    }
    with embedded_servers(tmp_path / "home", postgres=False) as running:
        async with Redis.from_url(running.redis_url) as client:
            assert await client.get("kept") == b"1"


async def test_second_start_finds_its_data_in_a_long_closed_path(tmp_path: Path) -> None:
    """Mode 0700 all the way, a blank, and too long for a socket: the folder of a clone."""
    home = tmp_path / ("a long path " + "x" * 80) / "home"
    for _ in range(2):
        with embedded_servers(home, valkey=False, durable=False) as running:
            connection = await asyncpg.connect(running.owner_url)
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
            await connection.execute("INSERT INTO kept VALUES (1)")
            count = await connection.fetchval("SELECT count(*) FROM kept")
            await connection.close()
            sockets = running.sockets
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert not sockets.exists()
    assert count == 2


def test_nothing_listens_on_the_network(servers: Servers) -> None:
    for server in servers.running.values():
        connections = psutil.Process(server.pid).net_connections(kind="inet")
        assert connections == []


async def test_valkey_keeps_no_log_of_commands_with_their_payloads(servers: Servers) -> None:
    """Even with everything slow and large: the log of commands has no room for one."""
    everything = {
        "slowlog-log-slower-than": 0,
        "commandlog-request-larger-than": 0,
        "commandlog-reply-larger-than": 0,
    }
    async with Redis.from_url(servers.redis_url) as client:
        before = {name: (await client.config_get(name))[name] for name in everything}
        for name, threshold in everything.items():
            await client.config_set(name, threshold)
        try:
            await client.set("payload", "a prompt")
            await client.get("payload")
            assert await client.slowlog_len() == 0
            for kind in ("slow", "large-request", "large-reply"):
                assert await client.execute_command("COMMANDLOG", "LEN", kind) == 0
        finally:
            for name, threshold in before.items():
                await client.config_set(name, threshold)
            await client.delete("payload")


def test_two_fleets_cannot_share_a_home(tmp_path: Path) -> None:
    with (
        embedded_servers(tmp_path, postgres=False, durable=False),
        pytest.raises(ServerError, match=f"in use by another fleet .process {os.getpid()}"),
        embedded_servers(tmp_path, postgres=False, durable=False),
    ):
        pass


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="no_such_setting"),
        embedded_servers(tmp_path, valkey=False, postgres_options={"no_such_setting": "1"}),
    ):
        pass


def test_a_borrowed_identity_passes_through_closed_folders(tmp_path: Path) -> None:
    """As a clone that root made in a folder closed to others; for anyone else this is plain."""
    (tmp_path / "closed").mkdir(mode=0o700)
    program = tmp_path / "closed" / "program"
    program.touch(mode=0o700)
    test = f"import os, sys; sys.exit(not os.access({str(program)!r}, os.X_OK))"
    command = [sys.executable, "-c", test]
    assert (
        subprocess.run([*leashed("KILL", servers_identity(tmp_path / "home")), *command]).returncode
        == 0
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
def test_servers_die_with_a_killed_parent(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import pathlib, signal, sys
        from shared.embedded import embedded_servers
        with embedded_servers(pathlib.Path(sys.argv[1]), durable=False) as running:
            print(*[server.pid for server in running.running.values()], flush=True)
            signal.pause()
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    with embedded_servers(tmp_path, durable=False) as running:
        assert len(running.running) == 2


def test_a_home_is_looked_at_without_being_made_or_taken(tmp_path: Path) -> None:
    home = tmp_path / "home"
    refuse_claimed(home)
    assert not home.exists()
    with (
        embedded_servers(home, postgres=False, durable=False),
        pytest.raises(ServerError, match="in use by another fleet"),
    ):
        refuse_claimed(home)
    refuse_claimed(home)
