"""`python -m tests.bench`: what the gateway adds between a client and its provider."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

import migrations
from shared.catalog import seed_catalog
from shared.embedded import Servers, embedded_servers
from tests.bench import deciding
from tests.bench.counting import counted_stack, counts_table
from tests.bench.decided import Windows, routed_ms, routed_table
from tests.bench.load import percentiles
from tests.bench.portkey import NoPortkey, running_portkey
from tests.bench.report import aligned, table
from tests.bench.scenarios import Load, LoadFailed, Sample, run, running_load, scenarios, warm
from tests.bench.soak import soak, soak_table
from tests.bench.stack import StackError, Stores, running_provider, running_stack
from tests.bench.targets import Target, ainfera_target, portkey_target, provider_target
from tests.bench.usage import Meter, sync_ms

ABOUT = """\
Measure what the gateway adds between a client and its provider, on this machine, now.

A fake provider that costs next to nothing, a load generator in a process of its own, and the
whole gateway (ingress, inference worker, books worker, Postgres, Valkey; every settlement
written to the disk before the client is told) are started on free ports and in a folder of
their own, measured and stopped. The same calls go to the provider directly, through Ainfera
and, where npm is at hand, through Portkey's gateway, which keeps nothing.

How to read the table: "added" is the percentile through a gateway less the same percentile of
the provider alone. CPU is that of all processes of a gateway, its stores included, and is
measured while the load generator and the provider share the machine: on few cores the calls/s
are as much theirs as the gateway's. Look at the last line: if others used the machine too, run
again. A settlement waits for one fsync; `--home` on a RAM disk shows what is left without it.

Two short tables follow. What a decision costs a processor, from a request's bytes on, is
measured here without any store. How long calls waited for theirs is told by what the gateway wrote
down: from the id, minted when a call is accepted, to the `inference.routed` event (ids have whole
milliseconds: half of one is too much).
"""

DECIDED_AMONG = 100
EXAMPLES = """\
examples:
  python -m tests.bench                      all of it, in about two minutes
  python -m tests.bench --quick              a first look, in about twenty seconds
  python -m tests.bench --count              round trips of one call instead of times
  python -m tests.bench --only peak,bursts --seconds 15 --portkey off
  python -m tests.bench --dialect openai --provider anthropic     with translation
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.bench",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less than a second a scenario, without Portkey")
    add("--count", action="store_true", help="count round trips a call instead of timing")
    add("--seconds", type=float, help="how long one scenario takes, about (default 4)")
    add("--rate", type=float, default=400, help="calls/s of the open loop (default 400)")
    add("--token-ms", type=float, default=10, help="pace of the 100-token streams (default 10)")
    add("--only", default="", help="scenarios, by comma: " + ", ".join(_keys()))
    add("--portkey", choices=("auto", "on", "off"), default="auto", help="on: fail without it")
    add("--dialect", choices=("anthropic", "openai"), default="anthropic", help="the client's")
    add("--provider", choices=("anthropic", "openai"), help="whose wire (default: the dialect's)")
    add("--model", default="ainfera-inference", help="routed unless a model is named here")
    add("--workers", type=int, default=1, help="inference workers (default 1)")
    add("--soak", type=int, metavar="MINUTES", help="watch memory under a steady load instead")
    add("--calls", type=int, default=20, help="how many calls --count looks at (default 20)")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--home", type=Path, metavar="DIR", help="keep data and logs here (default: nowhere)")
    add("--pids", action="store_true", help="show the processes' ids, for a profiler")
    chosen = parser.parse_args(arguments)
    chosen.provider = chosen.provider or chosen.dialect
    chosen.seconds = chosen.seconds or (0.8 if chosen.quick else 4.0)
    if chosen.quick and chosen.portkey == "auto":
        chosen.portkey = "off"
    chosen.only = [key for key in chosen.only.split(",") if key] or _keys()
    if unknown := set(chosen.only) - set(_keys()):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return chosen


def _keys() -> list[str]:
    return [scenario.key for scenario in scenarios(1.0, 1.0, 1.0)]


