"""The garbage collector, told what a server's heap is like.

What a process has loaded when it begins to serve stays for its life, and what a call leaves
is freed by its reference counts. The collector's defaults suit neither: on this hot path it
spent a quarter of a worker's time walking what never goes.
"""

import gc

# Allocations less frees until the young are looked at, and how many such looks until the old
# are. Cycles do come up (a failed task and its traceback), a few a call at most.
YOUNG, MIDDLE, OLD = 20_000, 20, 50


def settle_heap() -> None:
    """To be called once all is loaded: what is there now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
