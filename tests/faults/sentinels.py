"""A Valkey master with a replica and one Sentinel over them, on this machine alone."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

from redis import Redis
from redis.exceptions import RedisError

from shared.embedded import valkey_program
from shared.processes import Server, leashed, start

MASTER = "ainfera"
PASSWORD = "not-a-secret"
# A master that is silent for so long is down. One Sentinel decides alone.
DOWN_AFTER_MS = 500


@dataclass(frozen=True, slots=True)
class Watched:
    """`url` is what a process is told; the first Sentinel it names is not there."""

    url: str
    sentinel_port: int
    servers: dict[int, Server]

    def master_port(self) -> int:
        """Where the Sentinel says that the master is."""
        with Redis(port=self.sentinel_port) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(MASTER)[1])

    def kill_master(self) -> int:
        """kill -9; returns the port that was its."""
        port = self.master_port()
        self.servers[port].process.send_signal(SIGKILL)
        self.servers[port].process.wait()
        return port


@contextmanager
def watched_valkey(home: Path) -> Iterator[Watched]:
    """Two servers that know each other and a Sentinel that knows both."""
    first, second, sentinel, nobody = free_ports(4)
    with ExitStack() as stack:
        servers = {
            first: _server(stack, home, first, []),
            second: _server(stack, home, second, ["--replicaof", f"127.0.0.1 {first}"]),
        }
        # a Sentinel looks at a replica every ten seconds only: let it see a good one at once
        _until(lambda: _follows(second))
        _sentinel(stack, home, sentinel, first)
        _until(lambda: _knows_replica(sentinel))
        sentinels = f"127.0.0.1:{nobody},127.0.0.1:{sentinel}"
        yield Watched(f"redis+sentinel://:{PASSWORD}@{sentinels}/{MASTER}/0", sentinel, servers)


def free_ports(count: int) -> list[int]:
    """All of them are held until the last is known, so that no two are the same."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _server(stack: ExitStack, home: Path, port: int, options: list[str]) -> Server:
    folder = home / str(port)
    folder.mkdir()
    command = [*leashed("TERM"), valkey_program(), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(folder), "--save", "", "--repl-diskless-sync-delay", "0"]
    command += ["--requirepass", PASSWORD, "--primaryauth", PASSWORD, *options]
    server = start(f"valkey {port}", command, home / f"{port}.log", [SIGTERM], _answers(port))
    stack.callback(server.stop)
    return server


def _sentinel(stack: ExitStack, home: Path, port: int, master_port: int) -> None:
    config = home / "sentinel.conf"  # it writes what it learns into this file
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {home}\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {master_port} 1\n"
        f"sentinel auth-pass {MASTER} {PASSWORD}\n"
        f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\n"
        f"sentinel failover-timeout {MASTER} 3000\n"
    )
    command = [*leashed("TERM"), valkey_program(), str(config), "--sentinel"]
    server = start("sentinel", command, home / "sentinel.log", [SIGTERM], _answers(port, None))
    stack.callback(server.stop)


def _answers(port: int, password: str | None = PASSWORD) -> Callable[[int], bool]:
    def ready(_: int) -> bool:
        with suppress(RedisError), Redis(port=port, password=password) as client:
            return bool(client.ping())
        return False

    return ready


def _follows(port: int) -> bool:
    with Redis(port=port, password=PASSWORD) as replica:
        link: str = replica.info("replication")["master_link_status"]
    return link == "up"


def _knows_replica(sentinel_port: int) -> bool:
    """A failover is possible once the Sentinel has seen a replica that follows its master."""
    with Redis(port=sentinel_port) as sentinel:
        replicas = sentinel.sentinel_slaves(MASTER)
    return any(replica["master-link-status"] == "ok" for replica in replicas)


def _until(condition: Callable[[], bool], patience_s: float = 30) -> None:
    ends_at = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < ends_at, "the servers did not find each other"
        time.sleep(0.05)
