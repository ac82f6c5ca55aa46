"""What is measured, and how: each scenario over each target, one after the other."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

from tests.bench.fake_provider import Pace
from tests.bench.load import Job, Measured
from tests.bench.stack import ROOT
from tests.bench.targets import Target
from tests.bench.usage import Meter, difference, machine_busy_s

SHORT = Pace(tokens=16)
BURST = Pace(tokens=100)
_HELD = 0.97
_STEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


class LoadFailed(RuntimeError):
    """The target did not even answer the warming calls; the message says what it said."""


@dataclass(slots=True)
class Sample:
    """One scenario on one target. CPU in milliseconds a call, by process."""

    measured: Measured
    rate: float = 0.0
    cpu_ms: dict[str, float] = field(default_factory=dict)
    others_cpu: float = 0.0

    @property
    def per_second(self) -> float:
        return self.measured.calls / self.measured.seconds

    @property
    def cpu_ms_in_all(self) -> float:
        return sum(self.cpu_ms.values())

    @property
    def held(self) -> bool:
        """Whether an open loop was answered as fast as it asked, and without an error."""
        offered = self.rate * self.measured.window_s
        return not self.measured.errors and self.measured.in_time >= _HELD * offered


@dataclass(frozen=True, slots=True)
class Scenario:
    """How calls are made: `rate` 0 is a closed loop of `concurrency`, else an open loop."""

    key: str
    title: str
    stream: bool
    pace: Pace
    seconds: float
    concurrency: int = 1
    rate: float = 0.0

    def job(self, target: Target, rate: float | None = None) -> Job:
        return target.job(
            self.pace,
            stream=self.stream,
            seconds=self.seconds,
            concurrency=self.concurrency,
            rate=self.rate if rate is None else rate,
        )


def scenarios(seconds: float, rate: float, token_ms: float) -> list[Scenario]:
    """All of them; `seconds` is how long one takes, about."""
    stream = Pace(tokens=100, first_ms=token_ms, each_ms=token_ms)
    return [
        Scenario("alone", "one call at a time", False, SHORT, seconds),
        Scenario("peak", "32 calls at a time", False, SHORT, seconds, concurrency=32),
        Scenario("steady", f"{rate:g} calls/s offered", False, SHORT, seconds, rate=rate),
        Scenario("sustained", "most calls/s that are held", False, SHORT, seconds),
        Scenario("lone_stream", "one 100-token stream at a time", True, stream, 2 * seconds),
        Scenario("streams", "25 streams at a time", True, stream, 1.5 * seconds, concurrency=25),
        Scenario("bursts", "100-token bursts", True, BURST, seconds, concurrency=25),
    ]


class Load:
    """The load generator's process. `bystanders` are the processes whose CPU is not anyone's."""

    def __init__(self, process: Process, bystanders: Meter) -> None:
        self._process = process
        self._bystanders = bystanders

    async def measure(self, job: Job, meter: Meter) -> Sample:
        """Run one job to its end. Raises LoadFailed."""
        ready = await self._exchange(asdict(job))
        if "failed" in ready:
            raise LoadFailed(ready["failed"])
        began, busy = perf_counter(), machine_busy_s()
        ours, bystanders = meter.cpu_s(), sum(self._bystanders.cpu_s().values())
        measured = Measured(**await self._exchange("go"))
        used = difference(meter.cpu_s(), ours)
        known = sum(used.values()) + sum(self._bystanders.cpu_s().values()) - bystanders
        unknown = machine_busy_s() - busy - known
        calls = max(1, measured.calls)
        return Sample(
            measured,
            job.rate,
            {name: round(seconds * 1000 / calls, 3) for name, seconds in used.items()},
            round(max(0.0, unknown) / (perf_counter() - began), 3),
        )

    async def _exchange(self, words: object) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(words).encode() + b"\n")
        line = await stdout.readline()
        if not line:
            raise LoadFailed("the load generator ended")
        heard: dict[str, Any] = json.loads(line)
        return heard


@asynccontextmanager
async def running_load(bystanders: dict[str, int]) -> AsyncIterator[Load]:
    command = [sys.executable, "-m", "tests.bench.load"]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        yield Load(process, Meter({**bystanders, "load": process.pid}))
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(2):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def warm(load: Load, target: Target, meter: Meter, seconds: float) -> None:
    """Enough calls and streams that caches are full and code is compiled."""
    for pace, stream in ((SHORT, False), (BURST, True)):
        job = target.job(pace, stream=stream, seconds=seconds, concurrency=16)
        await load.measure(job, meter)


async def run(load: Load, scenario: Scenario, target: Target, meter: Meter, peak: float) -> Sample:
    """One scenario on one target; `peak` is its calls/s in a closed loop, if known by now.

    The provider alone, which never varies much, gets half the time.
    """
    if not target.pids:
        scenario = replace(scenario, seconds=scenario.seconds / 2)
    if scenario.key != "sustained":
        return await load.measure(scenario.job(target), meter)
    for step in _STEPS:
        sample = await load.measure(scenario.job(target, round(peak * step)), meter)
        if sample.held:
            break
    return sample
