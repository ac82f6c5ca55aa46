"""The committer: one round trip for whatever waits, and no item lost, doubled or left hanging."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared.config import Settings
from shared.db import Committer, Connection, Database
from shared.errors import Draining, Overloaded
from tests.workers.ledger_cases import (
    Agent,
    call,
    ending,
    hold,
    new_agent,
    results,
    wallet_of,
)

Make = Callable[..., Settings]
# what Postgres says to whoever comes while it recovers: an ErrorResponse of class 57P03
_FIELDS = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
STARTING_UP = b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS

OPEN, SETTLE = "open_inferences", "settle_inferences"


@asynccontextmanager
async def committer(settings: Settings, function: str, **options: Any) -> AsyncIterator[Committer]:
    db = Database(settings)
    working = Committer(db, function, **options)
    await working.start()
    try:
        yield working
    finally:
        await working.aclose(grace_s=5)
        await db.aclose()


async def backend_of(superuser: Connection, function: str) -> int:
    pid: int = await superuser.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = $1",
        f"ainfera {function}",
    )
    return pid


async def until_blocked(superuser: Connection, pid: int) -> None:
    for _ in range(600):
        if await superuser.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
            return
        await asyncio.sleep(0.02)
    pytest.fail("the statement never came to the lock")


@asynccontextmanager
async def locked(url: str, agent: Agent) -> AsyncIterator[None]:
    """Somebody else has the wallet, so that no call of this agent gets through."""
    other = await asyncpg.connect(url)
    try:
        async with other.transaction():
            await other.execute("SELECT FROM accounts WHERE id = $1 FOR UPDATE", agent.wallet_id)
            yield
    finally:
        await other.close()


async def test_a_hundred_items_cost_four_statements_and_nothing_else(
    settings: Settings, superuser_url: str, ledger_db: Connection
) -> None:
    """As Postgres counts them, BEGIN and COMMIT included."""
    agent = await new_agent(ledger_db, funds="1000")
    superuser = await asyncpg.connect(superuser_url)
    try:
        await superuser.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        async with committer(settings, OPEN) as opener:
            await opener.submit(hold(agent, "1"))
            await superuser.execute("SELECT pg_stat_statements_reset()")
            items = [hold(agent, "1") for _ in range(100)]
            rows = await asyncio.gather(*(opener.submit(item) for item in items))
            counted = await superuser.fetch(
                """SELECT s.query, s.calls FROM pg_stat_statements s JOIN pg_roles r
                       ON r.oid = s.userid JOIN pg_database d ON d.oid = s.dbid
                    WHERE toplevel AND d.datname = current_database() AND NOT r.rolsuper"""
            )
    finally:
        await superuser.close()
    assert [str(row["inference_id"]) for row in rows] == [item["inference_id"] for item in items]
    assert {row["result"] for row in rows} == {"OPENED"}
    assert [(row["query"], row["calls"]) for row in counted] == [
        ("SELECT * FROM open_inferences($1::jsonb)", 4)
    ]


async def test_one_bad_item_fails_alone(settings: Settings, ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    items = [hold(agent, "1"), hold(agent, "-1"), hold(agent, "1"), hold(agent, "1", dialect="\0")]
    async with committer(settings, OPEN) as opener:
        answers = await asyncio.gather(
            *(opener.submit(item) for item in items), return_exceptions=True
        )
    kinds = [
        answer["result"] if isinstance(answer, asyncpg.Record) else type(answer)
        for answer in answers
    ]
    assert kinds == [
        "OPENED",
        asyncpg.CheckViolationError,
        "OPENED",
        asyncpg.UntranslatableCharacterError,
    ]
    assert (await wallet_of(ledger_db, agent))["held"] == 2


async def test_what_has_no_json_form_fails_at_once_and_alone(
    settings: Settings, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db)
    async with committer(settings, OPEN) as opener:
        with pytest.raises(TypeError):
            await opener.submit(hold(agent, "1", model=object()))
        assert (await opener.submit(hold(agent, "1")))["result"] == "OPENED"


async def test_two_items_of_one_call_do_not_travel_together(
    settings: Settings, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    async with committer(settings, OPEN) as opener:
        rows = await asyncio.gather(
            opener.submit(item), opener.submit({**item, "attempt": 2}), opener.submit(item)
        )
    assert [(row["result"], row["attempt"]) for row in rows] == [
        ("OPENED", 1),
        ("EXISTS", 2),
        ("EXISTS", 2),
    ]


async def test_a_connection_killed_in_the_middle_is_replaced_and_nothing_is_lost(
    settings: Settings, superuser_url: str, ledger_db: Connection
) -> None:
    """Killed while a statement is under way: it waits for a wallet that somebody else has."""
    agent = await new_agent(ledger_db, funds="1000")
    superuser = await asyncpg.connect(superuser_url)
    try:
        async with committer(settings, OPEN) as opener:
            killed = await backend_of(superuser, OPEN)
            async with locked(superuser_url, agent):
                waiting = [asyncio.create_task(opener.submit(hold(agent, "1")))]
                await until_blocked(superuser, killed)
                waiting += [asyncio.create_task(opener.submit(hold(agent, "1"))) for _ in range(49)]
                assert await superuser.fetchval("SELECT pg_terminate_backend($1, 5000)", killed)
            rows = await asyncio.gather(*waiting)
            assert await backend_of(superuser, OPEN) != killed
    finally:
        await superuser.close()
    assert {row["result"] for row in rows} == {"OPENED"}
    assert (await wallet_of(ledger_db, agent))["held"] == 50


class BadLine:
    """A socket in front of Postgres that passes everything on, until it is told to lose the
    answer to the next thing sent and hang up (`deaf`); while `down`, it answers as a Postgres
    that is starting up."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.deaf = False
        self.down = False
        self.hung_up = 0
        self._open: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Hang up on everybody, with nothing under way, and be down."""
        self.down = True
        for writer in self._open:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            await reader.read(65536)
            writer.write(STARTING_UP)
            writer.close()
            return
        self._open.append(writer)
        back_reader, back_writer = await asyncio.open_unix_connection(self._target)

        async def answers() -> None:
            while chunk := await back_reader.read(65536):
                if self.deaf:
                    self.deaf = False
                    self.hung_up += 1
                    writer.close()
                    return
                writer.write(chunk)

        relaying = asyncio.create_task(answers())
        while chunk := await reader.read(65536):
            back_writer.write(chunk)
        back_writer.close()
        await relaying
        writer.close()


@asynccontextmanager
async def bad_line(url: str, folder: Path) -> AsyncIterator[tuple[BadLine, str]]:
    """The line and the URL of the same database through it."""
    address, _, sockets = url.partition("?host=")
    proxy = BadLine(f"{sockets}/.s.PGSQL.5432")
    server = await asyncio.start_unix_server(proxy.serve, folder / ".s.PGSQL.5432")
    async with server:
        yield proxy, f"{address}?host={folder}"


async def test_an_answer_lost_after_the_commit_is_asked_for_again(
    make_settings: Make, database_url: str, tmp_path: Path, ledger_db: Connection
) -> None:
    """The worst moment: settled, but nobody was told. One charge, and it is known whose."""
    agent = await new_agent(ledger_db)
    item = hold(agent, "2")
    await call(ledger_db, OPEN, item)
    async with (
        bad_line(database_url, tmp_path) as (proxy, url),
        committer(make_settings(database_url=url), SETTLE) as settler,
    ):
        proxy.deaf = True
        row = await settler.submit(ending(agent, item["inference_id"], "1"))
    assert proxy.hung_up == 1
    assert (row["result"], row["attempt"], row["charged"]) == ("EXISTS", 1, 1)
    assert (await wallet_of(ledger_db, agent))["balance"] == 9


async def test_a_call_given_up_while_postgres_was_away_is_not_placed_afterwards(
    make_settings: Make, database_url: str, tmp_path: Path, ledger_db: Connection
) -> None:
    """Its client was told 503; money held for it would be held for nobody."""
    agent = await new_agent(ledger_db)
    first, lost = hold(agent, "1"), hold(agent, "2")
    async with (
        bad_line(database_url, tmp_path) as (line, url),
        committer(make_settings(database_url=url), OPEN, patience_s=1) as opener,
    ):
        assert (await opener.submit(first))["result"] == "OPENED"
        line.cut()
        with pytest.raises(Overloaded):
            await opener.submit(lost)
        line.down = False
    assert (await wallet_of(ledger_db, agent))["held"] == 1


async def test_impatience_ends_in_overloaded_and_leaves_no_hold(
    settings: Settings, owner_url: str, ledger_db: Connection
) -> None:
    """Items that were given up while they waited are never sent."""
    busy, idle = await new_agent(ledger_db), await new_agent(ledger_db)
    async with committer(settings, OPEN, patience_s=1, batch_limit=1) as opener:
        async with locked(owner_url, busy):
            first = asyncio.create_task(opener.submit(hold(busy, "1")))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await opener.submit(hold(idle, "1"))
            with pytest.raises(Overloaded):
                await first
        assert (await opener.submit(hold(idle, "3")))["result"] == "OPENED"
    assert (await wallet_of(ledger_db, idle))["held"] == 3


async def test_what_was_submitted_is_written_even_if_nobody_waits_for_it(
    settings: Settings, owner_url: str, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    await call(ledger_db, OPEN, item)
    async with committer(settings, SETTLE) as settler, locked(owner_url, agent):
        leaving = asyncio.create_task(settler.submit(ending(agent, item["inference_id"], "1")))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert (await wallet_of(ledger_db, agent))["balance"] == 9


async def test_closing_finishes_what_waits_and_refuses_what_comes(
    settings: Settings, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db, funds="1000")
    async with committer(settings, OPEN) as opener:
        waiting = [asyncio.create_task(opener.submit(hold(agent, "1"))) for _ in range(70)]
        await asyncio.sleep(0)
        await opener.aclose()
        assert {(await each)["result"] for each in waiting} == {"OPENED"}
        with pytest.raises(Draining):
            await opener.submit(hold(agent, "1"))


async def test_closing_without_an_answer_tells_those_who_wait(
    settings: Settings, owner_url: str, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db)
    async with locked(owner_url, agent), committer(settings, OPEN, batch_limit=1) as opener:
        waiting = [asyncio.create_task(opener.submit(hold(agent, "1"))) for _ in range(3)]
        await asyncio.sleep(0)
        await opener.aclose(grace_s=0)
        for each in waiting:
            with pytest.raises(Draining):
                await each


async def test_a_full_queue_makes_submitters_wait_their_turn(
    settings: Settings, ledger_db: Connection
) -> None:
    agent = await new_agent(ledger_db, funds="1000")
    async with committer(settings, OPEN, queue_limit=3) as opener:
        rows = await asyncio.gather(*(opener.submit(hold(agent, "1")) for _ in range(40)))
    assert {row["result"] for row in rows} == {"OPENED"}
    assert (await wallet_of(ledger_db, agent))["held"] == 40


async def test_a_missing_function_shows_at_the_start(settings: Settings) -> None:
    db = Database(settings)
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await Committer(db, "no_such_function").start()
    with pytest.raises(ValueError, match="not the name"):
        Committer(db, "open_inferences('[]'); --")


async def test_a_hold_is_extended_over_the_pool(settings: Settings, ledger_db: Connection) -> None:
    agent = await new_agent(ledger_db)
    item = hold(agent, "1")
    assert await results(ledger_db, OPEN, item) == ["OPENED"]
    db = Database(settings)
    try:
        answer = await db.enlarge_hold(item["inference_id"], 1, Decimal(1), 60)
        await db.ping()
    finally:
        await db.aclose()
    assert answer["result"] == "EXTENDED"
    assert (await wallet_of(ledger_db, agent))["held"] == 2
