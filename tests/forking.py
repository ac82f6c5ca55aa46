"""The nursery itself: `python -m tests.forking <descriptor> [bent]` (see tests/nursery.py).

It reads orders, a line each, from the socket that it inherits: to fork, or to say whether a fork
has ended. `bent` lets the forks have a time of day that can jump (tests/faults/skewed.py).
"""

import sys

from tests.faults.skewed import bend_clocks

# what copies a clock's name must find the one that can be bent
if __name__ == "__main__" and "bent" in sys.argv:
    bend_clocks()

import ctypes
import gc
import os
import runpy
import signal
import socket
from typing import Any

import orjson
import sse_starlette.sse
import uvicorn
import uvloop

import ingress.app
import ingress.draining
import workers.pulse
import workers.settings

IMPORTED = (sse_starlette.sse, uvicorn, uvloop, ingress.app, ingress.draining)
IMPORTED_FOR_WORKERS = (workers.pulse, workers.settings)

_PR_SET_PDEATHSIG = 1


def serve(orders: socket.socket) -> dict[str, Any] | None:
    """In the nursery: does what it is asked until nobody asks. In a fork: returns what to be."""
    lines = orders.makefile("rb")
    while line := lines.readline():
        order = orjson.loads(line)
        if "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            said = os.waitstatus_to_exitcode(status) if pid else None
        else:
            said = os.fork()
            if said == 0:
                lines.close()
                orders.close()
                return dict(order)
        orders.sendall(orjson.dumps(said) + b"\n")
    return None


def become(order: dict[str, Any]) -> None:
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for path, flags, descriptor in (
        (os.devnull, os.O_RDONLY, 0),
        (order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1),
        (order["errors"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 2),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(order["told"])
    sys.argv[:] = order["command"]
    gc.unfreeze()
    runpy.run_module(order["command"][0], run_name="__main__", alter_sys=True)


def main() -> None:
    # pages that no collector looks at are shared with the forks
    gc.freeze()
    order = serve(socket.socket(fileno=int(sys.argv[1])))
    if order is not None:
        become(order)


if __name__ == "__main__":
    main()
