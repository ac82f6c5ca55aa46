"""A wall clock that an order shifts, for a process of tests/faults/misclocked.py.

`AINFERA_CLOCK_FILE` names a file with the seconds to add. It is read again and again, so that a
clock can jump while calls are under way. Clocks that only ever grow are left alone, as the kernel
leaves them: it is the time of day on which hosts disagree.
"""

import datetime as datetimes
import os
import threading
import time
from contextlib import suppress
from datetime import datetime as _honest
from pathlib import Path
from time import time as _honest_time
from typing import Any

LOOK_EVERY_S = 0.05


class Skew:
    """By how much this process is wrong, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def listen(self, order: Path) -> None:
        while True:
            with suppress(OSError, ValueError):
                self.seconds = float(order.read_text("ascii"))
            time.sleep(LOOK_EVERY_S)


SKEW = Skew()


class _AnyDatetime(type):
    """What was made by the honest class is a datetime too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _honest)


class SkewedDatetime(_honest, metaclass=_AnyDatetime):
    __slots__ = ()  # or it would be larger than what compiled code expects

    @classmethod
    def now(cls, tz: datetimes.tzinfo | None = None) -> Any:
        return _honest.fromtimestamp(_honest_time() + SKEW.seconds, tz)


def bend_clocks() -> None:
    """From now on the time of day can be wrong; to be called before anything else."""
    setattr(time, "time", lambda: _honest_time() + SKEW.seconds)  # noqa: B010 - on purpose
    setattr(datetimes, "datetime", SkewedDatetime)  # noqa: B010


def skew_clocks() -> None:
    """From now on the time of day is what the order says; to be called before anything else."""
    order = os.environ.get("AINFERA_CLOCK_FILE")
    if not order:
        return
    bend_clocks()
    with suppress(OSError, ValueError):
        SKEW.seconds = float(Path(order).read_text("ascii"))
    threading.Thread(target=SKEW.listen, args=(Path(order),), daemon=True).start()
