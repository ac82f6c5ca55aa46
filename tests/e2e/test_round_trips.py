"""What one warm routed call may cost in round trips, counted by proxies before both stores."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import migrations
from shared.catalog import seed_catalog
from shared.embedded import embedded_servers
from tests.bench.counting import CountedStack, Counts, counted_stack
from tests.bench.stack import Stores, running_provider
from tests.bench.targets import Wire

CALLS = 15
ROUTED = "ainfera-inference"

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def counted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CountedStack]:
    """An ingress and a worker behind counting proxies, with one provider to choose from.

    The stores are their own: a store counts the commands of all who use it.
    """
    home: Path = tmp_path_factory.mktemp("round_trips")
    with embedded_servers(home / "stores", durable=False) as servers:
        # alembic runs an event loop of its own, so it gets a thread of its own
        await asyncio.to_thread(migrations.upgrade, servers.owner_url)
        await seed_catalog(servers.owner_url)
        with running_provider(home) as (_, port):
            url = {"anthropic": f"http://127.0.0.1:{port}"}
            stores = Stores(servers.app_url, servers.redis_url)
            async with counted_stack(home, url, stores) as running:
                yield running


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
async def test_a_streamed_call_stays_within_its_round_trips(
    counted: CountedStack, wire: Wire
) -> None:
    counts = await counted.count(wire, ROUTED, stream=True, calls=CALLS)

    assert 1 <= counts.in_all["ingress", "valkey"] <= 3
    # the bell, the claim, the publish
    assert 1 <= counts.before_first_token["inference", "valkey"] <= 3
    assert postgres(counts) == 2


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
async def test_a_folded_call_stays_within_its_round_trips(
    counted: CountedStack, wire: Wire
) -> None:
    counts = await counted.count(wire, ROUTED, stream=False, calls=CALLS)

    assert 1 <= counts.in_all["ingress", "valkey"] <= 3
    # the same and the end of the job: such an answer comes whole
    assert 1 <= counts.in_all["inference", "valkey"] <= 4
    assert postgres(counts) == 2


async def test_the_hold_is_the_only_thing_postgres_is_asked_before_the_first_token(
    counted: CountedStack,
) -> None:
    counts = await counted.count("anthropic", ROUTED, stream=True, calls=CALLS)

    assert counts.before_first_token["ingress", "postgres"] == 0
    assert counts.before_first_token["inference", "postgres"] == 1


async def test_the_proxies_hear_what_the_store_itself_counts(counted: CountedStack) -> None:
    """Else a proxy that heard nothing would pass for a call that costs nothing."""
    counts = await counted.count("anthropic", ROUTED, stream=True, calls=CALLS)
    asked = [counts.requests[process, "valkey"] for process in ("ingress", "inference")]

    for command in ("EVALSHA", "PUBLISH", "BLPOP"):
        heard = sum(requests.get(command, 0) for requests in asked)
        assert heard == pytest.approx(counts.commandstats[command.lower()], abs=1)
        assert heard >= 1


def postgres(counts: Counts) -> float:
    return sum(n for (_, store), n in counts.in_all.items() if store == "postgres")
