"""A worker's end of the wire: records out, to the live channel and into the replay."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from shared.queue import Envelope
from shared.replay_stream import Command, ReplayLimits, ReplayWriter, followed_key, replay_key
from shared.stream import Record, RecordKind, read_replay

log = logging.getLogger(__name__)

NO_REPLAY = ReplayLimits(seconds=0)


class Line:
    """Where the records of one attempt go: `channel` is the live one, "" where nobody listens."""

    __slots__ = ("channel", "replay")

    def __init__(self, channel: str, replay: ReplayWriter | None = None) -> None:
        self.channel = channel
        self.replay = replay

    def note_asked(self, asked: bytes | None) -> None:
        """What the call asked of its answer's form, to be left beside the replay with its end."""
        if self.replay is not None:
            self.replay.asked = asked


class Publisher:
    """A worker's end: one flusher for the whole process.

    The first record of an answer and the last never wait; what comes between waits up to
    `coalesce_s` for company, because a publish costs far more than a record in it. The replay
    is written in the same round trips but in larger steps: it lags behind by one at most.
    """

    def __init__(self, redis: Redis, coalesce_s: float, limits: ReplayLimits = NO_REPLAY) -> None:
        self._redis = redis
        # connects when it is first used, and again after it was cut
        pool: Any = redis.connection_pool
        self._connection: Any = pool.make_connection()
        self._coalesce_s = coalesce_s
        self._limits = limits
        self._waiting: dict[str, list[bytes]] = {}
        # in the order in which they were first told of, as dicts are
        self._gathering: dict[ReplayWriter, None] = {}
        self._due: dict[ReplayWriter, None] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._step_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def aclose(self) -> None:
        """Send what waits, then stop."""
        if self._task is None:
            return
        self._end_step()
        self._wake.set()
        await self._idle.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._connection.disconnect()

    def open_line(self, envelope: Envelope, attempt: int) -> Line:
        """A line for one attempt at one inference."""
        kept = self._limits.seconds > 0
        writer = ReplayWriter(envelope, attempt, self._limits) if kept else None
        return Line(envelope.reply_to, writer)

    async def told_before(self, inference_id: UUID) -> list[Record]:
        """What earlier attempts told, as far as it is known; waits a while for the store."""
        if not self._limits.seconds:
            return []
        found: list[Record] = await _patient()(read_replay, self._redis, inference_id)
        return found

    async def forget_unread(self, inference_id: UUID) -> bool:
        """Forget what was told of a call if nobody has followed it; whether that was so."""
        unread: bool = await _patient()(self._forget_unread, inference_id)
        return unread

    async def _forget_unread(self, inference_id: UUID) -> bool:
        if await self._redis.exists(followed_key(inference_id)):
            return False
        await self._redis.delete(replay_key(inference_id))
        return True

    def publish(self, line: Line, records: Sequence[Record], *, urgent: bool) -> None:
        """Hand records over in order; they are sent in order, per channel, soon."""
        packed = [record.pack() for record in records]
        if line.channel:
            self._waiting.setdefault(line.channel, []).extend(packed)
        if line.replay is not None:
            self._gather(line.replay, packed, records[-1], urgent)
        self._idle.clear()
        if urgent:
            self._wake.set()
        else:
            self._wake_soon()

    def _wake_soon(self) -> None:
        if not self._coalesce_s:
            self._wake.set()
        elif self._timer is None and not self._wake.is_set():
            self._timer = asyncio.get_running_loop().call_later(self._coalesce_s, self._wake.set)

    def _gather(
        self, writer: ReplayWriter, packed: Sequence[bytes], last: Record, urgent: bool
    ) -> None:
        writer.gather(packed, last.seq)
        if urgent:
            writer.ended = last.kind >= RecordKind.DONE
            self._gathering.pop(writer, None)
            self._due[writer] = None
        elif writer not in self._due:
            self._gathering[writer] = None
            if self._step_timer is None:
                loop = asyncio.get_running_loop()
                self._step_timer = loop.call_later(self._limits.step_s, self._end_step)

    def _end_step(self) -> None:
        if self._step_timer is not None:
            self._step_timer.cancel()
            self._step_timer = None
        self._due.update(self._gathering)
        self._gathering.clear()
        # with the next publish, which costs less than a round trip of its own
        self._wake_soon()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            commands = self._take()
            if commands:
                await self._send(commands)
            if not self._waiting and not self._due and not self._gathering:
                self._idle.set()

    def _take(self) -> list[Command]:
        """What is to be sent now. The replay comes first: what it lacks was told to nobody."""
        commands: list[Command] = []
        if self._due:
            now = asyncio.get_running_loop().time()
            for writer in self._due:
                commands.extend(writer.take(now))
            self._due.clear()
        messages, self._waiting = self._waiting, {}
        for channel, parts in messages.items():
            commands.append(("PUBLISH", channel, b"".join(parts)))
        return commands

    async def _send(self, commands: Sequence[Command]) -> None:
        """Send, trying for a while; then let go: a reader sees the gap in `seq`.

        What is sent twice is told apart by its `seq`, in the replay by the store itself.
        """
        try:
            await self._send_once(commands)
        except (RedisError, OSError):
            try:
                await _patient()(self._send_once, commands)
            except (RedisError, OSError) as error:
                log.error("publish_failed", extra={"messages": len(commands), "error": repr(error)})

    async def _send_once(self, commands: Sequence[Command]) -> None:
        for command, answer in zip(commands, await self._exchange(commands), strict=True):
            if isinstance(answer, ResponseError) and not _harmless(command, answer):
                raise answer

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The store's answers, errors among them, over a connection of our own.

        A pipeline would check one out of a pool and in again, at the cost of the publish itself.
        """
        connection = self._connection
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _answer(connection) for _ in commands]
        except BaseException:
            # what comes now would be taken for the answer to something else
            await connection.disconnect(nowait=True)
            raise


def _patient() -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type((RedisError, OSError)),
        stop=stop_after_delay(10),
        wait=wait_exponential(multiplier=0.05, max=1),
        reraise=True,
    )


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _harmless(command: Command, error: Exception) -> bool:
    """Whether only the replay suffers: it has the entry, or a newer attempt's, or is full."""
    if command[0] == "PUBLISH":
        return False
    if isinstance(error, OutOfMemoryError):
        log.warning("replay_not_written", extra={"error": repr(error)})
        return True
    return "equal or smaller" in str(error)
