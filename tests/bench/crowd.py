"""`python -m tests.bench.crowd crowd|rolling`: nobody in a crowd is left without an end.

The whole system on one machine, on stores of its own: two ingresses, two inference workers, the
books, and a provider that says one numbered word after another, slowly. Clients ask in all three
dialects at both ingresses, and each looks at what it got: all of its words in order and the end
(complete), the words so far and one error in its dialect (a clean error), or anything else, which
may not be.

  crowd    opens --streams at once. When all have begun to answer, one worker is killed (-9) and a
           new one started, as a supervisor would; a little later one more is started and the other
           old one drained, as `fleet drain` does. New calls come meanwhile. The killed worker's
           streams end in one clean error each, because words that a client has heard are not said
           again by another attempt; all others must be complete.
  rolling  keeps --streams running, one after another, and replaces every process: start a new one,
           SIGTERM the old one, wait until it has gone. All streams must be complete, no error.

Then the database is asked what was promised: one settlement for each call, a ledger that sums to
zero, no money held, and how often the provider was asked for each settled call. Ends with 1 if any
of this does not hold.

  python -m tests.bench.crowd crowd --streams 200 --each-ms 500   # a small one, half a minute
  python -m tests.bench.crowd crowd                               # 1,000 streams, two minutes
  python -m tests.bench.crowd rolling                             # 100 streams, two minutes

The clients and the provider run on the same cores: their share of the CPU is in the table.
"""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import uvloop

from shared.descriptors import raise_descriptor_limit
from shared.fleet import drain, wait_until_drained
from tests.bench.crowd_clients import Call, Crowd, at_intervals
from tests.bench.crowd_fleet import Fleet, Seen, running_fleet
from tests.bench.fake_provider import Pace
from tests.bench.report import aligned
from tests.bench.usage import difference

_WARM = 20
_OPENED_OVER_S = 10.0
_BEFORE_THE_DRAIN_S = 3.0
_LATE = 20  # one call in so many comes after the kill
_LONGEST_S = 90.0  # on top of what a stream takes when nobody is in its way
_DRAIN_GRACE_S = 60
_SWEPT_S = 45.0
_SHORT = Pace(5, 100, 100, numbered=True)


@dataclass(frozen=True, slots=True)
class Told:
    """What to run; see --help."""

    streams: int
    pace: Pace

    @property
    def lasts_s(self) -> float:
        return (self.pace.first_ms + self.pace.tokens * self.pace.each_ms) / 1000

    @property
    def settings(self) -> dict[str, str]:
        """One worker could have them all, though they are all of one tenant."""
        return {
            "JOBS_PER_WORKER": str(max(1000, self.streams)),
            "JOBS_PER_TENANT": str(max(1000, self.streams)),
            "MAX_TENANT_QUEUE": str(max(2000, 2 * self.streams)),
            "DRAIN_GRACE_SECONDS": str(_DRAIN_GRACE_S),
            "LOG_LEVEL": "WARNING",
        }


class Clock:
    """Says what happens, and when."""

    def __init__(self) -> None:
        self._began = perf_counter()

    def say(self, text: str) -> None:
        say(f"{perf_counter() - self._began:6.1f} s  {text}")


# -- a crowd, a kill and a drain ----------------------------------------------------------------


async def crowd(told: Told, fleet: Fleet) -> bool:
    clients = Crowd(await fleet.sign_up(), list(fleet.doors.values()), told.lasts_s + _LONGEST_S)
    await asyncio.gather(*[clients.ask(_SHORT) for _ in range(_WARM)])
    clock, cpu, own_cpu = Clock(), fleet.cpu_so_far(), process_time()
    idle = await fleet.look()
    calls = await at_intervals(clients, [told.pace] * told.streams, _OPENED_OVER_S)
    await asyncio.gather(*[call.began.wait() for call in calls])
    peak, at_once = await fleet.look(), clients.open
    clock.say(f"{at_once} streams are open; in work: {_amounts(peak.jobs)}")
    calls += await kill_and_drain(told, fleet, clients, clock)
    await asyncio.gather(*[call.task for call in calls])
    clock.say("every client has an end")
    used = difference(fleet.cpu_so_far(), {**dict.fromkeys(fleet.cpu_s, 0.0), **cpu})
    say("")
    say(memory_table(idle, peak, used, at_once))
    say(f"the clients, in one process: {process_time() - own_cpu:.1f} s of CPU")
    kept = await promises(fleet)
    lost = await fleet.taken_over()
    say(f"\n{said_by(clients)}\n{lost} calls were the killed worker's")
    return kept and not clients.count("odd") and clients.count("error") <= lost


