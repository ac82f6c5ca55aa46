"""What is an answer, however its bytes are cut, and what is none. Source: RFC 9112."""

import asyncio
import gc
import weakref
from itertools import pairwise

import httpx
import pytest

from tests.workers.transport.script import (
    OK,
    Peer,
    Server,
    a_transport,
    answer_of,
    ask,
    post,
    saying,
    saying_once,
    serving,
)
from workers.providers.answer import MAX_OVERHEAD_BYTES, Answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-a: 1\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n \r\n0b\r\nwide world!\r\n0\r\ntrailer: t\r\n\r\n"
)
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-a: no\r\n\r\n"


class Wire:
    """A connection for an answer that is fed by hand."""

    def __init__(self) -> None:
        self.resumed = self.aborted = 0

    def resume(self) -> None:
        self.resumed += 1

    def abort(self) -> None:
        self.aborted += 1


def fed(*pieces: bytes) -> Answer:
    """An answer that was given these; like a connection, it gives it none after the end."""
    answer = Answer(Wire())
    for piece in pieces:
        if not answer.failed and not answer.whole:
            answer.feed(piece)
    return answer


async def body_of(answer: Answer) -> bytes:
    await answer.headed()
    return b"".join([part async for part in answer])


@pytest.mark.parametrize(
    ("raw", "body"), [(CHUNKED, b"hello wide world!"), (INTERIM + SIZED, b"hello world")]
)
async def test_an_answer_is_the_same_wherever_it_is_cut(raw: bytes, body: bytes) -> None:
    for at in range(1, len(raw)):
        answer = fed(raw[:at])
        assert not answer.whole
        answer.feed(raw[at:])
        assert await body_of(answer) == body, at
        assert (answer.status, answer.whole, answer.reusable) == (200, True, True)
        assert (b"x-a", b"no") not in answer.headers
        assert not any(name == b"trailer" for name, _ in answer.headers)
    every_byte = fed(*(raw[i:j] for i, j in pairwise(range(len(raw) + 1))))
    assert await body_of(every_byte) == body


@pytest.mark.parametrize("cut", range(1, len(CHUNKED), 7))
async def test_a_cut_over_a_real_connection(cut: int) -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED[:cut])
        await asyncio.sleep(0.005)
        await peer.say(CHUNKED[cut:])
        await peer.over()

    async with serving(script) as server, a_transport() as transport:
        assert await ask(transport, post(server.url)) == (200, b"hello wide world!")


@pytest.mark.parametrize("raw", [CHUNKED, INTERIM + SIZED])
@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_an_answer_that_is_cut_off_is_never_a_whole_one(
    raw: bytes, error: Exception | None
) -> None:
    for at in range(len(raw)):
        answer = fed(raw[:at])
        answer.lost(error)
        kind = httpx.ReadError if error else httpx.RemoteProtocolError
        with pytest.raises(kind):
            await body_of(answer)
        assert not answer.whole


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhalf",
    ],
)
async def test_what_came_before_the_cut_is_told_first(raw: bytes, reset: bool) -> None:
    heard = asyncio.Event()

    async def script(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(raw)
        await heard.wait()  # a reset may overtake what was sent before it
        if reset:
            peer.reset()

    async with serving(script) as server, a_transport() as transport:
        answer = answer_of(await transport.handle_async_request(post(server.url)))
        assert await answer.read() == b"half"
        heard.set()
        for _ in range(2):
            with pytest.raises(httpx.TransportError) as told:
                await answer.read()
            kind = httpx.ReadError if reset else httpx.RemoteProtocolError
            assert type(told.value) is kind


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    raw = b"HTTP/1.1 200 OK\r\n\r\nall there is"
    async with serving(saying_once(raw)) as server, a_transport() as transport:
        for number in (1, 2):
            assert await ask(transport, post(server.url)) == (200, b"all there is")
            assert len(server.peers) == number


async def test_a_body_without_a_length_does_not_end_with_a_reset() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\n\r\nall there is")
    answer.lost(ConnectionResetError())
    with pytest.raises(httpx.ReadError):
        await body_of(answer)


async def test_a_body_without_a_length_does_not_end_because_we_close() -> None:
    raw = b"HTTP/1.1 200 OK\r\n\r\nall there is"
    async with serving(saying(raw)) as server, a_transport() as transport:
        answer = answer_of(await transport.handle_async_request(post(server.url)))
        assert await answer.read() == b"all there is"
        await transport.aclose()
        with pytest.raises(httpx.ReadError):
            await answer.read()


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body(status: int) -> None:
    raw = b"HTTP/1.1 %d No\r\n\r\n" % status
    async with serving(saying(raw)) as server, a_transport() as transport:
        for _ in range(2):
            assert await ask(transport, post(server.url)) == (status, b"")
        assert len(server.peers) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi!\r\n",
        CHUNKED.replace(b"trailer: t\r\n", b"trailer: t\r\n" * 200_000),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",
    ],
)
async def test_what_is_no_answer_is_told_and_the_connection_closed(raw: bytes) -> None:
    async with serving(saying(raw)) as server, a_transport() as transport:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, post(server.url))
        await server.peers[0].gone.wait()
        assert len(server.peers) == 1


