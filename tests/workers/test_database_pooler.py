"""Behind a pooler: what PgBouncer refuses is not asked, and a batch is committed all the same.

The pooler here is a gate before the real server, as strict as PgBouncer about what a client may
ask for when it connects, with `ignore_startup_parameters = jit` as the documentation has it.
Where `pgbouncer` itself is installed, the same is asked of it.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from shared.config import Settings
from shared.db import APP_ROLE, Committer, Database, connect, login_name
from shared.embedded import Servers, servers_identity
from shared.processes import leashed
from tests.workers.ledger_cases import hold, new_agent

# what PgBouncer keeps apart for each client, and what it was told to pass over
TRACKED = {"client_encoding", "datestyle", "timezone", "standard_conforming_strings"}
ALLOWED = TRACKED | {"user", "database", "application_name", "jit"}
SOCKET = ".s.PGSQL.6432"


def startup_parameters(message: bytes) -> dict[str, str]:
    """What a client asks for in its first message: names and values, each ended by a zero."""
    words = message[8:].rstrip(b"\0").split(b"\0")
    return {
        name.decode().lower(): value.decode()
        for name, value in zip(*[iter(words)] * 2, strict=True)
    }


def refusal(parameter: str) -> bytes:
    said = f"unsupported startup parameter: {parameter}"
    fields = b"".join(
        kind + text.encode() + b"\0"
        for kind, text in ((b"S", "FATAL"), (b"C", "08P01"), (b"M", said))
    )
    return b"E" + (len(fields) + 5).to_bytes(4) + fields + b"\0"


@asynccontextmanager
async def strict_gate(servers: Servers, home: Path) -> AsyncIterator[str]:
    """The folder of a socket behind which the gate stands."""

    async def gate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = await reader.readexactly(4)
        first = length + await reader.readexactly(int.from_bytes(length) - 4)
        refused = [name for name in startup_parameters(first) if name not in ALLOWED]
        if refused:
            writer.write(refusal(refused[0]))
            writer.close()
            return
        inner = await asyncio.open_unix_connection(servers.sockets / ".s.PGSQL.5432")
        inner[1].write(first)
        async with asyncio.TaskGroup() as both:
            both.create_task(passed_on(reader, inner[1]))
            both.create_task(passed_on(inner[0], writer))

    server = await asyncio.start_unix_server(gate, home / SOCKET)
    try:
        yield str(home)
    finally:
        server.close()


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def real_pgbouncer(program: str, servers: Servers, home: Path) -> Iterator[str]:
    """PgBouncer itself, one server connection per client session, behind a socket in `home`."""
    identity = servers_identity(servers.home)
    (home / "users.txt").write_text(f'"{APP_ROLE}" ""\n"postgres" ""\n')
    (home / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={servers.sockets}\n[pgbouncer]\n"
        f"unix_socket_dir = {home}\nlisten_port = 6432\nlisten_addr =\n"
        f"auth_type = trust\nauth_file = {home}/users.txt\n"
        "pool_mode = session\nignore_startup_parameters = jit\n"
    )
    for path in (home, *home.iterdir()):
        os.chown(path, identity.uid, identity.gid)
    command = [*leashed("INT", identity), program, "-q", str(home / "pgbouncer.ini")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield str(home)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(params=["gate", "pgbouncer"])
async def pooler(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """The folder of a pooler's socket."""
    home = tmp_path_factory.mktemp("pooler")
    if request.param == "gate":
        async with strict_gate(servers, home) as folder:
            yield folder
        return
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not installed here")
    with real_pgbouncer(program, servers, home) as folder:
        async with asyncio.timeout(10):
            while not (home / SOCKET).exists():
                await asyncio.sleep(0.02)
        yield folder


def through(pooler: str, user: str, database: str) -> str:
    return f"postgresql://{user}@/{database}?host={pooler}&port=6432"


async def test_a_batch_is_committed_through_a_pooler(
    pooler: str, database_name: str, database_url: str, settings: Settings
) -> None:
    url = through(pooler, APP_ROLE, database_name)
    db = Database(settings.model_copy(update={"database_url": url}))
    committer = Committer(db, "open_inferences")
    await committer.start()
    direct = await connect(database_url, APP_ROLE, "test")
    try:
        agent = await new_agent(direct, "5")
        opened = await asyncio.gather(*[committer.submit(hold(agent, "0.1")) for _ in range(5)])
        assert {record["result"] for record in opened} == {"OPENED"}
        await db.ping()
    finally:
        await committer.aclose()
        await db.aclose()
        await direct.close()


async def test_another_login_is_not_let_through_with_rights_of_its_own(
    pooler: str, database_name: str
) -> None:
    """It would have to become the application's role, and a pooler cannot do that: say so."""
    with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter: role"):
        await connect(through(pooler, "postgres", database_name), APP_ROLE, "test")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://ainfera_app:pw@db:6432/ainfera", "ainfera_app"),
        ("postgresql://a%40b@/ainfera?host=/run", "a@b"),
        ("postgresql:///ainfera?host=/run&user=ainfera_app", "ainfera_app"),
        ("postgresql://db/ainfera", None),
    ],
)
def test_whom_a_url_logs_in_as(url: str, name: str | None) -> None:
    assert login_name(url) == name