async def kill_and_drain(told: Told, fleet: Fleet, clients: Crowd, clock: Clock) -> list[Call]:
    """Returns the calls that came meanwhile."""
    fleet.kill("inference-1")
    fleet.start("inference-3")
    clock.say("inference-1 was killed (-9), inference-3 started")
    late = asyncio.create_task(
        at_intervals(clients, [_SHORT] * (told.streams // _LATE), _OPENED_OVER_S)
    )
    await asyncio.sleep(_BEFORE_THE_DRAIN_S)
    fleet.start("inference-4")
    await fleet.ready("inference-3", "inference-4")
    drained = await fleet.worker_id("inference-2")
    assert drained is not None
    await drain(fleet.valkey, drained, actor="bench")
    clock.say(f"inference-2 is told to drain; in work: {_amounts((await fleet.look()).jobs)}")
    if await wait_until_drained(fleet.valkey, [drained], told.lasts_s + _LONGEST_S):
        clock.say("inference-2 is drained")
        await fleet.end("inference-2")
    return await late


# -- a rolling restart --------------------------------------------------------------------------


async def rolling(told: Told, fleet: Fleet) -> bool:
    clients = Crowd(await fleet.sign_up(), list(fleet.doors.values()), told.lasts_s + _LONGEST_S)
    await asyncio.gather(*[clients.ask(_SHORT) for _ in range(_WARM)])
    clock, over = Clock(), asyncio.Event()
    regulars = [
        asyncio.create_task(keep_asking(told, clients, number, over))
        for number in range(told.streams)
    ]
    await asyncio.sleep(told.lasts_s)
    in_time = True
    for old in tuple(fleet.members):
        new = f"{old.partition('-')[0]}-{int(old.partition('-')[2]) + 2}"
        fleet.start(new)
        await fleet.ready(new)
        # the old door stays among them while it closes: the clients find out by themselves
        clients.doors = list(fleet.doors.values())
        begun = clients.open
        took_s = await fleet.end(old)
        clients.doors = list(fleet.doors.values())
        in_time = in_time and took_s < _DRAIN_GRACE_S
        clock.say(f"{old} was replaced by {new}: gone after {took_s:.1f} s; {begun} streams open")
    over.set()
    await asyncio.gather(*regulars)
    clock.say("every client has an end")
    say("")
    kept = await promises(fleet)
    say(
        f"\n{said_by(clients)}\nA closing ingress refused {clients.refused} connections and closed "
        f"{clients.turned_away} before a byte had come; all went to the other one"
    )
    return kept and in_time and clients.count("complete") == len(clients.verdicts)


async def keep_asking(told: Told, clients: Crowd, number: int, over: asyncio.Event) -> None:
    """One client after another; they begin spread over the length of a stream."""
    await asyncio.sleep(told.lasts_s * number / told.streams)
    while not over.is_set():
        await clients.ask(told.pace)


# -- what came of it ----------------------------------------------------------------------------


async def promises(fleet: Fleet) -> bool:
    """Say whether what was promised was kept; see crowd_fleet."""
    gone_s = await fleet.holds_gone_s(_SWEPT_S)
    held = f"gone after {gone_s:.1f} s" if gone_s is not None else f"STILL THERE, {_SWEPT_S:.0f} s"
    say(f"money held for calls: {held}")
    broken = await fleet.broken_promises()
    for what, count in broken.items():
        say(f"{what}: {count}")
    asked, settled = await fleet.provider_calls(), await fleet.settled()
    say(f"provider calls: {asked} for {settled} settled calls, {asked / settled:.3f} each")
    return gone_s is not None and not any(broken.values())


def said_by(clients: Crowd) -> str:
    """How the answers ended, and why those that were not complete were not."""
    counts = [clients.count("complete"), clients.count("error"), clients.count("odd")]
    lines = ["{} complete, {} clean errors, {} anything else".format(*counts)]
    whys = Counter(
        f"{verdict.kind}: {verdict.why[:300]}"
        for verdict in clients.verdicts
        if verdict.kind != "complete"
    )
    lines += [f"  {count} x {why}" for why, count in whys.most_common(8)]
    return "\n".join(lines)


def memory_table(idle: Seen, peak: Seen, used: Mapping[str, float], streams: int) -> str:
    """A line for each process and store: memory, what of it is a stream's, CPU, descriptors."""
    grid = [["", "MB idle", "MB peak", "kB a stream", "CPU s", "descriptors"]]
    for name, memory in peak.memory_mb.items():
        # a process has the streams that it has; a store has all of them
        own = peak.jobs.get(name) or (streams / 2 if name.startswith("ingress") else streams)
        each = (memory - idle.memory_mb[name]) * 1024 / own
        files = str(peak.descriptors.get(name, ""))
        numbers = [f"{idle.memory_mb[name]:.1f}", f"{memory:.1f}", f"{each:.0f}"]
        grid.append([name, *numbers, f"{used.get(name, 0.0):.1f}", files])
    for name in used.keys() - peak.memory_mb.keys():
        grid.append([name, "", "", "", f"{used[name]:.1f}", ""])
    stores = (
        f"connections to Valkey: {idle.valkey_clients} idle, {peak.valkey_clients} at the peak; "
        f"to Postgres: {idle.postgres_clients} and {peak.postgres_clients}\n"
        f"Valkey's data: {idle.valkey_data_mb} MB and {peak.valkey_data_mb} MB"
    )
    return f"{aligned(grid)}\n{stores}"


def _amounts(jobs: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in jobs.items() if "inference" in name)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# -- the command --------------------------------------------------------------------------------

_SCENARIOS: dict[str, Any] = {"crowd": crowd, "rolling": rolling}
# streams at once, words of each, milliseconds between two
_USUAL = {"crowd": (1000, 60, 1000.0), "rolling": (100, 40, 500.0)}


async def measure(scenario: str, told: Told, home: Path) -> bool:
    async with running_fleet(home, told.settings) as fleet:
        good: bool = await _SCENARIOS[scenario](told, fleet)
        return good


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.bench.crowd",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", choices=sorted(_SCENARIOS))
    parser.add_argument("--streams", type=int, help="at once (crowd: 1000, rolling: 100)")
    parser.add_argument("--tokens", type=int, help="of each stream (crowd: 60, rolling: 40)")
    parser.add_argument(
        "--each-ms", type=float, help="between two tokens (crowd: 1000, rolling: 500)"
    )
    chosen = parser.parse_args()
    streams, tokens, each_ms = _USUAL[chosen.scenario]
    each_ms = chosen.each_ms or each_ms
    pace = Pace(chosen.tokens or tokens, each_ms, each_ms, numbered=True)
    told = Told(chosen.streams or streams, pace)
    if told.lasts_s >= _DRAIN_GRACE_S and chosen.scenario == "rolling":
        parser.error(f"a stream must be over within the {_DRAIN_GRACE_S} s that a drain may take")
    raise_descriptor_limit()
    with (
        tempfile.TemporaryDirectory(prefix="fleet-crowd-") as home,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        good = runner.run(measure(chosen.scenario, told, Path(home)))
    say("\nAll of it held." if good else "\nNOT all of it held.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
