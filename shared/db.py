"""Postgres: sessions for reads, and a committer that makes one round trip of many small writes.

What is done for one tenant goes through `Database.session(tenant)`, as `ainfera_caller`: row-level
security shows that role the tenant's rows only. What is done for all of them, by workers, operators
and a few named places of the ingress, goes through `Database.everyone()`, as `ainfera_app`. Neither
owns anything or may change what is append-only. A login only has to be a member of its role.

Reads go through SQLAlchemy. The hot path does not: it calls one SQL function
per batch over a dedicated asyncpg connection, with a statement prepared once, so that a call
costs exactly one round trip. There is no BEGIN and COMMIT (one statement is one transaction) and
no pool that resets a connection.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

import asyncpg
import orjson
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import Row, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from shared.acting import CALLER_ROLE, CallerConnection
from shared.config import Settings
from shared.errors import Draining, Overloaded

log = logging.getLogger(__name__)

_ENLARGE = text(
    "SELECT * FROM enlarge_hold(cast(:id AS uuid), :attempt, :extra, :ttl_s, cast(:guard AS jsonb))"
)

APP_ROLE = "ainfera_app"
APPLICATION_NAME = "ainfera"
BATCH_LIMIT = 32
QUEUE_LIMIT = 2048
CALL_TIMEOUT_S = 30.0
POOLED = {"pool_size": 8, "max_overflow": 8, "pool_pre_ping": True}
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 2.0

Record = asyncpg.Record
# asyncpg's classes take a parameter for type checkers only
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Statement: TypeAlias = "PreparedStatement[asyncpg.Record]"

# The statement may be repeated once Postgres is back, or has room again: the functions that the
# committer calls do nothing twice.
TRANSIENT = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
)


def driver_dsn(url: str) -> str:
    """The URL as asyncpg wants it; `postgresql://user@/db?host=/dir` means a Unix socket."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        raise ValueError("DATABASE_URL must start with postgresql://")
    return f"postgresql://{rest}"


def login_name(url: str) -> str | None:
    """Whom the URL logs in as; None where it leaves that to the environment."""
    parts = urlsplit(url)
    if parts.username:
        return unquote(parts.username)
    return parse_qs(parts.query).get("user", [None])[-1]


async def connect(
    url: str,
    role: str | None,
    application_name: str,
    kind: type[Connection] = asyncpg.Connection,
    timeout_s: float | None = None,
) -> Connection:
    """A connection without a pool. `role` None keeps the rights of the URL's own user.

    Whoever logs in as `role` already is not asked to become it: a pooler such as PgBouncer
    refuses the wish, because it could not take it back for the connection's next client.
    """
    settings = {"application_name": application_name, "jit": "off", "timezone": "UTC"}
    if role is not None and role != login_name(url):
        settings["role"] = role
    return await asyncpg.connect(
        driver_dsn(url),
        server_settings=settings,
        timeout=10.0,
        command_timeout=timeout_s,
        connection_class=kind,
    )


def owner_engine(url: str) -> AsyncEngine:
    """For migrations: the URL's own user, no pool, no role of the application."""
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(url, None, "ainfera-migrations"),
        poolclass=NullPool,
    )


