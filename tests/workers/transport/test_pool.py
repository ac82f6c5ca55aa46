"""Which connections are used again, and which never."""

import asyncio
from contextlib import suppress
from unittest.mock import Mock

import httpx
import pytest

from tests.workers.transport.script import (
    OK,
    Peer,
    Server,
    a_transport,
    answer_of,
    answering,
    ask,
    post,
    saying,
    serving,
    until,
)
from workers.providers import transport as transport_module
from workers.providers.answer import MAX_OVERHEAD_BYTES
from workers.providers.dialing import Attempt, dial
from workers.providers.transport import MAX_UNREAD_BYTES, Connection, Origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOSING = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"


async def test_one_connection_serves_many_calls_and_as_many_as_needed_are_opened() -> None:
    async with serving(answering) as server, a_transport() as transport:
        for _ in range(5):
            await ask(transport, post(server.url))
        assert len(server.peers) == 1
        await asyncio.gather(*(ask(transport, post(server.url)) for _ in range(5)))
        assert len(server.peers) == 5
        await asyncio.gather(*(ask(transport, post(server.url)) for _ in range(5)))
        assert len(server.peers) == 5


async def test_the_last_one_in_is_the_first_one_out() -> None:
    async def script(server: Server, peer: Peer) -> None:
        while await peer.request():
            await asyncio.sleep(0.02 * peer.number)
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % peer.number)

    async with serving(script) as server, a_transport() as transport:
        await asyncio.gather(*(ask(transport, post(server.url)) for _ in range(3)))
        for _ in range(2):
            assert await ask(transport, post(server.url)) == (200, b"3")


async def test_a_whole_answer_frees_its_connection_before_it_is_read() -> None:
    async with serving(answering) as server, a_transport() as transport:
        first = answer_of(await transport.handle_async_request(post(server.url)))
        await until(lambda: first.whole)
        await ask(transport, post(server.url))
        second = await transport.handle_async_request(post(server.url))
        await first.aclose()
        assert await first.read() == b"hi"
        assert await answer_of(second).read() == b"hi"
        assert len(server.peers) == 1


async def test_origins_do_not_share() -> None:
    async with (
        serving(answering) as one,
        serving(answering) as other,
        a_transport() as transport,
    ):
        for server in (one, other, one, other):
            await ask(transport, post(server.url))
        assert (len(one.peers), len(other.peers)) == (1, 1)
        assert (len(one.asked), len(other.asked)) == (2, 2)


@pytest.mark.parametrize(
    "raw",
    [
        CLOSING,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: foo, Close\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi",
        OK + b"garbage",
        OK + OK,
        OK + b"H",
    ],
)
async def test_a_connection_that_must_not_be_used_again_is_closed(raw: bytes) -> None:
    async with serving(saying(raw)) as server, a_transport() as transport:
        for number in (1, 2):
            assert await ask(transport, post(server.url)) == (200, b"hi")
            await server.peers[-1].gone.wait()
            assert len(server.peers) == number


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await asyncio.sleep(0.02)
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await peer.over()
        server.asked.append(b"closed")

    async with serving(script) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        await until(lambda: server.asked == [b"closed"])
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert len(server.peers) == 2


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_is_lost_while_idle_leaves_the_pool_at_once(reset: bool) -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await asyncio.sleep(0.02)
        if reset:
            peer.reset()

    async with serving(script) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        assert len(transport._open) == 1
        await until(lambda: not transport._open)
        assert not any(transport._idle.values())
        await ask(transport, post(server.url))
        assert len(server.peers) == 2


async def test_idle_connections_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "KEEPALIVE_S", 0.2)
    async with serving(answering) as server, a_transport() as transport:
        await asyncio.gather(*(ask(transport, post(server.url)) for _ in range(3)))
        for _ in range(5):  # the one that is used stays
            await asyncio.sleep(0.07)
            await ask(transport, post(server.url))
        assert len(transport._open) == 1
        assert len(server.peers) == 3
        await until(lambda: not transport._open)
        await ask(transport, post(server.url))
        assert len(server.peers) == 4


async def test_a_body_that_is_not_read_to_its_end_closes_its_connection() -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    async with serving(saying(raw)) as server, a_transport() as transport:
        response = await transport.handle_async_request(post(server.url))
        assert await answer_of(response).read() == b"half"
        await response.aclose()
        await server.peers[0].gone.wait()
        with pytest.raises(httpx.ReadError):
            await answer_of(response).read()
        assert not transport._open


async def test_an_answer_that_went_wrong_closes_its_connection_before_it_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    # one byte too many, and nothing after it
    raw = head + b"t: " + b"t" * (MAX_OVERHEAD_BYTES - len(head) - 2)
    async with serving(saying(raw)) as server, a_transport() as transport:
        answer = answer_of(await transport.handle_async_request(post(server.url)))
        await until(lambda: answer.failed)
        await server.peers[0].gone.wait()
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.read()


