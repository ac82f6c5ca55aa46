"""Whether a chain holds, for everybody who asks, at a price that everybody may ask.

To check a chain is to hash all of it, and one grows for years. So it is done in parts, one at
a time in a process, with pauses in which calls go on; and what was found to hold is remembered
for a while, so that who asks again waits for the tail alone. After that while the whole is checked
anew: an old event that was changed meanwhile shows by then.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID
from weakref import WeakValueDictionary

from shared.domain.audit import AuditEvent, Verification, verify_chain

AT_ONCE = 250
# how long it is believed that the beginning of a chain holds
BELIEVED_S = 300.0
MOST_REMEMBERED = 10_000
CUT = "the chain does not reach its head"

# up to so many events of the chain from the one behind `seq` on, in its order
Read = Callable[[int, int], Awaitable[Sequence[AuditEvent]]]


@dataclass(frozen=True, slots=True)
class Head:
    """What was noted of a chain's end before it was read: the newest event's number and hash."""

    seq: int
    hash: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """A chain held up to and with `last`; all of it was looked at from `since` on."""

    last: AuditEvent
    since: float


class ChainChecks:
    """The chains that this process has checked lately. Times are of the loop's clock."""

    def __init__(self) -> None:
        self._held: OrderedDict[UUID, Held] = OrderedDict()
        self._asked: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._turn = asyncio.Lock()

    async def check(self, agent_id: UUID, head: Head | None, read: Read) -> Verification:
        """Whether the chain holds together and reaches `head`, which was read before."""
        alone = self._asked.setdefault(agent_id, asyncio.Lock())
        async with alone:
            now = asyncio.get_running_loop().time()
            held = self._held.pop(agent_id, None)
            if held is not None and not await _stands(held, head, now, read):
                held = None
            found, last = await self._walk(held.last if held else None, head, read)
            if found.valid and last is not None:
                self._held[agent_id] = Held(last, held.since if held else now)
            while len(self._held) > MOST_REMEMBERED:
                self._held.popitem(last=False)
            return found

    async def _walk(
        self, last: AuditEvent | None, head: Head | None, read: Read
    ) -> tuple[Verification, AuditEvent | None]:
        """Check what comes behind `last`, part by part; also the last event that there is."""
        loop = asyncio.get_running_loop()
        passed_head = head is None or head.seq == 0 or _is(head, last)
        while True:
            async with self._turn:  # a part of each chain in turn, so a long one holds up nobody
                page = await read(last.seq if last else 0, AT_ONCE)
                if not page:
                    break
                began = loop.time()
                found = verify_chain(page, after=last)
                # half of a core at most is for this, however many ask
                await asyncio.sleep(loop.time() - began)
            if not found.valid:
                return found, None
            passed_head = passed_head or any(_is(head, event) for event in page)
            last = page[-1]
        count = last.seq if last else 0
        if not passed_head:
            return Verification(count, False, count + 1, CUT), None
        return Verification(count, True), last


async def _stands(held: Held, head: Head | None, now: float, read: Read) -> bool:
    """Whether what was found then may be built upon: not for long, and its end is there."""
    if now - held.since > BELIEVED_S or head is None or head.seq < held.last.seq:
        return False
    return list(await read(held.last.seq - 1, 1)) == [held.last]


def _is(head: Head | None, event: AuditEvent | None) -> bool:
    return (
        head is not None
        and event is not None
        and (event.seq, event.event_hash)
        == (
            head.seq,
            head.hash,
        )
    )
