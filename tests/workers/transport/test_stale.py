"""A kept connection that the server closed: when the question is asked again, and when never."""

import asyncio

import httpx
import pytest

from tests.workers.transport.script import (
    OK,
    Peer,
    Script,
    Server,
    a_transport,
    answer_of,
    answering,
    ask,
    post,
    serving,
    until,
)
from workers.providers import transport as transport_module

pytestmark = pytest.mark.asyncio(loop_scope="module")


def dying(say: bytes, *, reset: bool = False, after_s: float = 0.0, times: int = 1) -> Script:
    """Each of the first connections answers once; its second request it does not."""

    async def script(server: Server, peer: Peer) -> None:
        server.asked.append(await peer.request())
        if peer.number <= times:
            await peer.say(OK)
            server.asked.append(await peer.request())
            await asyncio.sleep(after_s)
            await peer.say(say)
            if reset:
                peer.reset()
            return
        await peer.say(OK)
        await answering(server, peer)

    return script


@pytest.mark.parametrize("reset", [False, True])
async def test_it_is_asked_once_more_over_a_new_connection(reset: bool) -> None:
    async with serving(dying(b"", reset=reset)) as server, a_transport() as transport:
        for _ in range(2):
            assert await ask(transport, post(server.url, b"question")) == (200, b"hi")
        assert len(server.peers) == 2
        assert len(server.asked) == 3


async def test_a_connection_that_is_closing_is_not_asked() -> None:
    """The loop knows that the connection is gone and has not told the pool yet."""
    async with serving(answering) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        (kept,) = next(iter(transport._idle.values()))
        kept._transport.abort()
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert (len(server.peers), len(server.asked)) == (2, 2)


async def test_it_is_asked_no_third_time() -> None:
    async def script(server: Server, peer: Peer) -> None:
        server.asked.append(await peer.request())
        if peer.number == 1:
            await peer.say(OK)
            server.asked.append(await peer.request())

    async with serving(script) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, post(server.url))
        assert (len(server.peers), len(server.asked)) == (2, 3)


async def test_the_second_attempt_takes_no_kept_connection() -> None:
    async with serving(dying(b"", times=2)) as server, a_transport() as transport:
        await asyncio.gather(*(ask(transport, post(server.url)) for _ in range(2)))
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert len(server.peers) == 3


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("say", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:-1]])
async def test_never_after_a_byte_of_an_answer(say: bytes, reset: bool) -> None:
    heard = asyncio.Event()

    async def script(server: Server, peer: Peer) -> None:
        server.asked.append(await peer.request())
        await peer.say(OK)
        server.asked.append(await peer.request())
        await peer.say(say)
        await heard.wait()
        if reset:
            peer.reset()

    async with serving(script) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        (kept,) = transport._open
        asking = asyncio.create_task(ask(transport, post(server.url)))
        await until(lambda: kept._answer is not None and not kept._answer.untouched)
        heard.set()
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await asking
        assert (len(server.peers), len(server.asked)) == (1, 2)


async def test_never_on_a_new_connection() -> None:
    async def script(server: Server, peer: Peer) -> None:
        server.asked.append(await peer.request())

    async with serving(script) as server, a_transport() as transport:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, post(server.url))
        assert (len(server.peers), len(server.asked)) == (1, 1)


async def test_never_when_the_server_had_time_to_work_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport_module, "STALE_S", 0.1)
    async with serving(dying(b"", after_s=0.2)) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, post(server.url))
        assert len(server.peers) == 1


async def test_never_after_our_own_closing() -> None:
    async with serving(dying(b"", after_s=60)) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        asking = asyncio.create_task(ask(transport, post(server.url)))
        await until(lambda: len(server.asked) == 2)
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await asking
        assert len(server.peers) == 1


async def test_a_whole_answer_is_kept_though_the_connection_is_lost() -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async with serving(script) as server, a_transport() as transport:
        response = await transport.handle_async_request(post(server.url))
        await until(lambda: not transport._open)
        assert await answer_of(response).read() == b"hi"
