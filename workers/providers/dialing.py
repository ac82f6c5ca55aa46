"""A connected socket to a host that may have several addresses.

Happy eyeballs: the event loop that the worker runs on tries a host's addresses one after another,
so that one dead address costs the whole time-out. Here the next address gets its chance a quarter
of a second after the last, and the first to answer wins. Source: RFC 8305.
"""

import asyncio
import socket
from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any

# RFC 8305, section 5: the recommended pause before the next address is tried
ATTEMPT_DELAY_S = 0.25

Address = tuple[int, tuple[Any, ...]]  # family, and what the socket takes as its peer


async def dial(host: str, port: int) -> socket.socket:
    """A non-blocking TCP socket. Raises OSError, of the first address if none answers.

    Being cancelled closes every attempt.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = interleave((info[0], info[4]) for info in found)
    if len(addresses) == 1:
        return await _attempt(addresses[0])
    return await _first(addresses)


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Families take turns, the resolver's first choice first. Source: RFC 8305, section 4."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = chain.from_iterable(zip_longest(*families.values()))
    return [turn for turn in turns if turn is not None]


async def _first(addresses: list[Address]) -> socket.socket:
    """Whichever answers first; a failure gives the next address its turn at once."""
    waiting = list(reversed(addresses))
    attempts: list[asyncio.Task[socket.socket]] = []
    winner: asyncio.Task[socket.socket] | None = None
    try:
        while winner is None:
            if waiting:
                attempts.append(asyncio.create_task(_attempt(waiting.pop()), name="dial"))
            running = [task for task in attempts if not task.done()]
            if running:
                patience = ATTEMPT_DELAY_S if waiting else None
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait(running, timeout=patience, return_when=first)
            winner = next((t for t in attempts if t.done() and not t.exception()), None)
            if winner is None and not waiting and all(task.done() for task in attempts):
                winner = attempts[0]
        return winner.result()
    finally:
        for task in attempts:
            if task is not winner:
                task.cancel()
                task.add_done_callback(_close)


def _close(task: "asyncio.Task[socket.socket]") -> None:
    """An attempt that succeeded together with the winner, or when nobody waited any more."""
    if not task.cancelled() and not task.exception():
        task.result().close()


async def _attempt(address: Address) -> socket.socket:
    family, peer = address
    connected = False
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # small writes do not wait for the answer to the one before
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, peer)
        connected = True
        return sock
    finally:
        if not connected:
            sock.close()
