"""How a connection comes about: names, addresses, time-outs, and whom TLS trusts."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

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
from workers.providers import dialing
from workers.providers.dialing import dial, interleave
from workers.providers.http import open_transport

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of `localhost` and 127.0.0.1, signed by nobody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, pkcs8, plain) + signed.public_bytes(pem))
    return path


def server_tls(certificate: Path, named: list[str | None] | None = None) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    if named is not None:
        tls.sni_callback = lambda sock, name, context: named.append(name)
    return tls


async def test_tls_names_the_host_and_keeps_the_connection(certificate: Path) -> None:
    named: list[str | None] = []
    async with (
        serving(answering, server_tls(certificate, named)) as server,
        a_transport(str(certificate)) as transport,
    ):
        server.host = "localhost"
        for _ in range(3):
            assert await ask(transport, post(server.url)) == (200, b"hi")
        assert named == ["localhost"]
        server.host = "127.0.0.1"
        assert await ask(transport, post(server.url)) == (200, b"hi")
        assert len(server.peers) == 2


async def test_big_bodies_go_both_ways_over_tls(certificate: Path) -> None:
    big = b"x" * (4 * 1024 * 1024)

    async def script(server: Server, peer: Peer) -> None:
        while request := await peer.request():
            assert request.endswith(big)
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(big) + big)

    async with (
        serving(script, server_tls(certificate)) as server,
        a_transport(str(certificate)) as transport,
    ):
        for _ in range(2):
            answer = answer_of(await transport.handle_async_request(post(server.url, big)))
            await asyncio.sleep(0.2)
            assert b"".join([part async for part in answer]) == big
        assert len(server.peers) == 1


async def test_a_cut_over_tls_is_a_cut(certificate: Path) -> None:
    async def script(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(OK[:-1])

    async with (
        serving(script, server_tls(certificate)) as server,
        a_transport(str(certificate)) as transport,
    ):
        with pytest.raises(httpx.TransportError):
            await ask(transport, post(server.url))
        with pytest.raises(httpx.TransportError):
            await ask(transport, post(server.url))


async def test_a_stranger_is_not_told_anything(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the environment say whom to trust."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with (
        serving(answering, server_tls(certificate)) as server,
        open_transport() as transport,
    ):
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(transport, post(server.url))
        assert not server.asked


async def test_a_host_by_another_name_is_refused(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(answering, server_tls(certificate)) as server,
        a_transport(str(certificate)) as transport,
    ):
        resolve(monkeypatch, "127.0.0.1")
        server.host = "api.vendor.example"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(transport, post(server.url))
        assert not server.asked
        assert not transport._open


async def test_tls_with_a_server_that_speaks_none(certificate: Path) -> None:
    async with serving(saying(OK)) as server, a_transport(str(certificate)) as transport:
        server.scheme = "https"
        with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
            await ask(transport, post(server.url, connect_s=0.5))


async def test_a_handshake_that_takes_too_long(certificate: Path) -> None:
    async def silent(server: Server, peer: Peer) -> None:
        await peer.over()
        server.asked.append(b"closed")

    async with serving(silent) as server, a_transport(str(certificate)) as transport:
        server.scheme = "https"
        with pytest.raises(httpx.ConnectTimeout):
            await ask(transport, post(server.url, connect_s=0.2))
        await until(lambda: server.asked == [b"closed"])


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        async with a_transport() as transport:
            with pytest.raises(httpx.ConnectError):
                await ask(transport, post(url))


async def test_a_name_that_does_not_exist() -> None:
    async with a_transport() as transport:
        for host in ("no-such-host.invalid", "x" * 70 + ".invalid"):
            with pytest.raises(httpx.ConnectError):
                await ask(transport, post(f"http://{host}/"))


@contextmanager
def full(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose queue is full: what connects to it waits for ever."""
    with ExitStack() as opened:
        listening = opened.enter_context(socket.socket())
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(8):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


async def test_a_connection_that_takes_too_long() -> None:
    with full() as port:
        async with a_transport() as transport:
            with pytest.raises(httpx.ConnectTimeout):
                await ask(transport, post(f"http://127.0.0.1:{port}/", connect_s=0.2))


async def test_who_is_cancelled_while_connecting_leaves_nothing() -> None:
    with full() as port:
        async with a_transport() as transport:
            asking = asyncio.create_task(ask(transport, post(f"http://127.0.0.1:{port}/")))
            await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert not transport._open


class Loop:
    """The running loop, but for its resolver."""

    def __init__(self, *addresses: str) -> None:
        self._found = [(socket.AF_INET, 1, 6, "", (address, 0)) for address in addresses]

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio.get_running_loop(), name)

    async def getaddrinfo(self, *told: Any, **more: Any) -> list[Any]:
        return self._found


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name has these addresses."""
    changed = ModuleType("asyncio")
    vars(changed).update(vars(asyncio) | {"get_running_loop": lambda: Loop(*addresses)})
    monkeypatch.setattr(dialing, "asyncio", changed)


async def test_an_address_that_does_not_answer_costs_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with serving(answering) as server, a_transport() as transport:
        with full("127.0.0.2", server.port):
            before = asyncio.get_running_loop().time()
            assert await ask(transport, post(server.url)) == (200, b"hi")
            assert 0.4 < asyncio.get_running_loop().time() - before < 2
            await until(lambda: not dials())
            assert len(transport._open) == 1


async def test_an_address_that_refuses_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "ATTEMPT_DELAY_S", 60)
    async with serving(answering) as server, a_transport() as transport:
        resolve(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        assert await ask(transport, post(server.url)) == (200, b"hi")
        resolve(monkeypatch, "127.0.0.2", "127.0.0.3")
        with pytest.raises(httpx.ConnectError):
            await ask(transport, post(f"http://two.example:{server.port}/"))


def dials() -> list[Any]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "dial"]


class Made:
    """A connection to one of the addresses of a name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_only_the_first_that_answers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "ATTEMPT_DELAY_S", 0)
    resolve(monkeypatch, "a", "b", "c")
    made, go = [], asyncio.Event()

    async def attempt(family: int, address: str) -> Made:
        if address == "c":
            await asyncio.sleep(60)
        await go.wait()
        made.append(Made(address))
        return made[-1]

    dialing_it = asyncio.create_task(dial("three.example", 80, attempt))
    await until(lambda: len(dials()) == 3)
    go.set()
    kept = await dialing_it
    await until(lambda: not dials())
    assert sorted(one.address for one in made) == ["a", "b"]
    assert [one.aborted for one in made] == [one is not kept for one in made]


async def test_who_is_cancelled_while_dialing_stops_every_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialing, "ATTEMPT_DELAY_S", 0)
    resolve(monkeypatch, "a", "b")

    async def attempt(family: int, address: str) -> Made:
        await asyncio.sleep(60)
        return Made(address)

    dialing_it = asyncio.create_task(dial("two.example", 80, attempt))
    await until(lambda: len(dials()) == 2)
    dialing_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialing_it
    await until(lambda: not dials())


async def test_small_writes_do_not_wait() -> None:
    async with serving(answering) as server, a_transport() as transport:
        await ask(transport, post(server.url))
        (connection,) = transport._open
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_families_take_turns() -> None:
    v6, v4 = [(socket.AF_INET6, (f"::{n}",)) for n in range(3)], [(socket.AF_INET, ("1",))]
    assert interleave([*v6, *v4]) == [v6[0], v4[0], v6[1], v6[2]]
