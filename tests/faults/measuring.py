"""Promises that name a time, measured on the run's own fleet while nothing else is broken.

    11  a client that leaves: its provider call is cancelled within a second, what was used settled
    15  after a worker is killed, its jobs run elsewhere within 6 s, at the product's own lease

and, as it can only be seen in quiet, that whoever comes while Postgres stands still is told 503
before anything is held, in every dialect, with a key or without.

Times are told as they are. What counts as broken is far beyond what a machine that others use can
excuse, or what never happened at all.
"""

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from tests.faults.clients import Clients, Heard
from tests.faults.fleet import Fleet
from tests.faults.promises import Findings, shown
from tests.faults.provider import Part, Question

LEAVERS, LEFT_WITHIN_S, LEFT_SURELY_S = 12, 1.0, 5.0
ORPHANS, RUN_WITHIN_S, RUN_SURELY_S = 12, 6.0, 15.0
PRODUCT_LEASE_S = 5.0
PATIENCE_S = 30.0
# while the fleet is asked, nobody is in a hurry
SLOWLY = Part(12, 0.4)


@dataclass
class Times:
    """Seconds from what happened to what was promised then."""

    let_go: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"| a client left: its provider call cancelled after | {_spread(self.let_go)} |",
            f"| a client left: what was used settled after | {_spread(self.settled)} |",
            f"| a worker killed: its jobs asked elsewhere after | {_spread(self.elsewhere)} |",
            f"| Postgres frozen: who comes is told 503 after | {_spread(self.refused)} |",
        ]


def _spread(times: Sequence[float]) -> str:
    if not times:
        return "not measured"
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2]:.2f} s (p50), {ordered[-1]:.2f} s (of {len(ordered)})"


async def measure(fleet: Fleet, load: Clients, times: Times, findings: Findings) -> None:
    """One after the other; what took too long is noted in the findings."""
    await let_leave(fleet, load, times, findings)
    await let_come(fleet, load, times, findings)
    await let_die(fleet, load, times, findings)


async def let_leave(fleet: Fleet, load: Clients, times: Times, findings: Findings) -> None:
    """Clients begin long streams and leave in the middle of them."""
    began = [
        load.begin(Heard(0, "leaves", dialect, routed=True), SLOWLY, leaves_after_s=1.0 + n / 20)
        for n, dialect in enumerate(("native", "openai", "anthropic") * (LEAVERS // 3))
    ]
    await load.ended()
    asked = [
        question for heard in began for question in load.provider.questions.get(heard.call, ())
    ]
    deadline = time.monotonic() + PATIENCE_S
    while any(not each.over_at for each in asked) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    slow = []
    for heard in began:
        (*_, last) = load.provider.questions.get(heard.call, [Question(0, 0, SLOWLY.mood, 0)])
        if not last.asked_at or last.whole:
            continue  # it was slow to be asked, or said all: nothing was there to be cancelled
        took = last.over_at - heard.ended_at if last.over_at else float("inf")
        times.let_go.append(took)
        if took > LEFT_SURELY_S:
            slow.append(f"call {heard.call} was let go {took:.1f} s after its client left")
    findings.note(f"who leaves stops the provider (bound {LEFT_SURELY_S:.0f} s)", slow)
    await _settled(fleet, began, times, findings)


async def _settled(fleet: Fleet, began: list[Heard], times: Times, findings: Findings) -> None:
    """What those who left had used is settled, as cancelled, in time."""
    ids = [heard.inference_id for heard in began if heard.inference_id]
    query = (
        "SELECT i.id::text, i.settled_at, i.settled_usd, o.outcome_status FROM inferences i "
        "LEFT JOIN routing_outcomes o ON o.inference_id = i.id "
        "WHERE i.id = ANY ($1::uuid[]) AND i.state <> 'held'"
    )
    connection = await asyncpg.connect(fleet.servers.superuser_url)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(rows := await connection.fetch(query, ids)) < len(ids):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
    found, amiss = {row["id"]: row for row in rows}, []
    for heard in began:
        row = found.get(heard.inference_id)
        if not heard.inference_id:
            continue
        if row is None or row["outcome_status"] != "cancelled" or not row["settled_usd"]:
            amiss.append(f"call {heard.call} {heard.inference_id}: {row and dict(row)}")
        else:
            times.settled.append(row["settled_at"].timestamp() - heard.ended_at)
    findings.note("what those who left had used is settled", amiss)


async def let_come(fleet: Fleet, load: Clients, times: Times, findings: Findings) -> None:
    """Clients come while Postgres stands still: they are told so, and nothing was held for them."""
    with fleet.frozen("postgres"):
        began_at = time.time()
        comers = [
            load.begin(
                Heard(0, "folded", dialect, True, key and f"{key} {began_at} {web}"),
                Part(2, 0),
                web=web,
            )
            for dialect, key in (
                ("native", ""),
                ("openai", ""),
                ("anthropic", ""),
                ("native", "key"),
            )
            for web in (0, 1)
        ]
        deadline = time.monotonic() + PATIENCE_S
        while any(not heard.ends for heard in comers) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
    await load.ended()
    amiss = [shown(heard) for heard in comers if heard.status not in (503, 529)]
    times.refused += [heard.ended_at - began_at for heard in comers if heard.ended_at]
    ids = [heard.inference_id for heard in comers if heard.inference_id]
    query = (
        "SELECT id::text, state, hold_state, settled_usd FROM inferences "
        "WHERE id = ANY ($1::uuid[]) AND (hold_state = 'posted' OR settled_usd > 0)"
    )
    connection = await asyncpg.connect(fleet.servers.superuser_url)
    try:
        amiss += [str(dict(row)) for row in await connection.fetch(query, ids)]
    finally:
        await connection.close()
    amiss += [shown(heard) for heard in comers if heard.call in load.provider.questions]
    findings.note("who comes while Postgres is away is told 503, for nothing", amiss)


async def let_die(fleet: Fleet, load: Clients, times: Times, findings: Findings) -> None:
    """A worker with the product's own lease is killed; its calls are asked again elsewhere.

    They run in the background: nobody has heard a word of them, so they begin anew.
    """
    victim, other = "inference1", "inference2"
    fleet.changes[victim] = {"LEASE_SECONDS": str(PRODUCT_LEASE_S)}
    try:
        fleet.kill(victim)
        await fleet.all_alive(PATIENCE_S)
        fleet.processes[other].send_signal(signal.SIGSTOP)  # so that the victim has all of them
        began = [
            load.begin(Heard(0, "background", "native", routed=True), SLOWLY)
            for _ in range(ORPHANS)
        ]
        asked = load.provider.questions
        deadline = time.monotonic() + PATIENCE_S
        while sum(heard.call in asked for heard in began) < ORPHANS and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        fleet.processes[other].send_signal(signal.SIGCONT)
        killed_at = time.time()
        fleet.kill(victim)
        await load.ended()
    finally:
        fleet.changes.pop(victim)
    slow = []
    for heard in began:
        for question in asked.get(heard.call, [])[1:]:
            took = question.asked_at - killed_at
            times.elsewhere.append(took)
            if took > RUN_SURELY_S:
                slow.append(f"call {heard.call} was asked again after {took:.1f} s")
    slow += [f"call {heard.call} ended {heard.ends}" for heard in began if heard.ends != ["done"]]
    findings.note(f"jobs of the dead run elsewhere (bound {RUN_SURELY_S:.0f} s)", slow)
    fleet.kill(victim)  # so that it has the run's own lease again
    await fleet.all_alive(PATIENCE_S)
