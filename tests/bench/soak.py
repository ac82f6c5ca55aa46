"""Whether memory stays flat: the same load for minutes, the memory of every process after each."""

from collections.abc import AsyncIterator

from tests.bench.report import aligned
from tests.bench.scenarios import BURST, SHORT, Load
from tests.bench.targets import Target
from tests.bench.usage import Meter

# Calls and streams by turns, far from saturation, so that nothing but a leak can grow.
_CALLS_PER_S, _STREAMS_PER_S = 100.0, 20.0


async def soak(
    load: Load, target: Target, meter: Meter, minutes: int
) -> AsyncIterator[tuple[int, dict[str, float]]]:
    """`(calls made so far, MB by process)` at the start and after each minute."""
    calls = 0
    yield calls, meter.memory_mb()
    for _ in range(minutes):
        for pace, stream, rate in ((SHORT, False, _CALLS_PER_S), (BURST, True, _STREAMS_PER_S)):
            job = target.job(pace, stream=stream, seconds=30.0, rate=rate)
            calls += (await load.measure(job, meter)).measured.calls
        yield calls, meter.memory_mb()


def soak_table(minutes: list[tuple[int, dict[str, float]]]) -> str:
    """One line a minute: calls so far, megabytes in all and by process."""
    processes = list(minutes[0][1])
    grid = [["minute", "calls", "MB in all", *processes]]
    for minute, (calls, memory) in enumerate(minutes):
        sizes = [f"{memory[process]:.0f}" for process in processes]
        grid.append([str(minute), f"{calls:,}", f"{sum(memory.values()):.0f}", *sizes])
    return aligned(grid)
