"""The queue's own rules, script by script: whose turn it is, what goes first, what is refused."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared.domain.inference import Dialect
from shared.fleet import show_job
from shared.ids import mint_id
from shared.lanes import CLAIM, DONE, FINISH, RENEW
from shared.queue import (
    JOB_TTL_MS,
    Envelope,
    InferenceQueue,
    Priority,
    QueueLimits,
    retry_after_s,
)
from tests.workers.running import KEYS, envelope, keys_left

INTERACTIVE, BACKGROUND, REPLAY = Priority
SECOND = 1_000_000


class Claimer:
    """A worker's calls to the store, by hand."""

    def __init__(self, redis: Redis, name: str = "one") -> None:
        self.name = name
        self._claim: AsyncScript = redis.register_script(CLAIM)
        self._finish: AsyncScript = redis.register_script(FINISH)
        self._renew: AsyncScript = redis.register_script(RENEW)

    async def claim(
        self,
        limit: int = 64,
        *,
        lease_us: int = 60 * SECOND,
        slots: int = 1000,
        free: dict[str, int] | None = None,
    ) -> list["Got"]:
        """The claims in their order; `free` are tenants with the slots left to them."""
        left = [part for pair in (free or {}).items() for part in pair]
        rows, self.gave_turn_away = await self._claim(
            keys=[KEYS.queue, KEYS.lease, KEYS.bell, KEYS.passed],
            args=[limit, lease_us, self.name, "", slots, JOB_TTL_MS, *left],
        )
        return [Got(row[0].decode(), row[2], row[4].decode(), row[5]) for row in rows]

    async def finish(self, got: "Got", wait: int = DONE, tokens: int = -1) -> int:
        args: list[str | int] = [self.name, "", 0, got.id, got.attempt, wait, tokens]
        ended: int = await self._finish(keys=[KEYS.queue, KEYS.lease, KEYS.bell], args=args)
        return ended

    async def renew(self, got: "Got") -> bool:
        lost = await self._renew(
            keys=[KEYS.queue, KEYS.lease],
            args=[60 * SECOND, self.name, got.id, got.attempt],
        )
        return not lost


@dataclass(frozen=True)
class Got:
    id: str
    attempt: int
    tenant: str
    waited_us: int


@pytest_asyncio.fixture(loop_scope="session")
async def claimer(redis: Redis) -> Claimer:
    return Claimer(redis)


@pytest.fixture
def queue(redis: Redis) -> InferenceQueue:
    return InferenceQueue(redis)


async def put(queue: InferenceQueue, tenants: str, priority: Priority = INTERACTIVE) -> list[str]:
    """One job for each letter, of the tenant of that name; their ids."""
    sent = [envelope(tenant=tenant) for tenant in tenants]
    for each in sent:
        assert (await queue.enqueue(each, priority)).result == "QUEUED"
    return [str(each.inference_id) for each in sent]


def tenants(claims: list[Got]) -> str:
    return "".join(claim.tenant for claim in claims)


# -- whose turn it is ---------------------------------------------------------------------------


