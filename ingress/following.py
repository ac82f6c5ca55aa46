"""Readers that follow an inference by its replay: on any ingress, during the run and after it.

One task reads on for all of them, in one round trip a step, and none while nobody follows. It
never blocks in the store, so it needs no connection of its own, and a reader who has not taken
what it was given is passed over until it has: it holds up nobody.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from ingress.reply import Reply, broken_off
from shared.stream import Position, Record, read_news

log = logging.getLogger(__name__)

# who has so much unread is given more only when it has taken some
ROOM_BYTES = 256 * 1024
STREAMS_AT_ONCE = 256


class Followers:
    """The readers, and where in its replay each of them is."""

    def __init__(self, redis: Redis, step_s: float) -> None:
        self._redis = redis
        self._step_s = step_s
        self._since: dict[Reply, Position] = {}
        self._followed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="followers")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def replies(self) -> Iterable[Reply]:
        return self._since

    async def add(self, reply: Reply, since: Position) -> None:
        """Give the reader what is there behind `since`, then what comes."""
        self._since[reply] = since
        try:
            await self._read_on([reply])
        except BaseException:
            self.forget(reply)
            raise
        self._followed.set()

    def forget(self, reply: Reply) -> None:
        self._since.pop(reply, None)
        if not self._since:
            self._followed.clear()

    async def _run(self) -> None:
        while True:
            await self._followed.wait()
            try:
                more = await self._read_on(self._hungry())
            except (RedisError, OSError) as error:
                log.warning("replay_unreadable", extra={"error": repr(error)})
                more = False
            await asyncio.sleep(0 if more else self._step_s)

    def _hungry(self) -> list[Reply]:
        return [r for r in self._since if not r.ended and not r.gone and r.unread < ROOM_BYTES]

    async def _read_on(self, hungry: Iterable[Reply]) -> bool:
        """Read the next entries of everybody's replay; whether there may be more at once."""
        readers: dict[UUID, list[Reply]] = {}
        for reply in hungry:
            readers.setdefault(reply.id, []).append(reply)
        more = False
        for some in _batches(readers):
            since = {id_: min(self._since[reply] for reply in readers[id_]) for id_ in some}
            for news in await read_news(self._redis, since):
                more |= news.more
                for reply in readers[news.inference_id]:
                    if reply in self._since:
                        self._since[reply] = max(self._since[reply], news.position)
                        _hand_over(reply, news.records)
        return more


def _batches(readers: Iterable[UUID]) -> Iterator[list[UUID]]:
    left = iter(readers)
    while batch := list(islice(left, STREAMS_AT_ONCE)):
        yield batch


def _hand_over(reply: Reply, records: Iterable[Record]) -> None:
    now = asyncio.get_running_loop().time()
    for record in records:
        reply.feed(record, now)
    if reply.lacking and not reply.kept:  # the end of one that is kept brings all of it
        reply.end(broken_off("a part of it is not kept any more"))
