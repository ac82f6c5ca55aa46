"""A queue lies in one slot of a cluster: asked of the keys, and of a store that insists."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from shared.embedded import Servers, embedded_servers
from shared.fleet import ALL, WORKERS_KEY, drain, list_workers, read_status, resume, show_job
from shared.queue import INFERENCE_QUEUE, InferenceQueue, Priority, QueueLimits
from tests.e2e.stack import free_port
from tests.workers.running import Running, envelope, until

# whatever begins like a key of ours or of arq's, tagged or not
KEY = re.compile(r"\{?ainfera:|arq:")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Valkey in cluster mode that has all slots: it refuses whatever touches two of them."""
    home: Path = tmp_path_factory.mktemp("cluster")
    options = {"cluster-enabled": "yes", "bind": "127.0.0.1", "cluster-port": str(free_port())}
    with embedded_servers(home, postgres=False, durable=False, valkey_options=options) as running:
        yield running


async def a_life_of_jobs(redis: Redis, url: str) -> None:
    """All that can happen to a job, and all that operators ask."""
    ended: list[str] = []

    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        if ctx["job_try"] == 1:
            raise asyncio.CancelledError
        ended.append(inference_id)

    queue = InferenceQueue(redis, QueueLimits(depth=8, in_lane=4))
    sent = [envelope(tenant=f"t{n % 3}") for n in range(12)]
    for n, each in enumerate(sent):
        await queue.enqueue(each, Priority(n % 3), limit=n < 10)
    await queue.holding([each.inference_id for each in sent])
    await show_job(redis, sent[0].inference_id)
    running = Running(url, job, lease_s=0.3, jobs_per_tenant=1, max_jobs=2)
    held = await queue.holding([each.inference_id for each in sent])
    await until(lambda: len(ended) == len(held))
    await drain(redis, ALL)
    await list_workers(redis)
    await read_status(redis)
    await resume(redis, ALL)
    await running.stop()


async def test_a_cluster_takes_every_script(cluster: Servers) -> None:
    async with Redis.from_url(cluster.redis_url) as redis:
        await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with asyncio.timeout(10):
            while b"cluster_state:ok" not in await redis.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.05)
        with pytest.raises(Exception, match="CROSSSLOT"):
            await redis.mget("a", "b")
        await a_life_of_jobs(redis, cluster.redis_url)


async def test_every_key_that_is_touched_is_in_its_queues_slot(
    redis: Redis, redis_url: str
) -> None:
    touched: set[str] = set()
    ours = redis.connection_pool.connection_kwargs.get("db") or 0  # the server has others too

    async def listen(monitor: Any) -> None:
        async for command in monitor.listen():
            words = command["command"].split(" ") if int(command["db"]) == ours else ()
            touched.update(word for word in words if KEY.match(word))

    async with redis.monitor() as monitor:
        listening = asyncio.create_task(listen(monitor))
        await a_life_of_jobs(redis, redis_url)
        async with asyncio.timeout(10):
            while INFERENCE_QUEUE + ":the-end" not in touched:
                await redis.get(INFERENCE_QUEUE + ":the-end")
        listening.cancel()
    slots: dict[int, set[str]] = {}
    for key in touched:
        slots.setdefault(key_slot(key.encode()), set()).add(key)
    assert set(slots) == {key_slot(INFERENCE_QUEUE.encode()), key_slot(WORKERS_KEY.encode())}
    of_jobs = slots[key_slot(INFERENCE_QUEUE.encode())]
    kinds = {key.partition("}:")[2].partition(":")[0] for key in of_jobs}
    assert kinds >= {"job", "payload", "lane", "waiting", "turns", "lease", "bell"}
