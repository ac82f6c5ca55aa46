"""A worker that kills itself at a named point: `python -m tests.faults.doomed inference`.

The worker is the product's own; what stands around some of its functions here only counts how
often a point is passed, and ends the process, as kill -9 does, at the pass that was ordered. An
order is a file, named by `AINFERA_DOOM_FILE`, with the point and the number of passes in it. A body
that holds `POISON` ends the process wherever it is planned, and is noted in the file's neighbour.
"""

from tests.faults.skewed import skew_clocks

# clocks are skewed before anybody has looked at them
if __name__ == "__main__":
    skew_clocks()

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from shared.kept import KeptCalls
from shared.publisher import Publisher
from workers import inference, routing
from workers.__main__ import main
from workers.fleet import FleetWorker
from workers.ledger import Ledger

LOOK_EVERY_S = 0.05
POISON = "nightshade"
_CALL = re.compile(rb"call-(\d+)-end")


class Doom:
    """The order that stands, if any: where to die, and after how many passes."""

    def __init__(self) -> None:
        self.point, self.passes = "", 0

    def passed(self, point: str) -> None:
        if self.point != point:
            return
        self.passes -= 1
        if self.passes <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(self, order: Path) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            if order.exists():
                point, _, passes = order.read_text("ascii").partition(" ")
                order.unlink()
                self.point, self.passes = point, int(passes or 1)


DOOM = Doom()
# point -> (class, method, whether it lies before or after the method)
POINTS: dict[str, tuple[type, str, bool]] = {
    "before_claim": (FleetWorker, "_claim_up_to", True),
    "after_claim": (FleetWorker, "_claim_up_to", False),
    "after_take": (KeptCalls, "take", False),
    "before_hold": (Ledger, "hold", True),
    "after_hold": (Ledger, "hold", False),
    "mid_stream": (Publisher, "_send", False),
    "before_commit": (Ledger, "settle", True),
    "after_commit": (Ledger, "settle", False),
    "before_finish": (FleetWorker, "_finish_all", True),
}


def surround(owner: type, name: str, point: str, before: bool) -> None:
    plain: Callable[..., Any] = getattr(owner, name)

    @wraps(plain)
    async def around(*args: Any, **named: Any) -> Any:
        if before:
            DOOM.passed(point)
        answer = await plain(*args, **named)
        if not before:
            DOOM.passed(point)
        return answer

    setattr(owner, name, around)


def swallow(order: Path) -> None:
    """Die of calls that hold the poison, before any money is held for them."""
    plan = routing.plan_call

    def plan_or_die(call: Any, deps: Any) -> Any:
        if POISON.encode() in call.envelope.body:
            found = _CALL.search(call.envelope.body)
            with order.with_name("poisoned").open("ab") as notes:
                notes.write(found[1] + b"\n" if found else b"?\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return plan(call, deps)

    setattr(inference, "plan_call", plan_or_die)  # noqa: B010 - on purpose


if __name__ == "__main__":
    for point, (owner, name, before) in POINTS.items():
        surround(owner, name, point, before)
    order = Path(os.environ["AINFERA_DOOM_FILE"])
    swallow(order)
    threading.Thread(target=DOOM.listen, args=(order,), daemon=True).start()
    sys.exit(main())
