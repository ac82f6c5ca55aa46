"""The books worker's end of the process that reads answers (`workers/judge.py`)."""

import asyncio
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process

import orjson

from shared.domain.answered import Finish
from shared.domain.inference import Dialect
from shared.domain.reward import Check, Signals

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "workers.judge")
# a reader that has just begun has to be loaded first
START_S = 10.0


class Judge:
    """One reading process, started when it is needed and again after it was lost.

    An answer that takes longer than `patience_s`, or that ends the process, is too hard to judge.
    For one task at a time.
    """

    def __init__(self, patience_s: float = 2.0) -> None:
        self._patience_s = patience_s
        self._process: Process | None = None

    async def look_at(self, dialect: Dialect, told: bytes, asked: bytes | None) -> Signals:
        """The signals of an answer as its client was told it; never raises for what is in it."""
        fresh = self._process is None
        process = self._process = self._process or await _start()
        assert process.stdin is not None
        assert process.stdout is not None
        question = {
            "dialect": dialect.value,
            "size": len(told),
            "asked": None if asked is None else asked.decode(),
        }
        reply = b""
        try:
            async with asyncio.timeout(self._patience_s + (START_S if fresh else 0)):
                process.stdin.write(orjson.dumps(question) + b"\n" + told)
                await process.stdin.drain()
                reply = await process.stdout.readline()
        except (TimeoutError, OSError):
            pass
        finally:  # also where this task was cancelled: the next reply would be to this question
            if not reply:
                await self.aclose()
        if reply:
            return _unpacked(reply)
        log.warning("answer_too_hard", extra={"bytes": len(told)})
        return Signals(Finish.UNKNOWN, note="too_hard")

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(*COMMAND, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)


def _unpacked(reply: bytes) -> Signals:
    told = orjson.loads(reply)
    code, json, tools = (Check(told[name]) for name in ("code", "json", "tools"))
    return Signals(Finish(told["finish"]), code, json, tools, told["note"])
