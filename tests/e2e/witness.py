"""What a stack has written, seen from outside: by a superuser's eye on Postgres and on Valkey.

Nothing here goes through the application's own code, so that a record it forgets to write, or
to read back, is missed here.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, TypeVar, cast
from uuid import UUID

import asyncpg
import orjson
from redis import Redis

from shared.control import CONTROL_CHANNEL

T = TypeVar("T")
PATIENCE_S = 15.0
Row = dict[str, Any]


class Backstage:
    """An event loop on a thread of its own, for what must run while a test's client blocks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="backstage", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def eventually(look: Callable[[], T], what: str) -> T:
    """What `look` finds as soon as it finds anything; for what is written after the answer."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"never seen: {what}")
        time.sleep(0.02)
    return found


class Witness:
    """One pair of eyes on one stack's stores. Rows come as dicts, ids as text, jsonb parsed."""

    def __init__(self, backstage: Backstage, superuser_url: str, redis_url: str) -> None:
        self._backstage = backstage
        self._superuser_url = superuser_url
        self._connection: asyncpg.Connection[asyncpg.Record] = backstage.run(_open(superuser_url))
        self.redis: Redis = Redis.from_url(redis_url)

    def close(self) -> None:
        self._backstage.run(self._connection.close())
        self.redis.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Something that is no test's client, on the loop backstage."""
        return self._backstage.run(work)

    def rows(self, query: str, *values: Any) -> list[Row]:
        found = self._backstage.run(self._connection.fetch(query, *values))
        return [{name: _plain(value) for name, value in row.items()} for row in found]

    def value(self, query: str, *values: Any) -> Any:
        return _plain(self._backstage.run(self._connection.fetchval(query, *values)))

    # -- one call ---------------------------------------------------------------------------

    def inference(self, inference_id: str) -> Row:
        """The row of a call that has ended: its hold settled, or refused before one."""
        query = "SELECT * FROM inferences WHERE id = $1 AND state NOT IN ('held', 'dead')"
        return eventually(
            lambda: self.rows(query, UUID(inference_id)), f"the end of {inference_id}"
        )[0]

    def captures(self, inference_id: str) -> list[Row]:
        query = "SELECT * FROM routing_outcomes WHERE inference_id = $1"
        return self.rows(query, UUID(inference_id))

    def receipts(self, inference_id: str) -> list[Row]:
        return self.rows("SELECT * FROM receipts WHERE inference_id = $1", UUID(inference_id))

    def transfers(self, inference_id: str) -> list[Row]:
        return self.rows("SELECT * FROM transfers WHERE inference_id = $1", UUID(inference_id))

    def events(self, inference_id: str) -> list[Row]:
        """The payloads of the audit events of one call, in order."""
        query = (
            "SELECT payload FROM audit_events WHERE payload::jsonb ->> 'inference_id' = $1 "
            "ORDER BY agent_id, seq"
        )
        return [orjson.loads(row["payload"]) for row in self.rows(query, inference_id)]

    @contextmanager
    def locked_wallet(self, agent_id: str) -> Iterator[Callable[[], Any]]:
        """Nobody can hold or settle for this agent; gives a look at whether anybody tries to."""
        connection = self._backstage.run(_open(self._superuser_url))
        try:
            locking = "SELECT FROM accounts WHERE agent_id = $1::uuid FOR UPDATE"
            self._backstage.run(connection.execute("BEGIN"))
            self._backstage.run(connection.fetch(locking, agent_id))
            blocked = "SELECT pid FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
            mine = connection.get_server_pid()
            yield lambda: self.rows(blocked, mine)
        finally:
            self._backstage.run(connection.close())

    @contextmanager
    def orders(self) -> Iterator[Callable[[], Any]]:
        """Listens to what processes tell each other; gives the next order, if one has come."""
        with cast(Any, self.redis).pubsub(ignore_subscribe_messages=True) as listening:
            listening.subscribe(CONTROL_CHANNEL)
            listening.get_message(timeout=PATIENCE_S)
            yield listening.get_message

    # -- the books --------------------------------------------------------------------------

    def wallet(self, agent_id: str) -> Row:
        return self.rows("SELECT * FROM accounts WHERE agent_id = $1", UUID(agent_id))[0]

    def ledger_sum(self) -> Decimal:
        """Of all entries of all accounts: zero, or a transfer has one side only."""
        total: Decimal = self.value("SELECT coalesce(sum(amount), 0) FROM ledger_entries")
        return total

    def unbalanced_wallets(self) -> list[Row]:
        """Wallets whose balance is not the sum of their entries, or that go below zero."""
        return self.rows(
            "SELECT a.id, a.balance, a.held, coalesce(sum(e.amount), 0) AS folded "
            "FROM accounts a LEFT JOIN ledger_entries e ON e.account_id = a.id "
            "WHERE a.kind = 'wallet' GROUP BY a.id "
            "HAVING a.balance <> coalesce(sum(e.amount), 0) OR a.balance < a.held OR a.held < 0"
        )

    # -- everything -------------------------------------------------------------------------

    def tables_with(self, text: str) -> list[str]:
        """The tables in which any column of any row holds `text`, in any case."""
        tables = self.rows(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) AS name "
            "FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        # bytea shows as hex
        query = "SELECT count(*) FROM {} AS r WHERE r::text ILIKE $1 OR r::text ILIKE $2"
        wanted = (f"%{text}%", f"%{text.encode().hex()}%")
        return [t["name"] for t in tables if self.value(query.format(t["name"]), *wanted)]

    def keys_with(self, text: str) -> list[bytes]:
        """The Valkey keys whose name or serialized value holds `text`."""
        wanted = text.encode()
        found = []
        for key in self.redis.scan_iter(count=1000):
            held = _contents(self.redis, key)
            if wanted in key or any(wanted in part for part in held):
                found.append(key)
        return found


def _contents(redis: Any, key: bytes) -> list[bytes]:
    """All the bytes under a key, whatever its type; nothing if it went meanwhile."""
    match redis.type(key):
        case b"string":
            return [redis.get(key) or b""]
        case b"hash":
            return [part for pair in redis.hgetall(key).items() for part in pair]
        case b"list":
            return list(redis.lrange(key, 0, -1))
        case b"set":
            return list(redis.smembers(key))
        case b"zset":
            return list(redis.zrange(key, 0, -1))
        case b"stream":
            entries = redis.xrange(key)
            return [part for _, fields in entries for pair in fields.items() for part in pair]
        case b"none":
            return []
        case kind:
            raise TypeError(f"{key!r} is a {kind!r}: nobody looks into those yet")


async def _open(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    connection = await asyncpg.connect(url)
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_dumps, decoder=orjson.loads
    )
    return connection


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value
