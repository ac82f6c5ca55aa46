"""What one call costs in round trips: counted from outside, with a proxy before each store.

Two processes, ingress and inference worker, each with two counting proxies; the stores' own
counters beside them. The least over some calls is what a call costs: now and then a worker also
renews a lease or looks at the queue in passing.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
from redis.asyncio import Redis

from shared.queue import INFERENCE_QUEUE
from tests.bench.counting_proxy import CountingProxy, PostgresReading, ValkeyReading
from tests.bench.fake_provider import WORD, Pace, prompt
from tests.bench.report import aligned
from tests.bench.stack import Stack, Stores, redirected, running_stack
from tests.bench.targets import MAX_TOKENS, PATHS, Wire

Store = Literal["postgres", "valkey"]
Place = tuple[str, Store]
PROCESSES = ("ingress", "inference")
PLACES: tuple[Place, ...] = tuple((p, s) for p in PROCESSES for s in ("valkey", "postgres"))

_SOCKET = ".s.PGSQL.5432"
_WARM_CALLS = 2
# Slow enough that what is sent for the second token is not taken for part of the first.
_SLOW = Pace(tokens=3, first_ms=0.1, each_ms=30)
_FINISHED_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Trips:
    """Round trips of one call: in all, and until the client had the first token."""

    in_all: Mapping[Place, int]
    before_first_token: Mapping[Place, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """Round trips a call (the least seen), requests a call and Valkey's own counters (means)."""

    in_all: Mapping[Place, float]
    before_first_token: Mapping[Place, float]
    requests: Mapping[Place, Mapping[str, float]]
    commandstats: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CountedStack:
    """A running gateway with a counting proxy between each process and each store."""

    stack: Stack
    proxies: Mapping[Place, CountingProxy]
    valkey: "Redis"

    async def call(self, wire: Wire, model: str, *, stream: bool) -> Trips:
        """One call, to the end of all that it leaves to do."""
        began = perf_counter()
        first = await self._ask(wire, model, stream)
        await self._finished()
        return Trips(
            {place: proxy.trips(began) for place, proxy in self.proxies.items()},
            {place: proxy.trips(began, first) for place, proxy in self.proxies.items()},
        )

    async def count(self, wire: Wire, model: str, *, stream: bool, calls: int) -> Counts:
        """Warm up, then the round trips of `calls` calls, one after the other."""
        for _ in range(_WARM_CALLS):
            await self.call(wire, model, stream=stream)
        began, stats = perf_counter(), await self._commandstats()
        trips = [await self.call(wire, model, stream=stream) for _ in range(calls)]
        stats_after = await self._commandstats()
        return Counts(
            _least(one.in_all for one in trips),
            _least(one.before_first_token for one in trips),
            {
                place: {what: n / calls for what, n in proxy.by_request(began).most_common()}
                for place, proxy in self.proxies.items()
            },
            {what: n / calls for what, n in (stats_after - stats).most_common()},
        )

    async def _ask(self, wire: Wire, model: str, stream: bool) -> float:
        """The moment when the first token was there; raises unless the answer is whole."""
        body = {
            "model": model,
            "max_tokens": MAX_TOKENS,
            "stream": stream,
            "messages": [{"role": "user", "content": prompt(_SLOW)}],
        }
        headers = {"authorization": f"Bearer {self.stack.api_key}"}
        url = f"http://127.0.0.1:{self.stack.port}{PATHS[wire]}"
        text, first = "", 0.0
        async with (
            httpx.AsyncClient(trust_env=False, timeout=30, verify=False) as client,
            client.stream("POST", url, json=body, headers=headers) as answer,
        ):
            async for chunk in answer.aiter_text():
                text += chunk
                if not first and WORD in text:
                    first = perf_counter()
        if answer.status_code != 200 or text.count(WORD) != _SLOW.tokens:
            raise RuntimeError(f"The call was answered {answer.status_code}: {text}")
        return first

    async def _finished(self) -> None:
        """Wait until the worker has ended the job, which it does after the client was told."""
        async with asyncio.timeout(_FINISHED_TIMEOUT_S):
            while await self.valkey.zcard(f"{INFERENCE_QUEUE}:lease"):
                await asyncio.sleep(0.002)

    async def _commandstats(self) -> Counter[str]:
        stats = await self.valkey.info("commandstats")
        ours = ("cmdstat_zcard", "cmdstat_info")
        return Counter(
            {
                name.removeprefix("cmdstat_"): values["calls"]
                for name, values in stats.items()
                if name not in ours
            }
        )


@asynccontextmanager
async def counted_stack(
    logs: Path, providers: Mapping[str, str], stores: Stores
) -> AsyncIterator[CountedStack]:
    """Run the gateway on these stores, which must be behind Unix sockets."""
    async with AsyncExitStack() as opened:
        # not below `logs`: the path of a socket may not be long
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="count-")))
        proxies: dict[Place, CountingProxy] = {}
        ways: dict[str, Stores] = {}
        for process in PROCESSES:
            postgres, valkey = folder / process / _SOCKET, folder / process / "valkey.sock"
            proxies[process, "postgres"] = await opened.enter_async_context(
                CountingProxy(postgres, _postgres_socket(stores.database_url), PostgresReading)
            )
            proxies[process, "valkey"] = await opened.enter_async_context(
                CountingProxy(valkey, Path(urlsplit(stores.redis_url).path), ValkeyReading)
            )
            ways[process] = Stores(
                redirected(stores.database_url, postgres), redirected(stores.redis_url, valkey)
            )
        stack = await opened.enter_async_context(running_stack(logs, providers, ways))
        valkey_itself = await opened.enter_async_context(Redis.from_url(stores.redis_url))
        yield CountedStack(stack, proxies, valkey_itself)


def _postgres_socket(url: str) -> Path:
    return Path(unquote(parse_qs(urlsplit(url).query)["host"][0])) / _SOCKET


def _least(calls: Iterable[Mapping[Place, int]]) -> dict[Place, float]:
    """What each call cost that was alone: heartbeats that fall into one only ever add."""
    seen = list(calls)
    return {place: min(call[place] for call in seen) for place in PLACES}


def counts_table(title: str, counts: Counts) -> str:
    """Round trips, then what they were, then what Valkey itself counted."""
    grid = [[title, "in all", "until the first token"]]
    grid += [
        [f"  {process}, {store}", f"{counts.in_all[process, store]:g}", ""]
        if not counts.in_all[process, store]
        else [
            f"  {process}, {store}",
            f"{counts.in_all[process, store]:g}",
            f"{counts.before_first_token[process, store]:g}",
        ]
        for process, store in PLACES
    ]
    asked = [["requests a call (mean)", ""]]
    asked += [
        [f"  {process}, {store}: {what}", f"{n:.2f}"]
        for (process, store), requests in counts.requests.items()
        for what, n in requests.items()
    ]
    inside = [["commands a call inside Valkey (commandstats, mean)", ""]]
    inside += [[f"  {what}", f"{n:.2f}"] for what, n in counts.commandstats.items()]
    return "\n\n".join(aligned(part) for part in (grid, asked, inside))
