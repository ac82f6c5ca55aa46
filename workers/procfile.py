"""The Procfile's processes under one roof: started together, stopped in order.

honcho reads the file; the running is ours, because honcho stops everything at once and after
five seconds by force, while an answer that is being streamed needs its worker for longer.
"""

import asyncio
import itertools
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from honcho.environ import expand_processes, parse_procfile

from shared.processes import leashed

_CHUNK = 65_536
_COLOURS = itertools.cycle((36, 33, 32, 35, 34, 31))


@dataclass(slots=True)
class Running:
    """One process and the task that copies its lines to ours; `exited` ends with its code.

    `again` starts another one in its place.
    """

    name: str
    process: asyncio.subprocess.Process
    copying: asyncio.Task[None]
    exited: asyncio.Task[int]
    again: Callable[[], Awaitable["Running"]]

    def signal(self, sig: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(sig)


def read_procfile(path: Path) -> dict[str, str]:
    """The commands by name, in the order of the file."""
    return dict(parse_procfile(path.read_text()).processes)


async def start_processes(
    commands: Mapping[str, str],
    counts: Mapping[str, int],
    environment: Mapping[str, str],
    folder: Path,
) -> list[Running]:
    """Start each command `counts[name]` times in the folder; a count left out is one."""
    expanded = expand_processes(commands, concurrency=counts)
    width = max(len(entry.name) for entry in expanded)
    started: list[Running] = []
    try:
        for entry in expanded:
            prefix = _prefix(entry.name, width)
            started.append(await _start(entry.name, entry.cmd, prefix, environment, folder))
    except BaseException:
        await stop_processes(started, [], 0)
        raise
    return started


async def _start(
    name: str, command: str, prefix: bytes, environment: Mapping[str, str], folder: Path
) -> Running:
    process = await asyncio.create_subprocess_exec(
        *leashed("TERM"),
        *shlex.split(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    return Running(
        name,
        process,
        asyncio.create_task(_copy(process.stdout, prefix)),
        asyncio.create_task(process.wait()),
        partial(_start, name, command, prefix, environment, folder),
    )


def _prefix(name: str, width: int) -> bytes:
    plain = f"{name:<{width}} | "
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        plain = f"\x1b[{next(_COLOURS)}m{plain}\x1b[0m"
    return plain.encode()


async def _copy(source: asyncio.StreamReader, prefix: bytes) -> None:
    """Copy whole lines to our output, each with its prefix, until the process ends."""
    rest = b""
    while chunk := await source.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            _write(b"".join(prefix + line + b"\n" for line in lines))
    if rest:
        _write(prefix + rest + b"\n")


def _write(text: bytes) -> None:
    """A reader that went away (`| head`) is no reason to stop the fleet."""
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


async def stop_processes(running: Sequence[Running], order: Sequence[str], grace_s: float) -> None:
    """Stop kind after kind in `order`, the rest last; each kind gets the grace time, then force.

    Cancelling means that there is no more patience: everything left is killed at once.
    """
    kinds = [*order, *dict.fromkeys(kind(entry) for entry in running if kind(entry) not in order)]
    try:
        for wanted in kinds:
            ending = [entry for entry in running if kind(entry) == wanted]
            for entry in ending:
                entry.signal(signal.SIGTERM)
            if ending:
                await asyncio.wait([entry.exited for entry in ending], timeout=grace_s)
    finally:
        for entry in running:
            entry.signal(signal.SIGKILL)
        await asyncio.gather(*(entry.exited for entry in running))
        await asyncio.gather(*(entry.copying for entry in running))


def kind(running: Running) -> str:
    """The Procfile's name of a process: `inference` of `inference.2`."""
    return running.name.rpartition(".")[0]


class Stopped(KeyboardInterrupt):
    """A signal asked us to end; no error, so that nobody catches it by accident.

    asyncio lets only this and `SystemExit` through from wherever it stands.
    """


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP ask for an orderly end, at any moment.

    Before `listen`, a signal raises `Stopped` where the main thread is, or at the end of what is
    `whole`; after it, the first one sets the event and the next ones call whatever `on_next`
    named last.
    """

    def __init__(self) -> None:
        self._asked: asyncio.Event | None = None
        self._next: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}
        self._whole = self._heard = False

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.getsignal(number)
            # whoever started us with nohup meant it
            if number != signal.SIGHUP or self._before[number] != signal.SIG_IGN:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What an exception from nowhere must not break off, as it would where greenlets switch:
        the first signal is heard at its end. A second one does not wait."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
        if self._heard:
            raise Stopped

    def listen(self) -> asyncio.Event:
        """From now on a signal is told to this loop instead of interrupting it."""
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        return self._asked

    def on_next(self, call: Callable[[], object]) -> None:
        self._next = call

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            if self._whole and not self._heard:
                self._heard = True
                return
            raise Stopped
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._next or self._asked.set)
