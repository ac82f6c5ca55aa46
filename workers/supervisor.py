"""Processes that end by themselves are started again, after pauses that grow.

One that dies at once, again and again, has a fault that starting it does not mend: then the
supervisor gives up, and whoever runs it stops the rest. So it does for wrong settings, which are
the same at the next start.
"""

import asyncio
import time
from collections.abc import Callable

from shared.config import SettingsError, StartError
from workers.procfile import Running

FIRST_PAUSE_S = 0.5  # then 1, 2 and 4
AT_ONCE_S = 10.0  # a life shorter than this
MOST_DEATHS = 5
_LAST_WORDS_S = 1.0


class GaveUp(StartError):
    """A process that does not stay up; the message says which and how it ended."""


class Supervisor:
    """Watches `running` and replaces its entries; `tell` is given a line for each new start."""

    def __init__(
        self,
        running: list[Running],
        tell: Callable[[str], None],
        *,
        first_pause_s: float = FIRST_PAUSE_S,
        at_once_s: float = AT_ONCE_S,
    ) -> None:
        self._running = running
        self._tell = tell
        self._first_pause_s = first_pause_s
        self._at_once_s = at_once_s

    async def watch(self) -> None:
        """Keep all of them up until cancelled. Raises `GaveUp`; the others are running then."""
        keeping = [asyncio.create_task(self._keep(place)) for place in range(len(self._running))]
        try:
            await asyncio.gather(*keeping)
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def _keep(self, place: int) -> None:
        deaths = 0
        while True:
            entry = self._running[place]
            began = time.monotonic()
            code = await asyncio.shield(entry.exited)
            await asyncio.wait([entry.copying], timeout=_LAST_WORDS_S)
            deaths = deaths + 1 if time.monotonic() - began < self._at_once_s else 1
            if code == SettingsError.exit_code:
                raise GaveUp(f"{entry.name} cannot use its settings; its last lines are above.")
            if deaths >= MOST_DEATHS:
                raise GaveUp(
                    f"{entry.name} ended with code {code}, {deaths} times in a row soon after it "
                    "was started; its last lines are above."
                )
            pause = self._first_pause_s * 2 ** (deaths - 1)
            self._tell(f"{entry.name} ended with code {code}; starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            starting = asyncio.ensure_future(entry.again())
            try:
                await asyncio.shield(starting)
            finally:  # cancelled or not: what was started is to be found, and stopped
                self._running[place] = await starting