class Database:
    """The database as the application sees it. Connects when first used."""

    __slots__ = ("_autocommit", "_caller_url", "_callers", "_engine", "_url")

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url
        self._caller_url = settings.caller_database_url or settings.database_url
        self._engine = open_engine(self.connect_raw, **POOLED)
        self._callers = open_engine(self._connect_caller, **POOLED)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    def session(self, tenant: UUID) -> AsyncSession:
        """A session that sees and writes the rows of `tenant`, and of nobody else.

        `async with db.session(tenant) as s`, and commit what you write.
        """
        opened = AsyncSession(self._callers, expire_on_commit=False)
        event.listen(opened.sync_session, "after_begin", partial(_act_for, tenant))
        return opened

    def everyone(self) -> AsyncSession:
        """A session that sees all tenants' rows: for workers, for operators, and in the ingress
        only where a test names it."""
        return AsyncSession(self._engine, expire_on_commit=False)

    async def _connect_caller(self) -> Connection:
        return await connect(self._caller_url, CALLER_ROLE, APPLICATION_NAME, CallerConnection)

    async def connect_raw(
        self, application_name: str = APPLICATION_NAME, timeout_s: float | None = None
    ) -> Connection:
        """A dedicated asyncpg connection that sees all tenants' rows; whoever asks closes it. A
        statement that is not answered within `timeout_s` raises `TimeoutError`."""
        return await connect(self._url, APP_ROLE, application_name, timeout_s=timeout_s)

    async def enlarge_hold(
        self, inference_id: str, attempt: int, extra: Decimal, ttl_s: int, guard: str = "{}"
    ) -> dict[str, Any]:
        """Enlarge a hold by `extra` USD and lease it for `ttl_s` from now; an `ExtendOutcome`
        as `result`, and the figures that it was decided by. `guard` has the thresholds."""
        bound = {"id": inference_id, "attempt": attempt, "extra": extra, "ttl_s": ttl_s}
        bound["guard"] = guard
        async with self._autocommit.connect() as connection:
            return dict((await connection.execute(_ENLARGE, bound)).mappings().one())

    async def run(self, statement: str, **bound: Any) -> Sequence[Row[Any]]:
        """The rows of one statement about everyone, a transaction by itself: one round trip."""
        async with self._autocommit.connect() as connection:
            found = await connection.execute(text(statement), bound)
            return found.all() if found.returns_rows else ()

    async def run_for(self, tenant: UUID, statement: str, **bound: Any) -> Sequence[Row[Any]]:
        """The rows of one statement about the rows of `tenant`, committed: three round trips."""
        async with self.session(tenant) as session:
            found = await (await session.connection()).execute(text(statement), bound)
            rows = found.all() if found.returns_rows else ()
            await session.commit()
            return rows

    async def bury(self, item: Mapping[str, Any]) -> str:
        """Set one call aside as a dead letter, durably; a `BuryOutcome`.

        Raises one of `TRANSIENT` while Postgres is away.
        """
        connection = await self.connect_raw(f"{APPLICATION_NAME} bury_inferences")
        try:
            batch = orjson.dumps([item], default=_plain).decode()
            query = "SELECT b.result FROM commit_durably(), bury_inferences($1::jsonb) b"
            return str(await connection.fetchval(query, batch, timeout=CALL_TIMEOUT_S))
        finally:
            connection.terminate()

    async def ping(self) -> None:
        """Raises unless Postgres answers and the schema is there."""
        async with self._autocommit.connect() as connection:
            await connection.execute(text("SELECT version_num FROM alembic_version"))

    async def aclose(self) -> None:
        await self._callers.dispose()
        await self._engine.dispose()


@dataclass(slots=True, eq=False)
class _Waiting:
    """One submitted item as JSON. `given_up`: its submitter has had another answer since."""

    key: str
    text: bytes = field(repr=False)
    answer: asyncio.Future[Record] = field(repr=False)
    given_up: bool = False

    def resolve(self, record: Record | None) -> None:
        if record is None:
            self.fail(LookupError(f"the database said nothing about inference {self.key}"))
        elif not self.answer.done():
            self.answer.set_result(record)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # seen: the submitter may be gone


