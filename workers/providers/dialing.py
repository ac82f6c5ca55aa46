"""A connection to a host that may have several addresses.

Happy eyeballs: the event loop that the worker runs on tries a host's addresses one after another,
so that one dead address costs the whole time-out. Here the next address gets its chance a moment
after the last, and the first to answer wins. Source: RFC 8305.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import chain, zip_longest
from typing import Any, Protocol, TypeVar

# Before the next address is tried. RFC 8305, section 5, recommends half of it where only TCP has
# to answer; here TLS has to as well, and that takes two round trips more.
ATTEMPT_DELAY_S = 0.5

# An address family, and what a socket of it takes as its peer, of which the first is the host.
Address = tuple[int, tuple[Any, ...]]


class Abortable(Protocol):
    """A connection that can be given up."""

    def abort(self) -> None: ...


C = TypeVar("C", bound=Abortable)
# Connects to one address. The loop must make the socket: its own `sock_connect` leaves a watcher
# behind that may later silence the transport of the same socket.
Attempt = Callable[[int, str], Coroutine[Any, Any, C]]


async def dial(host: str, port: int, attempt: Attempt[C]) -> C:
    """What the first successful attempt gives. Raises OSError, of the first address if none does.

    Every other attempt is cancelled, or aborted if it succeeded too late.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = interleave((info[0], info[4]) for info in found)
    if len(addresses) == 1:
        family, peer = addresses[0]
        return await attempt(family, peer[0])
    return await _first([partial(attempt, family, peer[0]) for family, peer in addresses])


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Families take turns, the resolver's first choice first. Source: RFC 8305, section 4."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = chain.from_iterable(zip_longest(*families.values()))
    return [turn for turn in turns if turn is not None]


async def _first(attempts: list[Callable[[], Coroutine[Any, Any, C]]]) -> C:
    """Whichever answers first; a failure gives the next one its turn at once."""
    waiting = list(reversed(attempts))
    tasks: list[asyncio.Task[C]] = []
    winner: asyncio.Task[C] | None = None
    try:
        while winner is None:
            if waiting:
                tasks.append(asyncio.create_task(waiting.pop()(), name="dial"))
            running = [task for task in tasks if not task.done()]
            if running:
                patience = ATTEMPT_DELAY_S if waiting else None
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait(running, timeout=patience, return_when=first)
            winner = next((t for t in tasks if t.done() and not t.exception()), None)
            if winner is None and not waiting and all(task.done() for task in tasks):
                winner = tasks[0]
        return winner.result()
    finally:
        for task in tasks:
            if task is not winner:
                task.cancel()
                task.add_done_callback(_give_up)


def _give_up(task: "asyncio.Task[C]") -> None:
    """An attempt that succeeded together with the winner, or when nobody waited any more."""
    if not task.cancelled() and not task.exception():
        task.result().abort()
