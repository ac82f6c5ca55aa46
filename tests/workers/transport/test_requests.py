"""What is sent: one head, no more headers than were given, and bodies of any size."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.workers.transport.script import (
    OK,
    Peer,
    Server,
    a_transport,
    answering,
    ask,
    post,
    serving,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
BIG = b"x" * (16 * 1024 * 1024)


def parsed(raw: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = [line.partition(b": ")[::2] for line in lines]
    return first, [(name.lower(), value) for name, value in headers], body


async def test_a_request_is_its_line_its_headers_and_its_body() -> None:
    async with serving(answering) as server, a_transport() as transport:
        await ask(transport, post(f"{server.url}/a?b=c d", b"body", x_key="k"))
        first, headers, body = parsed(server.asked[0])
    assert first == b"POST /v1/a?b=c%20d HTTP/1.1"
    assert sorted(headers) == [
        (b"content-length", b"4"),
        (b"host", f"127.0.0.1:{server.port}".encode()),
        (b"x-key", b"k"),
    ]
    assert body == b"body"


async def test_what_says_where_a_message_ends_is_ours_to_say() -> None:
    async with serving(answering) as server, a_transport() as transport:
        request = post(server.url, b"body", content_length="99", transfer_encoding="chunked")
        request.headers["Host"] = "there.example"
        await ask(transport, request)
        _, headers, body = parsed(server.asked[0])
    assert sorted(headers) == [(b"content-length", b"4"), (b"host", b"there.example")]
    assert body == b"body"


async def test_a_streamed_body_is_sent_with_its_length() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"bo"
        yield b"dy"

    async with serving(answering) as server, a_transport() as transport:
        await ask(transport, httpx.Request("POST", server.url, content=parts()))
        await ask(transport, httpx.Request("GET", server.url))
    _, headers, body = parsed(server.asked[0])
    assert dict(headers)[b"content-length"] == b"4"
    assert body == b"body"
    assert b"content-length" not in dict(parsed(server.asked[1])[1])


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nx: 1", "a\rb", "a\0b", "a\r\n\r\nGET /"])
@pytest.mark.parametrize("where", ["value", "name", "method", "host"])
async def test_no_header_begins_another(value: str, where: str) -> None:
    async with serving(answering) as server, a_transport() as transport:
        request = post(server.url)
        if where == "method":
            request.method = value
        else:
            name, text = ("x-" + value, "1") if where == "name" else ("x-key", value)
            request.headers["host" if where == "host" else name] = text
        with pytest.raises(httpx.LocalProtocolError):
            await ask(transport, request)
        assert not server.peers


@pytest.mark.parametrize("method", ["HEAD", "CONNECT"])
async def test_methods_whose_answers_are_framed_otherwise_are_refused(method: str) -> None:
    async with a_transport() as transport:
        with pytest.raises(httpx.UnsupportedProtocol):
            await transport.handle_async_request(httpx.Request(method, "http://127.0.0.1:1/"))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///path", "/path"])
async def test_no_other_scheme_is_spoken(url: str) -> None:
    async with a_transport() as transport:
        with pytest.raises(httpx.UnsupportedProtocol):
            await transport.handle_async_request(httpx.Request("POST", url))


async def test_a_big_body_waits_for_a_slow_reader() -> None:
    async def script(server: Server, peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        body = b""
        while len(body) < len(BIG):
            body += await peer.reader.read(1 << 20)
            await asyncio.sleep(0.001)
        server.asked.append(head + body)
        await peer.say(OK)
        await answering(server, peer)

    async with serving(script) as server, a_transport() as transport:
        assert await ask(transport, post(server.url, BIG)) == (200, b"hi")
        assert server.asked[0].endswith(b"\r\n\r\n" + BIG)
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert len(server.peers) == 1


async def test_a_refusal_of_a_body_that_nobody_reads_is_heard() -> None:
    """And the connection, with the rest of the body before it, is not used again."""

    async def script(server: Server, peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.sleep(60)

    async with serving(script) as server, a_transport() as transport:
        for number in (1, 2):
            assert await ask(transport, post(server.url, BIG)) == (413, b"no")
            assert len(server.peers) == number


async def test_a_server_that_is_lost_under_a_big_body() -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reset()

    async with serving(script) as server, a_transport() as transport:
        with pytest.raises(httpx.WriteError):
            await ask(transport, post(server.url, BIG))
        assert len(server.peers) == 1


async def test_a_server_that_says_no_more_is_not_sent_the_rest() -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write_eof()
        await asyncio.sleep(60)

    async with serving(script) as server, a_transport() as transport:
        with pytest.raises(httpx.TransportError):
            await ask(transport, post(server.url, BIG))