def main() -> int:
    chosen = parse_arguments()
    try:
        with ExitStack() as opened:
            home = chosen.home or Path(
                opened.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            )
            # a small cache of pages is soon full, so that what still grows then is a leak
            options = {"shared_buffers": "32MB"} if chosen.soak else {}
            servers = opened.enter_context(
                embedded_servers(home / "stores", durable=True, postgres_options=options)
            )
            migrations.upgrade(servers.owner_url)
            asyncio.run(seed_catalog(servers.owner_url))
            logs = home / "logs"
            logs.mkdir(exist_ok=True)
            asyncio.run((count if chosen.count else measure)(chosen, servers, logs, home))
    except (StackError, LoadFailed, NoPortkey) as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    return 0


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def provider_urls(provider: str, port: int) -> dict[str, str]:
    """Only the one provider is configured, so that the router has no other choice."""
    version = "/v1" if provider == "openai" else ""
    return {provider: f"http://127.0.0.1:{port}{version}"}


# -- times ------------------------------------------------------------------------------------


async def measure(chosen: argparse.Namespace, servers: Servers, logs: Path, home: Path) -> None:
    """Start what is measured, measure, print."""
    async with running_targets(chosen, servers, logs, home) as (targets, bystanders):
        if chosen.pids:
            say(f"processes: {bystanders | {n: p for t in targets for n, p in t.pids.items()}}")
        async with running_load(bystanders) as load:
            if chosen.soak:
                await watch_memory(load, targets[1], chosen.soak)
            else:
                await measure_all(chosen, load, targets, sync_ms(home), servers.owner_url)


async def watch_memory(load: Load, target: Target, minutes: int) -> None:
    """The gateway alone, after a while in which its caches fill."""
    meter = Meter(target.pids)
    await warm(load, target, meter, 10.0)
    told = []
    async for minute in soak(load, target, meter, minutes):
        told.append(minute)
        say(f"… minute {len(told) - 1}: {sum(minute[1].values()):.0f} MB")
    say()
    say(soak_table(told))


@asynccontextmanager
async def running_targets(
    chosen: argparse.Namespace, servers: Servers, logs: Path, home: Path
) -> AsyncIterator[tuple[list[Target], dict[str, int]]]:
    """The targets, the provider first, and the processes whose CPU is not theirs."""
    stores = Stores(servers.app_url, servers.redis_url)
    names = ["ingress", "inference", *(f"inference-{n + 2}" for n in range(chosen.workers - 1))]
    async with AsyncExitStack() as opened:
        provider, port = opened.enter_context(running_provider(logs))
        targets = [provider_target(port, chosen.dialect)]
        stack = await opened.enter_async_context(
            running_stack(
                logs,
                provider_urls(chosen.provider, port),
                dict.fromkeys([*names, "books"], stores),
            )
        )
        pids = stack.pids() | {name: server.pid for name, server in servers.running.items()}
        targets.append(
            ainfera_target(stack.port, chosen.dialect, chosen.model, stack.api_key, pids)
        )
        portkey = _portkey(chosen, opened, logs, home, port)
        if portkey is not None:
            targets.append(portkey)
        yield targets, {"provider": provider.pid}


def _portkey(
    chosen: argparse.Namespace, opened: AsyncExitStack, logs: Path, home: Path, port: int
) -> Target | None:
    """Portkey, unless it is not wanted or, where that is allowed, not to be had."""
    if chosen.portkey == "off":
        return None
    try:
        if chosen.dialect != chosen.provider and chosen.dialect != "openai":
            raise NoPortkey(f"it does not speak {chosen.dialect} to {chosen.provider}")
        folder = home / "portkey"
        folder.mkdir(exist_ok=True)
        child, listening = opened.enter_context(running_portkey(folder, logs))
    except NoPortkey as reason:
        if chosen.portkey == "on":
            raise
        say(f"Portkey is skipped: {reason}.")
        return None
    return portkey_target(listening, chosen.dialect, chosen.provider, port, child.pid)


