"""A server that does what a test scripts, byte for byte, and the transport that asks it."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from workers.providers.answer import Answer
from workers.providers.transport import Transport

LONGEST_TEST_S = 10
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@dataclass
class Peer:
    """The server's end of one connection; `number` counts them from 1.

    `gone` is set when its script is over, which for most is when the client hung up.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self) -> bytes:
        """One whole request, as it came; b"" if the client hung up instead."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return head + await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def over(self) -> None:
        """Until the client hung up."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Close so that the client is told of an error, not of an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Server:
    port: int = 0
    scheme: str = "http"
    host: str = "127.0.0.1"
    peers: list[Peer] = field(default_factory=list)
    asked: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/v1"


Script = Callable[[Server, Peer], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Runs `script` once for each connection and closes it after."""
    told = Server(scheme="https" if tls else "http")
    running: set[asyncio.Task[None]] = set()

    async def run(peer: Peer) -> None:
        try:
            await script(told, peer)
        except ConnectionError:
            pass
        finally:
            peer.writer.close()
            peer.gone.set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer, len(told.peers) + 1)
        told.peers.append(peer)
        running.add(asyncio.get_running_loop().create_task(run(peer)))

    server = await asyncio.start_server(connected, told.host, 0, ssl=tls, limit=1 << 20)
    told.port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(LONGEST_TEST_S):
            yield told
    finally:
        server.close()
        for task in running:
            task.cancel()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        # a script's own assertions are the test's
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


async def answering(server: Server, peer: Peer) -> None:
    """Answers every request with `OK`."""
    while request := await peer.request():
        server.asked.append(request)
        await peer.say(OK)


def saying(data: bytes) -> Script:
    """A script that says this to each request, and then waits for the client to hang up."""

    async def script(server: Server, peer: Peer) -> None:
        while request := await peer.request():
            server.asked.append(request)
            await peer.say(data)

    return script


def saying_once(data: bytes, *, reset: bool = False) -> Script:
    """A script that says this to a connection's first request, and then closes it."""

    async def script(server: Server, peer: Peer) -> None:
        server.asked.append(await peer.request())
        await peer.say(data)
        if reset:
            peer.reset()

    return script


@asynccontextmanager
async def a_transport(cafile: str | None = None) -> AsyncIterator[Transport]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names, and trusts nobody yet
    if cafile is not None:
        tls.load_verify_locations(cafile)
    async with Transport(tls) as transport:
        yield transport


def post(
    url: str, body: bytes = b"{}", connect_s: float | None = 5.0, **headers: str
) -> httpx.Request:
    return httpx.Request(
        "POST",
        url,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        stream=httpx.ByteStream(body),
        extensions={"timeout": {"connect": connect_s}},
    )


async def ask(transport: Transport, request: httpx.Request) -> tuple[int, bytes]:
    """Status and whole body."""
    response = await transport.handle_async_request(request)
    answer = answer_of(response)
    try:
        return response.status_code, b"".join([part async for part in answer])
    finally:
        await answer.aclose()


def answer_of(response: httpx.Response) -> Answer:
    assert isinstance(response.stream, Answer)
    return response.stream


async def until(true: Callable[[], bool], patience_s: float = 5.0) -> None:
    async with asyncio.timeout(patience_s):
        while not true():
            await asyncio.sleep(0.005)
