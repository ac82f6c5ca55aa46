"""Who works beside whom when tests run side by side: `pytest --numprocesses 3`.

What a file's tests share (a database, a stack) is made once in each process that runs one of
them, so that a file stays in one process, and so do the files that share a running fleet. The
group goes by the file's name: marks of xdist would do, but with pytest 9.2 it no longer sees them.
A file in the wrong group costs time and nothing else.
"""

from xdist.scheduler import LoadScopeScheduling

# in tests/e2e every other file asks for the fleet `stack`
SIMULATED_STACK = frozenset({"test_document.py", "test_simulated.py"})
FLEETS_OF_THEIR_OWN = frozenset(
    {
        "test_capture_sweep.py",
        "test_crashes.py",
        "test_dead_letters.py",
        "test_draining.py",
        "test_kept_faults.py",
        "test_round_trips.py",
    }
)
LONG = frozenset({"test_chaos.py", "test_up.py", "test_start.py", "test_house_rules.py"})


class Neighbours(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process one group after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    folder, _, name = path.rpartition("/")
    if not folder.endswith("e2e") or name in FLEETS_OF_THEIR_OWN:
        return path
    return "simulated_stack" if name in SIMULATED_STACK else "stack"


def takes_long(nodeid: str) -> bool:
    folder, _, name = nodeid.partition("::")[0].rpartition("/")
    return folder.endswith("e2e") or name in LONG