async def measure_all(
    chosen: argparse.Namespace,
    load: Load,
    targets: list[Target],
    disk_ms: float,
    database: str,
) -> None:
    """Scenario by scenario, each over all targets, so that a busy minute hits all alike."""
    planned = scenarios(chosen.seconds, chosen.rate, chosen.token_ms)
    planned = [scenario for scenario in planned if scenario.key in chosen.only]
    meters = {target.name: Meter(target.pids) for target in targets}
    for target in targets:
        await warm(load, target, meters[target.name], max(0.5, chosen.seconds / 3))
    memory = {"before": _memory(meters)}
    results: dict[str, dict[str, Sample]] = {}
    windows = Windows()
    for scenario in planned:
        say(f"… {scenario.title}")
        for target in targets:
            if scenario.key == "sustained" and not target.pids:
                continue
            peak = results.get("peak", {}).get(target.name)
            with windows.noted(target.name, scenario.title):
                results.setdefault(scenario.key, {})[target.name] = await run(
                    load, scenario, target, meters[target.name], peak.per_second if peak else 400.0
                )
    memory["after"] = _memory(meters)
    owners = {process: target.name for target in targets for process in target.pids}
    say()
    say(table(planned, results, memory, owners, [target.name for target in targets]))
    say()
    decisions, waits = await tell_decisions(chosen.seconds, database, windows)
    samples = [sample for of_targets in results.values() for sample in of_targets.values()]
    say()
    say(_circumstances(chosen, samples, disk_ms))
    for sample in samples:
        if sample.measured.errors:
            say(f"first error: {sample.measured.error}")
            break
    if chosen.json is not None:
        chosen.json.write_text(
            json.dumps(
                _everything(chosen, results, memory, disk_ms)
                | {"decisions": decisions, "routed_ms": waits},
                indent=1,
            )
            + "\n"
        )


async def tell_decisions(
    seconds: float, database: str, windows: Windows
) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """Print and return what decisions cost, and how long calls waited for theirs."""
    waits = await routed_ms(database, windows)
    decisions = deciding.rows(seconds / 8, DECIDED_AMONG)
    decisions[0][0] = "decisions, without any store"
    say(aligned(decisions) + "\n")
    say(routed_table(waits))
    return decisions, {title: percentiles(of_calls) for title, of_calls in waits.items()}


def _memory(meters: dict[str, Meter]) -> dict[str, float]:
    return {name: mb for meter in meters.values() for name, mb in meter.memory_mb().items()}


def _circumstances(chosen: argparse.Namespace, samples: list[Sample], disk_ms: float) -> str:
    others = max((sample.others_cpu for sample in samples), default=0.0)
    way = f"{chosen.dialect} client, {chosen.provider} provider, model {chosen.model}"
    return (
        f"{way}; {chosen.workers} inference worker(s), {psutil.cpu_count()} cores.\n"
        f"An fsync takes {disk_ms:.1f} ms here. Others used up to {others:.2f} cores meanwhile."
    )


def _everything(
    chosen: argparse.Namespace,
    results: dict[str, dict[str, Sample]],
    memory: dict[str, dict[str, float]],
    disk_ms: float,
) -> dict[str, object]:
    return {
        "settings": {name: str(value) for name, value in vars(chosen).items()},
        "cores": psutil.cpu_count(),
        "fsync_ms": disk_ms,
        "results": {
            key: {name: asdict(sample) for name, sample in samples.items()}
            for key, samples in results.items()
        },
        "memory_mb": memory,
    }


# -- round trips ------------------------------------------------------------------------------


async def count(chosen: argparse.Namespace, servers: Servers, logs: Path, home: Path) -> None:
    """Count the round trips of streamed and folded calls, print."""
    stores = Stores(servers.app_url, servers.redis_url)
    found: dict[str, object] = {}
    with running_provider(logs) as (_, port):
        urls = provider_urls(chosen.provider, port)
        async with counted_stack(logs, urls, stores) as counted:
            for stream in (True, False):
                counts = await counted.count(
                    chosen.dialect, chosen.model, stream=stream, calls=chosen.calls
                )
                how = "streamed" if stream else "not streamed"
                say(counts_table(f"round trips of a warm call, {how} (median)", counts) + "\n")
                found[how] = {
                    "in_all": {" ".join(p): n for p, n in counts.in_all.items()},
                    "before_first_token": {
                        " ".join(p): n for p, n in counts.before_first_token.items()
                    },
                    "commandstats": counts.commandstats,
                }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