@pytest.mark.parametrize("size", [MAX_OVERHEAD_BYTES - 100, MAX_OVERHEAD_BYTES + 1])
@pytest.mark.parametrize("step", [1 << 20, 1000])
async def test_a_head_has_a_limit_however_it_comes(size: int, step: int) -> None:
    raw = b"HTTP/1.1 200 OK\r\nx: " + b"x" * size + b"\r\ncontent-length: 2\r\n\r\nhi"
    answer = fed(*(raw[at : at + step] for at in range(0, len(raw), step)))
    assert answer.failed is (size > MAX_OVERHEAD_BYTES)


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 1000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"t: t\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;", b"extension"),
    ],
)
async def test_overhead_without_end_is_not_kept(begin: bytes, again: bytes) -> None:
    answer = fed(begin)
    for _ in range(MAX_OVERHEAD_BYTES // len(again) + 2):
        assert not answer.failed
        answer.feed(again)
        if answer.failed:
            break
    assert answer.failed


async def test_overhead_between_parts_of_a_body_does_not_add_up() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(MAX_OVERHEAD_BYTES // 2):
        answer.feed(b"1\r\n")
        answer.feed(b"x")
        answer.feed(b"\r\n")
    assert not answer.failed


async def test_what_follows_a_whole_answer_is_no_fault_of_the_answer() -> None:
    answer = fed(OK + b"garbage")
    answer.lost(ConnectionResetError())
    assert await body_of(answer) == b"hi"
    assert (answer.whole, answer.failed, answer.reusable) == (True, False, False)


async def test_an_answer_that_is_over_needs_no_collector() -> None:
    """Nothing of it is left that holds itself: memory is free at once, not when time allows."""
    gc.disable()
    try:
        over = [weakref.ref(fed(raw)) for raw in (OK, CHUNKED, b"SSH-2.0-OpenSSH\r\n")]
        assert [answer() for answer in over] == [None] * 3
    finally:
        gc.enable()


async def test_many_parts_are_read_as_one() -> None:
    answer = fed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    answer.feed(b"1\r\na\r\n1\r\nb\r\n")
    answer.feed(b"1\r\nc\r\n")
    assert answer.unread == 3
    assert await answer.read() == b"abc"
    assert answer.unread == 0
    answer.feed(b"0\r\n\r\n")
    assert [await answer.read() for _ in range(2)] == [b"", b""]


async def test_it_is_httpx_that_is_spoken() -> None:
    """Any client of httpx can use the transport."""
    async with serving(saying(OK)) as server, a_transport() as transport:
        client = httpx.AsyncClient(transport=transport)
        answered = await client.post(server.url, json={"a": 1})
        assert (answered.status_code, answered.text) == (200, "hi")
        assert server.asked[0].endswith(b'{"a":1}')
