"""The faults that a run makes: each takes a scene and breaks something of its fleet.

A fault ends when what was taken away is there again, if it comes back at all: processes that were
killed are started again by the fleet's own supervisor meanwhile.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg
import orjson
from redis.asyncio import Redis

from shared.control import CONTROL_CHANNEL
from shared.lanes import QueueKeys
from shared.queue import INFERENCE_QUEUE, Envelope, InferenceQueue
from shared.stream import Record, RecordKind
from tests.faults.clients import POISONED, Clients, Heard
from tests.faults.doomed import POINTS, POISON
from tests.faults.fleet import LEASE_S, Fleet
from tests.faults.provider import Part
from tests.faults.small_disk import fill, make_room

WORKERS = ("inference1", "inference2")
WEBS = ("web1", "web2")
SKEW_S = 600
BUFFER = 64 * 1024
DROP, DROPS = 8 * 1024, 256


@dataclass
class Scene:
    """What a fault may touch. `away_s` is how long Postgres stays away.

    `comers` came while it was, or while its disk was full; `seen` counts what only happened
    because a fault was real.
    """

    fleet: Fleet
    load: Clients
    rng: random.Random
    away_s: float
    comers: list[Heard] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


Fault = Callable[[Scene], Awaitable[None]]


# -- processes ----------------------------------------------------------------------------------


async def kill_worker(scene: Scene) -> None:
    scene.fleet.kill(scene.rng.choice(WORKERS))


async def doom_worker(scene: Scene) -> None:
    rng = scene.rng
    scene.fleet.doom(rng.choice(WORKERS), rng.choice(list(POINTS)), rng.randint(1, 4))


async def freeze_worker(scene: Scene) -> None:
    process = scene.fleet.processes[scene.rng.choice(WORKERS)]
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(LEASE_S * scene.rng.uniform(1.2, 2.5))
    process.send_signal(signal.SIGCONT)


async def drain_worker(scene: Scene) -> None:
    scene.fleet.drain(scene.rng.choice(WORKERS))


async def poison_workers(scene: Scene) -> None:
    """A call that kills whichever worker plans it, until it is set aside."""
    heard = Heard(0, POISONED, "native", routed=True, says=f" {POISON}")
    if scene.rng.random() < 0.5:
        heard.key = f"poison {scene.seen['poisoned calls']}"
    scene.seen["poisoned calls"] += 1
    scene.load.begin(heard, Part(1, 0))


async def kill_ingress(scene: Scene) -> None:
    scene.fleet.kill(scene.rng.choice(WEBS))


async def kill_books(scene: Scene) -> None:
    scene.fleet.kill("books")


async def skew_clock(scene: Scene) -> None:
    """One process is ten minutes wrong, for a while, under whatever it is doing."""
    clock = scene.fleet.clock(scene.rng.choice((*WORKERS, *WEBS, "books")))
    wrong = scene.rng.choice((-SKEW_S, SKEW_S))
    clock.write_text(str(wrong), "ascii")
    await asyncio.sleep(scene.rng.uniform(1, 3))
    scene.seen["clocks skewed"] += 1
    # half of them stay wrong until they are next chosen
    if scene.rng.random() < 0.5:
        clock.write_text("0", "ascii")


# -- Valkey -------------------------------------------------------------------------------------


async def restart_valkey(scene: Scene) -> None:
    await scene.fleet.stop_server("valkey", scene.rng.choice((signal.SIGKILL, signal.SIGTERM)))
    await asyncio.sleep(scene.rng.uniform(0, 1))
    await scene.fleet.start_server("valkey")


async def lose_valkey(scene: Scene) -> None:
    async with scene.fleet.redis as redis:
        await redis.flushall()


async def cut_connection(scene: Scene) -> None:
    async with scene.fleet.redis as redis:
        mine = await redis.client_id()
        ids = [each["id"] for each in await redis.client_list() if each["id"] != str(mine)]
        if ids:
            await redis.client_kill_filter(_id=scene.rng.choice(ids))


async def overflow_subscribers(scene: Scene) -> None:
    """More is published than a subscriber may have waiting: the store cuts it off, in silence."""
    async with scene.fleet.redis as redis:
        dropped = await _dropped(redis)
        limits = "client-output-buffer-limit"
        before = (await redis.config_get(limits))[limits]
        await redis.config_set(limits, f"pubsub {BUFFER} {BUFFER} 1")
        try:
            for channel in await redis.pubsub_channels("ainfera:*"):
                noise = orjson.dumps({"type": "noise", "of": "x" * DROP})
                if channel != CONTROL_CHANNEL.encode():
                    noise = Record(uuid4().bytes, 1, RecordKind.DATA, 0, bytes(DROP)).pack()
                # in one transaction: the store sends nothing between two of them
                async with redis.pipeline(transaction=True) as pipe:
                    for _ in range(DROPS):
                        pipe.publish(channel, noise)
                    await pipe.execute()
            await asyncio.sleep(scene.rng.uniform(0.1, 0.5))
        finally:
            await redis.config_set(limits, before)
        scene.seen["subscribers dropped"] += await _dropped(redis) - dropped


async def _dropped(redis: Redis) -> int:
    stats = await redis.info("stats")
    return int(stats["client_output_buffer_limit_disconnections"])


async def fill_valkey(scene: Scene) -> None:
    async with scene.fleet.redis as redis:
        await redis.config_set("maxmemory", 1)
        try:
            await asyncio.sleep(scene.rng.uniform(1, 2.5 * LEASE_S))
        finally:
            await redis.config_set("maxmemory", 0)


async def enqueue_twice(scene: Scene) -> None:
    """Jobs of calls in flight are queued once more when they have ended, as if by another."""
    keys = QueueKeys(INFERENCE_QUEUE)
    async with scene.fleet.redis as redis:
        queue, found = InferenceQueue(redis), []
        async for key in redis.scan_iter(match=keys.payload("*"), count=1000):
            packed = await redis.get(key)
            if packed is not None and POISON.encode() not in packed:
                found.append(Envelope.unpack(packed))
        chosen = scene.rng.sample(found, min(8, len(found)))
        for _ in range(30):
            await asyncio.sleep(0.1)
            held = await queue.holding([each.inference_id for each in chosen])
            for each in [each for each in chosen if each.inference_id not in held]:
                # the count of attempts is forgotten too, or known: both happen
                await queue.enqueue(each, attempts=scene.rng.choice((0, 1)), limit=False)
                scene.seen["jobs queued twice"] += 1
                chosen.remove(each)


# -- Postgres -----------------------------------------------------------------------------------


async def crash_postgres(scene: Scene) -> None:
    await scene.fleet.stop_server("postgres", signal.SIGQUIT)
    await asyncio.sleep(scene.rng.uniform(0, 2))
    await scene.fleet.start_server("postgres")


async def send_postgres_away(scene: Scene) -> None:
    """It stands still, which no connection shows, or it is gone; then it is there again."""
    fleet = scene.fleet
    if scene.rng.random() < 0.5:
        with fleet.frozen("postgres"):
            await _come_meanwhile(scene)
    else:
        await fleet.stop_server("postgres", signal.SIGINT)
        await _come_meanwhile(scene)
        await fleet.start_server("postgres")


async def fill_disk(scene: Scene) -> None:
    """Postgres cannot enlarge a file; if that ends it, it is started once there is room."""
    fleet = scene.fleet
    assert fleet.disk is not None
    filler = await asyncpg.connect(fleet.servers.superuser_url)
    fill(fleet.disk)
    try:
        with suppress(OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
            await filler.execute("CREATE TABLE IF NOT EXISTS filler (of text)")
            await filler.execute(
                "INSERT INTO filler SELECT repeat('x', 2000) FROM generate_series(1, 100000)"
            )
    except asyncpg.DiskFullError:
        scene.seen["disk full as Postgres says"] += 1
    try:
        await _come_meanwhile(scene)
    finally:
        make_room(fleet.disk)
        filler.terminate()
        fleet.note_away()
        if not fleet.servers.running["postgres"].running:
            scene.seen["Postgres ended by a full disk"] += 1
            await fleet.start_server("postgres")


async def _come_meanwhile(scene: Scene) -> None:
    """One client comes to each ingress while Postgres is away."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + scene.away_s
    await asyncio.sleep(0.5)
    for web in (0, 1):
        heard = Heard(0, "folded", "native", routed=True)
        scene.comers.append(scene.load.begin(heard, Part(2, 0), web=web))
    await asyncio.sleep(max(0, ends_at - loop.time()))


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault and how often it comes among the others, after it came once."""

    make: Fault
    weight: int
    needs_disk: bool = False


FAULTS = {
    "worker kill -9": Kind(kill_worker, 3),
    "worker kill -9 at a point": Kind(doom_worker, 8),
    "worker frozen past its lease": Kind(freeze_worker, 3),
    "worker ended in an orderly way": Kind(drain_worker, 1),
    "poison job": Kind(poison_workers, 1),
    "ingress kill -9": Kind(kill_ingress, 2),
    "books kill -9": Kind(kill_books, 1),
    "clock skew of ten minutes": Kind(skew_clock, 2),
    "Valkey restart": Kind(restart_valkey, 2),
    "Valkey total loss": Kind(lose_valkey, 3),
    "Valkey full": Kind(fill_valkey, 2),
    "one connection killed": Kind(cut_connection, 4),
    "pub/sub overflow": Kind(overflow_subscribers, 2),
    "double enqueue": Kind(enqueue_twice, 2),
    "Postgres crash": Kind(crash_postgres, 2),
    "Postgres away": Kind(send_postgres_away, 1),
    "disk full": Kind(fill_disk, 1, needs_disk=True),
}


def deck(rng: random.Random, only: str, disk: bool) -> list[str]:
    """Names in the order in which they come, the last first: each once, then by their weights."""
    names = [
        name for name, kind in FAULTS.items() if only in name and (disk or not kind.needs_disk)
    ]
    more = [name for name in names for _ in range(FAULTS[name].weight - 1)]
    rng.shuffle(names)
    rng.shuffle(more)
    return [*more, *names]