@pytest.mark.parametrize("say", [b"", b"HTTP/1.1 200 OK\r\ncontent", OK[:-2]])
async def test_who_is_cancelled_while_waiting_closes_the_connection(say: bytes) -> None:
    async def script(server: Server, peer: Peer) -> None:
        while request := await peer.request():
            server.asked.append(request)
            await peer.say(say if request.endswith(b"cancelled") else OK)

    async with serving(script) as server, a_transport() as transport:
        kept = asyncio.create_task(ask(transport, post(server.url)))
        cancelled = asyncio.create_task(ask(transport, post(server.url, b"cancelled")))
        await kept
        await until(lambda: len(server.asked) == 2)
        await asyncio.sleep(0.02)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await until(lambda: [peer.gone.is_set() for peer in server.peers].count(True) == 1)
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert (len(server.peers), len(transport._open)) == (2, 1)


async def test_cancelling_at_any_moment_poisons_nothing() -> None:
    """Every answer names its question; whoever is not cancelled gets its own."""

    async def script(server: Server, peer: Peer) -> None:
        while request := await peer.request():
            body = request.partition(b"\r\n\r\n")[2]
            raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            for at in range(0, len(raw), 17):
                await peer.say(raw[at : at + 17])
                await asyncio.sleep(0)

    async with serving(script) as server, a_transport() as transport:
        for number in range(300):
            question = b"question %d" % number
            task = asyncio.create_task(ask(transport, post(server.url, question)))
            for _ in range(number % 25):
                await asyncio.sleep(0)
            if number % 3:
                task.cancel()
            with suppress(asyncio.CancelledError):
                assert await task == (200, question)
        await until(lambda: len(transport._open) <= 1)
        await until(lambda: [peer.gone.is_set() for peer in server.peers].count(False) <= 1)


async def test_a_server_waits_while_nobody_reads() -> None:
    size, piece = 64 * 1024 * 1024, b"x" * 65536
    sent = 0

    async def script(server: Server, peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            await peer.say(piece)
            sent += len(piece)
        await peer.say(b"")
        await answering(server, peer)

    async with serving(script) as server, a_transport() as transport:
        answer = answer_of(await transport.handle_async_request(post(server.url)))
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        # the rest is in the kernel's buffers, which are not ours to limit
        assert answer.unread <= 2 * MAX_UNREAD_BYTES
        assert sent < size / 2
        got = 0
        async for part in answer:
            got += len(part)
        assert got == size
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert len(server.peers) == 1


async def test_an_answer_that_ends_while_reading_is_paused_frees_its_connection() -> None:
    body = b"x" * (MAX_UNREAD_BYTES + 70_000)
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with serving(saying(raw)) as server, a_transport() as transport:
        for _ in range(3):
            answer = answer_of(await transport.handle_async_request(post(server.url)))
            await asyncio.sleep(0.05)
            assert b"".join([part async for part in answer]) == body
        assert len(server.peers) == 1


async def test_closing_closes_everything() -> None:
    """What is idle, and what is under way."""

    async def script(server: Server, peer: Peer) -> None:
        while b"wait" not in await peer.request():
            await peer.say(OK)
            if peer.writer.is_closing() or peer.reader.at_eof():
                return
        server.asked.append(b"waiting")
        await peer.over()

    async with serving(script) as server, a_transport() as transport:
        await asyncio.gather(*(ask(transport, post(server.url)) for _ in range(3)))
        waiting = asyncio.create_task(ask(transport, post(server.url, b"wait")))
        await until(lambda: bool(server.asked))
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await waiting
        for peer in server.peers:
            await peer.gone.wait()
        with pytest.raises(RuntimeError):
            await ask(transport, post(server.url))


async def test_closing_while_a_connection_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting = asyncio.Event()

    async def slowly(host: str, port: int, attempt: Attempt[Connection]) -> Connection:
        await connecting.wait()
        return await dial(host, port, attempt)

    monkeypatch.setattr(transport_module, "dial", slowly)
    async with serving(answering) as server, a_transport() as transport:
        asking = asyncio.create_task(ask(transport, post(server.url)))
        await asyncio.sleep(0)
        await transport.aclose()
        connecting.set()
        with pytest.raises(httpx.ReadError):
            await asking
        assert not server.asked


async def test_a_connection_that_is_lost_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._transport.abort()
            self.connection_lost(None)  # before the loop says that the connection is there
            self._pool = Mock()  # and once only

    monkeypatch.setattr(transport_module, "Connection", Lost)
    async with serving(answering) as server, a_transport() as transport:
        with pytest.raises(httpx.ReadError):
            await ask(transport, post(server.url))
        await asyncio.sleep(0.01)
        assert not transport._open


async def test_a_lost_connection_is_sent_nothing() -> None:
    """However late that is found out: nobody would be told that there is no answer."""

    async def script(server: Server, peer: Peer) -> None:
        pass

    async with serving(script) as server, a_transport() as transport:
        connection = await transport._connect(Origin("http", server.host, server.port), 5)
        await until(lambda: not transport._open)
        with pytest.raises(httpx.ReadError):
            await connection.send(b"head", b"body").headed()