class Committer:
    """Calls one SQL function of the form `fn(batch jsonb)` for whatever waits, at most 32 items.

    `more` is JSON that goes with every batch, to a function of the form `fn(batch, more jsonb)`.

    There is no timer: while one batch is under way, the next one gathers. Every item has an
    `inference_id`, by which its row of the answer is found; two items of one inference never
    travel together. A batch that Postgres refuses is tried again item by item, so that one bad
    item fails alone. After a lost connection the batch is sent again over a new one, for as long
    as it takes; `patience_s` limits how long an item waits before its submitter gets
    `Overloaded` (503). None is forever: for work that is finished and must be written.
    """

    def __init__(
        self,
        db: Database,
        function: str,
        *,
        patience_s: float | None = None,
        batch_limit: int = BATCH_LIMIT,
        queue_limit: int = QUEUE_LIMIT,
        more: str | None = None,
    ) -> None:
        if not function.isidentifier():
            raise ValueError(f"{function!r} is not the name of a function")
        self._db = db
        self._function = function
        self._more = () if more is None else (more,)
        self._patience_s = patience_s
        self._batch_limit = batch_limit
        self._room = asyncio.Semaphore(queue_limit)
        self._wake = asyncio.Event()
        self._waiting: deque[_Waiting] = deque()
        self._sending: list[_Waiting] = []
        self._connection: Connection | None = None
        self._statement: Statement | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Connect, so that a wrong URL or a missing function shows now, and begin to work."""
        await self._connect()
        self._task = asyncio.create_task(self._work(), name=f"committer {self._function}")

    async def submit(self, item: Mapping[str, Any]) -> Record:
        """The function's row for this item, once its transaction is committed.

        A submitted item is written even if its submitter is cancelled. Raises `Overloaded` when
        patience ran out, `Draining` after `aclose`, or what Postgres said of this very item.
        """
        waiting = _Waiting(
            str(item["inference_id"]),
            orjson.dumps(item, default=_plain),
            asyncio.get_running_loop().create_future(),
        )
        try:
            async with asyncio.timeout(self._patience_s), self._room:
                if self._closing or self._task is None or self._task.done():
                    raise Draining("This process is closing its connection to the database.")
                self._waiting.append(waiting)
                self._wake.set()
                return await waiting.answer
        except TimeoutError:
            waiting.given_up = True
            raise Overloaded("The database does not answer at the moment.") from None

    async def aclose(self, grace_s: float = 10.0) -> None:
        """Finish what was submitted, for at most `grace_s`, then close the connection."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=grace_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._disconnect()

    async def _work(self) -> None:
        try:
            while batch := await self._take():
                self._sending = batch
                await self._commit(batch)
        finally:
            # nobody waits for ever, however this task ends
            for waiting in (*self._sending, *self._waiting):
                waiting.fail(Draining("The process ended before the database answered."))

    async def _take(self) -> list[_Waiting]:
        """What waits, in order of arrival; empty when the committer closes and all is done."""
        while True:
            batch: dict[str, _Waiting] = {}
            later: list[_Waiting] = []
            while self._waiting and len(batch) < self._batch_limit:
                waiting = self._waiting.popleft()
                if waiting.key in batch:
                    later.append(waiting)
                elif not waiting.given_up:
                    batch[waiting.key] = waiting
            self._waiting.extendleft(reversed(later))
            if batch or self._closing:
                return list(batch.values())
            self._wake.clear()
            await self._wake.wait()

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        try:
            await self._send(batch)
        except asyncpg.PostgresError as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
            log.warning("batch_refused", extra={"function": self._function, "items": len(batch)})
            for waiting in batch:
                await self._commit([waiting])

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        """One call for all of them, repeated until Postgres gave an answer, good or bad."""
        backoff = FIRST_BACKOFF_S
        while wanted := [waiting for waiting in batch if not waiting.given_up]:
            payload = (b"[" + b",".join(waiting.text for waiting in wanted) + b"]").decode()
            try:
                statement = self._statement or await self._connect()
                records = await statement.fetch(payload, *self._more, timeout=CALL_TIMEOUT_S)
            except TRANSIENT as error:
                log.warning(
                    "database_away",
                    extra={"function": self._function, "error": type(error).__name__},
                )
                self._disconnect()
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, LAST_BACKOFF_S)
                continue
            found = {str(record["inference_id"]): record for record in records}
            for waiting in wanted:
                waiting.resolve(found.get(waiting.key))
            return

    async def _connect(self) -> Statement:
        self._connection = await self._db.connect_raw(f"{APPLICATION_NAME} {self._function}")
        self._statement = await self._connection.prepare(
            f"SELECT * FROM {self._function}($1::jsonb{', $2::jsonb' if self._more else ''})"
        )
        return self._statement

    def _disconnect(self) -> None:
        connection, self._connection, self._statement = self._connection, None, None
        if connection is not None:
            connection.terminate()


def open_engine(connecting: Callable[[], Awaitable[Connection]], **pooling: Any) -> AsyncEngine:
    """An engine over connections made by `connecting`; `pooling` as SQLAlchemy takes it."""
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connecting,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
        **pooling,
    )


def _act_for(tenant: UUID, _session: Any, _transaction: Any, connection: SyncConnection) -> None:
    """The driver begins with the first statement: what it will say then of whom it is for."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, CallerConnection)
    driver.acts_for = tenant


def _plain(value: object) -> str:
    """Money goes as text, so that no float is ever in between."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    raise TypeError(f"{type(value).__name__} has no JSON form here")