async def test_one_job_does_not_wait_behind_anothers_thousand(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    thousand = [envelope(tenant="A") for _ in range(1000)]
    await asyncio.gather(*[queue.enqueue(each) for each in thousand])
    await put(queue, "B")
    assert tenants(await claimer.claim(3)) in ("ABA", "BAA")


async def test_lanes_take_turns_and_each_keeps_its_order(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    ids = await put(queue, "AAAABBC")
    first, rest = await claimer.claim(4), await claimer.claim()
    assert tenants(first + rest) == "ABCABAA"
    of_a = [claim.id for claim in first + rest if claim.tenant == "A"]
    assert of_a == ids[:4]


async def test_a_lane_that_comes_back_does_not_overtake_those_that_waited(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    await put(queue, "ABBCC")
    assert tenants(await claimer.claim(1)) == "A"
    await put(queue, "A")
    assert tenants(await claimer.claim()) == "BCABC"


async def test_a_class_goes_before_the_next_whatever_came_first(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    replays = await put(queue, "AB", REPLAY)
    background = await put(queue, "AB", BACKGROUND)
    interactive = await put(queue, "AB")
    claimed = [claim.id for claim in await claimer.claim(3)]
    claimed += [claim.id for claim in await claimer.claim()]
    assert claimed == interactive + background + replays


# -- how much one tenant may have ----------------------------------------------------------------


async def test_a_tenant_has_no_more_slots_of_a_worker_than_it_may(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    await put(queue, "AAAABB")
    assert tenants(await claimer.claim(slots=3)) == "ABABA"
    assert claimer.gave_turn_away
    assert await claimer.claim(slots=3, free={"A": 0}) == []
    assert tenants(await claimer.claim(slots=3, free={"A": 1})) == "A"
    assert not claimer.gave_turn_away


async def test_a_lane_without_a_slot_stops_no_other_lane(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    await put(queue, "ABBBCC")
    await put(queue, "D", BACKGROUND)
    assert tenants(await claimer.claim(free={"A": 0})) == "BCBCBD"


async def test_slots_count_for_all_of_a_tenants_lanes(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    await put(queue, "AA")
    await put(queue, "AA", BACKGROUND)
    assert len(await claimer.claim(slots=3)) == 3


async def test_who_cannot_take_a_job_rings_for_those_who_can(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    await put(queue, "AAB")
    await redis.delete(KEYS.bell)
    await claimer.claim(1, slots=1)
    assert await redis.exists(KEYS.bell), "another's job waits for whoever has room"
    await redis.delete(KEYS.bell)
    await claimer.claim(slots=1, free={"A": 0})
    assert not await redis.exists(KEYS.bell), "we would hear it ourselves, in vain"
    assert await redis.exists(KEYS.passed)


# -- what comes back -----------------------------------------------------------------------------


async def test_what_is_handed_back_goes_to_the_front_of_its_lane(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    ids = await put(queue, "AAA")
    (first,) = await claimer.claim(1)
    assert await claimer.finish(first, wait=0) == 1
    again = await claimer.claim()
    assert [claim.id for claim in again] == ids
    assert [claim.attempt for claim in again] == [2, 1, 1]


@pytest.mark.parametrize("downwards", [False, True])
async def test_jobs_of_the_dead_come_back_in_their_order_before_the_others(
    queue: InferenceQueue, redis: Redis, claimer: Claimer, downwards: bool
) -> None:
    # leases of one claim end together, and then the store sorts by id: not the order we want
    sent = [envelope(tenant="A") for _ in range(4)]
    sent.sort(key=lambda each: each.inference_id, reverse=downwards)
    ids = [str(each.inference_id) for each in sent]
    for each in sent:
        await queue.enqueue(each)
    await claimer.claim(2, lease_us=0)
    other = Claimer(redis, "other")
    assert [claim.id for claim in await other.claim()] == ids


async def test_who_lost_a_job_cannot_end_it_while_it_waits(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    (job_id,) = await put(queue, "A")
    (lost,) = await claimer.claim(lease_us=0)
    other = Claimer(redis, "other")
    assert await other.claim(free={"A": 0}) == [], "it came back, and nobody has a slot for it"
    assert await claimer.finish(lost) == 0
    assert [claim.id for claim in await other.claim()] == [job_id]


async def test_a_deferred_job_waits_apart_until_it_is_due(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    ids = await put(queue, "AA")
    (first,) = await claimer.claim(1)
    await claimer.finish(first, wait=3_600_000)
    assert (await show_job(redis, first.id)).state == "deferred"
    assert await redis.zcard(KEYS.waiting) == 1
    await redis.zadd(KEYS.queue, {first.id: 1})
    assert [claim.id for claim in await claimer.claim()] == ids


# -- who owns a job --------------------------------------------------------------------------------


async def test_only_the_owner_renews_and_ends(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    await put(queue, "A")
    (got,) = await claimer.claim()
    thief = Claimer(redis, "thief")
    assert not await thief.renew(got)
    assert await thief.finish(got) == 0
    assert await claimer.renew(got)
    assert await claimer.finish(got) == 1
    assert await claimer.finish(got) == 0
    assert await keys_left(redis) == []


async def test_an_older_attempt_of_the_same_worker_owns_nothing(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    await put(queue, "A")
    (old,) = await claimer.claim(lease_us=0)
    (new,) = await claimer.claim()
    assert (new.id, new.attempt) == (old.id, 2)
    assert not await claimer.renew(old)
    assert await claimer.finish(old) == 0
    assert await claimer.renew(new)


async def test_what_was_enqueued_twice_is_claimed_once(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    twice = envelope()
    results = [(await queue.enqueue(twice)).result for _ in range(2)]
    claimed = await claimer.claim()
    results.append((await queue.enqueue(twice, BACKGROUND)).result)
    assert (results, len(claimed)) == (["QUEUED", "EXISTS", "EXISTS"], 1)
    assert await claimer.claim() == []


async def test_attempts_are_counted_on_from_those_made_before(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    sent = envelope()
    await queue.enqueue(sent, REPLAY, attempts=4)
    tries = []
    for _ in range(3):
        (got,) = await claimer.claim()
        tries.append(got.attempt)
        await claimer.finish(got, wait=0)
    assert tries == [5, 6, 7]


async def test_holding_tells_waiting_and_leased_from_ended_and_unknown(
    queue: InferenceQueue, claimer: Claimer
) -> None:
    ended, leased, waiting, unknown = (envelope() for _ in range(4))
    for each in (ended, leased, waiting):
        await queue.enqueue(each)
    first, _ = await claimer.claim(2)
    await claimer.finish(first)
    asked = [each.inference_id for each in (ended, leased, waiting, unknown)]
    assert await queue.holding(asked) == {leased.inference_id, waiting.inference_id}
    assert await queue.holding([]) == set()


async def test_a_claim_begins_the_time_that_a_job_is_kept_anew(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    (late,) = await put(queue, "A", BACKGROUND)
    for key in (KEYS.job(late), KEYS.payload(late)):
        await redis.pexpire(key, 60_000)
    await claimer.claim()
    for key in (KEYS.job(late), KEYS.payload(late)):
        assert await redis.pttl(key) > JOB_TTL_MS / 2, "it would be gone in the middle of its run"


async def test_a_job_whose_request_is_gone_is_dropped(
    queue: InferenceQueue, redis: Redis, claimer: Claimer
) -> None:
    gone, kept = await put(queue, "AA")
    await redis.delete(KEYS.job(gone))
    assert [claim.id for claim in await claimer.claim()] == [kept]
    await redis.delete(KEYS.job(kept))
    assert await claimer.finish(Got(kept, 1, "A", 0), wait=0) == 0
    await redis.zadd(KEYS.lease, {kept: 1})
    assert await claimer.claim() == []
    assert await keys_left(redis) == []


# -- what is refused -------------------------------------------------------------------------------


async def test_a_full_queue_refuses_all_and_a_full_lane_its_tenant(redis: Redis) -> None:
    queue = InferenceQueue(redis, QueueLimits(depth=4, in_lane=3))
    await put(queue, "AAA")
    own = await queue.enqueue(envelope(tenant="A"))
    assert (own.result, own.depth) == ("TENANT_BUSY", 3)
    assert (await queue.enqueue(envelope(tenant="B"))).result == "QUEUED"
    for priority in (INTERACTIVE, BACKGROUND):
        refused = await queue.enqueue(envelope(tenant="C"), priority)
        assert (refused.result, refused.depth, refused.retry_after_s) == ("BUSY", 4, 60)
    assert len(await redis.keys(KEYS.job("*"))) == 4
    accepted_before = await queue.enqueue(envelope(tenant="A"), limit=False)
    assert (accepted_before.result, accepted_before.depth) == ("QUEUED", 5)


async def test_what_is_claimed_later_keeps_nobody_out(redis: Redis) -> None:
    queue = InferenceQueue(redis, QueueLimits(depth=4))
    await put(queue, "ABCD", BACKGROUND)
    for _ in range(5):
        await queue.enqueue(envelope(tenant="E"), REPLAY, limit=False)
    assert (await queue.enqueue(envelope(tenant="E"), BACKGROUND)).result == "BUSY"
    for count in range(1, 5):
        taken = await queue.enqueue(envelope(tenant="F"))
        assert (taken.result, taken.depth) == ("QUEUED", count)
    refused = await queue.enqueue(envelope(tenant="G"))
    assert (refused.result, refused.depth) == ("BUSY", 4)


async def test_the_wait_of_the_refused_is_told_from_what_goes_before_them(
    redis: Redis, claimer: Claimer
) -> None:
    queue = InferenceQueue(redis, QueueLimits(depth=20))
    for _ in range(300):
        await queue.enqueue(envelope(tenant="A"), REPLAY, limit=False)
    await put(queue, "AB" * 10)
    await claimer.claim(10)
    await put(queue, "AB" * 5)
    # ten in five seconds, and two of twenty have to go: not also those that are claimed later
    assert (await queue.enqueue(envelope())).retry_after_s in (1, 2)


async def age_lane(redis: Redis, tenant: str, by_s: float, *, turn: bool) -> None:
    """As if the jobs of a lane had waited longer; with `turn`, as if it had no turn meanwhile."""
    sorted_sets: Any = redis
    for job_id in await sorted_sets.lrange(KEYS.lane(f"0:{tenant}"), 0, -1):
        await redis.zincrby(KEYS.waiting, -by_s * SECOND, job_id)
    if turn:
        await redis.zincrby(KEYS.turns, -by_s * SECOND, f"0:{tenant}")


async def test_when_a_lane_waits_too_long_for_its_turn_all_are_refused(redis: Redis) -> None:
    queue = InferenceQueue(redis, QueueLimits(age_s=30))
    await put(queue, "AB")
    await age_lane(redis, "A", 29, turn=True)
    assert (await queue.enqueue(envelope(tenant="C"))).result == "QUEUED"
    await age_lane(redis, "A", 2, turn=True)
    refused = await queue.enqueue(envelope(tenant="C"))
    assert refused.result == "BUSY"
    assert refused.oldest_age_s == pytest.approx(31, abs=1)


async def test_a_tenant_whose_own_jobs_wait_too_long_is_refused_alone(redis: Redis) -> None:
    queue = InferenceQueue(redis, QueueLimits(age_s=30))
    await put(queue, "AAB")
    await age_lane(redis, "A", 31, turn=False)
    assert (await queue.enqueue(envelope(tenant="A"))).result == "TENANT_BUSY"
    assert (await queue.enqueue(envelope(tenant="B"))).result == "QUEUED"


@pytest.mark.parametrize(
    ("result", "depth", "in_lane", "lanes", "per_second", "seconds"),
    [
        ("BUSY", 1000, 10, 5, 0.0, 60),  # nobody claims
        ("BUSY", 1000, 10, 5, 50.0, 2),  # a tenth has to go
        ("BUSY", 1000, 10, 5, 900.0, 1),
        ("BUSY", 1000, 10, 5, 0.5, 60),
        ("TENANT_BUSY", 1000, 100, 5, 50.0, 1),  # a tenth of the lane, at a fifth of the rate
        ("TENANT_BUSY", 1000, 100, 5, 5.0, 10),
    ],
)
def test_how_long_to_wait_is_by_what_drains(
    result: Any, depth: int, in_lane: int, lanes: int, per_second: float, seconds: int
) -> None:
    limits = QueueLimits(depth=1000, in_lane=100)
    assert retry_after_s(result, depth, in_lane, lanes, per_second, limits) == seconds


async def test_the_wait_is_told_from_the_claims_of_late(redis: Redis, claimer: Claimer) -> None:
    queue = InferenceQueue(redis, QueueLimits(depth=100))
    await put(queue, "AB" * 50)
    assert (await queue.enqueue(envelope())).retry_after_s == 60
    await claimer.claim(50)
    await put(queue, "AB" * 25)
    # fifty in five seconds, and ten of a hundred have to go; the first of the fifty fade already
    assert (await queue.enqueue(envelope())).retry_after_s in (1, 2)


async def test_the_payload_is_not_in_the_job(queue: InferenceQueue, redis: Redis) -> None:
    sent = Envelope(
        mint_id(), mint_id(), Dialect.NATIVE, "r", {"tenant_id": "A"}, 1.0, "t", b"words"
    )
    await queue.enqueue(sent)
    hashes: Any = redis
    assert b"words" not in b"".join(
        (await hashes.hgetall(KEYS.job(str(sent.inference_id)))).values()
    )
