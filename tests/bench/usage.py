"""What processes used: CPU time and memory, each with all of its children."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

_MB = 1024 * 1024


class Meter:
    """Named process trees, by the id of their root: `Meter({"postgres": 4711})`."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}

    def cpu_s(self) -> dict[str, float]:
        """Seconds of CPU used so far, by name; what ended children used is counted too."""
        return {name: sum(map(_cpu_of, _tree(root))) for name, root in self._roots.items()}

    def memory_mb(self) -> dict[str, float]:
        """Megabytes in use, by name: what is shared by several processes is divided among them."""
        return {
            name: round(sum(map(_memory_of, _tree(root))) / _MB, 1)
            for name, root in self._roots.items()
        }


def machine_busy_s() -> float:
    """Seconds of CPU that the whole machine was busy, whoever used them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0))


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def sync_ms(folder: Path, times: int = 15) -> float:
    """Milliseconds that the folder's disk takes to keep 8 kB: what each settlement waits for."""
    took = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times):
            file.write(b"x" * 8192)
            file.flush()
            began = perf_counter()
            os.fsync(file.fileno())
            took.append((perf_counter() - began) * 1000)
    return median(took)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return float(times.user + times.system + ended)


def _memory_of(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.uss))
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
