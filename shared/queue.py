"""The queue: what a job is called, what it carries, and the one call that enqueues it.

A job carries the inference id alone. The request travels beside it under a key of its own,
`{ainfera:inference}:payload:<id>`, written in the same call and deleted when the job is
finished, so that no prompt ever stands in a job, a result or a log. The job's own format is
arq's. How jobs wait is in lanes.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal
from uuid import UUID

import orjson
from arq.connections import RedisSettings
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared.config import Settings
from shared.domain.counting import counted
from shared.domain.inference import Dialect
from shared.errors import AinferaError, Draining, Overloaded, RateLimited
from shared.ids import mint_id
from shared.lanes import ADMIT_ALONE, ENQUEUE, QueueKeys
from shared.limiting import Admission, Standing
from shared.stopping import GIVE_UP, STOP

# all keys of a queue begin with its name; the braces are its hash tag, one slot of a cluster
INFERENCE_QUEUE = "{ainfera:inference}"
BOOKS_QUEUE = "{ainfera:books}"
RUN_INFERENCE = "run_inference"

# a job nobody claimed for so long is of no use to its caller; each claim begins it anew
JOB_TTL_MS = 24 * 60 * 60 * 1000

# no worker for so long: new calls are not taken in to wait for one; a restart is shorter
UNSERVED_AFTER_S = 10.0
# a worker takes some seconds to start; an operator who drains the fleet takes longer
UNSERVED_RETRY_S, DRAINED_RETRY_S = 15, 60

Result = Literal["QUEUED", "EXISTS", "BUSY", "TENANT_BUSY", "KEY_LIMIT", "UNSERVED", "DRAINED"]
GivenUp = Literal["NOT_STARTED", "LOST", "BEGUN", "GONE"]


class Priority(IntEnum):
    """Classes of jobs: one with a lower number always goes first."""

    INTERACTIVE = 0
    BACKGROUND = 1
    REPLAY = 2


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait before calls are refused; `age_s` is for interactive calls.

    `depth` is about calls of one's own priority and of those above it: what is claimed later
    keeps nobody waiting.
    """

    depth: int = 10_000
    age_s: float = 30.0
    in_lane: int = 2_000


def queue_limits(settings: Settings) -> QueueLimits:
    """The limits that the settings name."""
    return QueueLimits(
        settings.max_queue_depth, settings.max_queue_age_s, settings.max_tenant_queue
    )


@dataclass(frozen=True, slots=True)
class Queued:
    """What became of an enqueue.

    `depth` counts the jobs that wait and go before the next one of this priority, `oldest_age_s`
    is how long the oldest interactive one has; `retry_after_s` is for those refused; `standing` is
    where a key with limits stands.
    """

    result: Result
    depth: int
    oldest_age_s: float
    retry_after_s: int = 1
    standing: Standing | None = None

    @property
    def refusal(self) -> AinferaError | None:
        """The error to answer with, where the job was not taken."""
        if self.result == "BUSY":
            return Overloaded(
                "More calls wait than can be answered in time; nothing was charged.",
                retry_after=self.retry_after_s,
            )
        if self.result == "TENANT_BUSY":
            return RateLimited(
                "Too many calls of yours wait already; nothing was charged.",
                retry_after=self.retry_after_s,
            )
        if self.result == "UNSERVED":
            return Overloaded(
                "No worker is there to answer calls at the moment; nothing was charged.",
                retry_after=self.retry_after_s,
            )
        if self.result == "DRAINED":
            return Draining(
                "The operators have drained the fleet: no new calls are begun until they resume "
                "it. Nothing was charged.",
                retry_after=self.retry_after_s,
            )
        if self.result == "KEY_LIMIT" and self.standing is not None:
            return over_limit(self.standing)
        return None

    def ensure_taken(self) -> None:
        """Raises `Overloaded`, `Draining` (503) or `RateLimited` (429) for a job not taken."""
        if (refusal := self.refusal) is not None:
            raise refusal


def over_limit(standing: Standing) -> RateLimited:
    """The refusal of a call that its key's limits do not admit; it says when they will."""
    limits = standing.limits
    allowed = {
        "requests": f"make {counted(limits.requests_per_minute, 'request')} a minute",
        "tokens": f"use {counted(limits.tokens_per_minute, 'token')} a minute",
        "calls": f"have {counted(limits.concurrent_calls, 'call')} at a time",
    }
    return RateLimited(
        f"This key may {allowed[standing.refused or 'requests']}; nothing was charged.",
        retry_after=standing.wait_us / 1_000_000,
        limit=standing.refused,
    )


def retry_after_s(
    result: Result, depth: int, in_lane: int, lanes: int, per_second: float, limits: QueueLimits
) -> int:
    """Whole seconds, 1 to 60, until there should be room again, at the rate of late.

    Room is when a tenth of what may wait, or of what does wait, has gone: of the lane, which
    gets its share of the rate, or of all. Nobody claims: as long as we ever say.
    """
    if result == "UNSERVED":
        return UNSERVED_RETRY_S
    if result == "DRAINED":
        return DRAINED_RETRY_S
    if result == "TENANT_BUSY":
        waiting, most, rate = in_lane, limits.in_lane, per_second / max(1, lanes)
    else:
        waiting, most, rate = depth, limits.depth, per_second
    to_go = max(1.0, waiting / 10, waiting - most * 0.9)
    return 60 if rate <= 0 else max(1, min(60, math.ceil(to_go / rate)))


@dataclass(frozen=True, slots=True)
class Envelope:
    """All that a worker needs to run one inference; `body` is the client's body, untouched.

    `reply_to` is the pub/sub channel of the ingress that holds the client. `caller` holds
    `tenant_id`, `agent_id` and the policy that applies. `accepted_at` is in seconds since
    the epoch. `headers` are the few client headers that a provider needs, or that say a wish.
    `kept` says that the call is durable in Postgres, and that its result has to be kept there.
    `model` is the model or routing target asked for, by its canonical name. `tried` counts the
    attempts that were made before the call was replayed from a dead letter. `attribution` says
    which session and which of the client's own agents it is for, where the client said so. `quote`
    is the quote that it is served by (`HeldQuote` as JSON).
    """

    inference_id: UUID
    receipt_id: UUID
    dialect: Dialect
    reply_to: str
    caller: Mapping[str, Any]
    accepted_at: float
    trace_id: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False
    model: str = ""
    tried: int = 0
    attribution: Mapping[str, str] = field(default_factory=dict)
    quote: Mapping[str, Any] | None = field(default=None, repr=False)

    def pack(self) -> bytes:
        """One JSON line about the call, then the body as it came: the body is never re-encoded."""
        head = {
            "inference_id": str(self.inference_id),
            "receipt_id": str(self.receipt_id),
            "dialect": self.dialect.value,
            "reply_to": self.reply_to,
            "caller": self.caller,
            "accepted_at": self.accepted_at,
            "trace_id": self.trace_id,
            "headers": self.headers,
            "model": self.model,
        }
        if self.kept:
            head["kept"] = True
        if self.tried:
            head["tried"] = self.tried
        if self.attribution:
            head["attribution"] = self.attribution
        if self.quote is not None:
            head["quote"] = self.quote
        return orjson.dumps(head) + b"\n" + self.body

    @classmethod
    def unpack(cls, packed: bytes) -> "Envelope":
        head, _, body = packed.partition(b"\n")
        fields = orjson.loads(head)
        return cls(
            inference_id=UUID(fields["inference_id"]),
            receipt_id=UUID(fields["receipt_id"]),
            dialect=Dialect(fields["dialect"]),
            reply_to=fields["reply_to"],
            caller=fields["caller"],
            accepted_at=fields["accepted_at"],
            trace_id=fields["trace_id"],
            headers=fields["headers"],
            kept=fields.get("kept", False),
            model=fields.get("model", ""),
            tried=fields.get("tried", 0),
            attribution=fields.get("attribution", {}),
            quote=fields.get("quote"),
            body=body,
        )


def serialize_job(job: Mapping[str, Any]) -> bytes:
    """arq's serializer on both sides: JSON, never pickle."""
    return orjson.dumps(job)


def deserialize_job(packed: bytes) -> dict[str, Any]:
    job: dict[str, Any] = orjson.loads(packed)
    return job


def redis_settings(url: str) -> RedisSettings:
    """arq's settings for a URL, patient with a store that is away for a while."""
    settings = RedisSettings.from_dsn(url)
    settings.conn_retries = 60
    settings.conn_retry_delay = 1
    settings.retry_on_timeout = True
    settings.max_connections = None
    return settings


class InferenceQueue:
    """The end of the queue where jobs are put in."""

    def __init__(self, redis: Redis, limits: QueueLimits | None = None) -> None:
        self._redis = redis
        self._limits = limits or QueueLimits()
        self._keys = QueueKeys(INFERENCE_QUEUE)
        self._enqueue: AsyncScript = redis.register_script(ENQUEUE)
        self._stop: AsyncScript = redis.register_script(STOP)
        self._give_up: AsyncScript = redis.register_script(GIVE_UP)
        self._admit: AsyncScript = redis.register_script(ADMIT_ALONE)

    async def enqueue(
        self,
        envelope: Envelope,
        priority: Priority = Priority.INTERACTIVE,
        *,
        attempts: int = 0,
        limit: bool = True,
        admission: Admission | None = None,
        age_s: float = 0.0,
    ) -> Queued:
        """Queue one inference at the end of its tenant's lane, in one round trip.

        `attempts` have been made already: claims count on from there. `limit=False` is for
        what was accepted before and may not be refused any more, `age_s` seconds ago: the time
        until its deadline runs by the store's clock, as the hosts' own may differ. `admission` is
        what the call asks of its key's limits, where the key has any.
        """
        job_id = str(envelope.inference_id)
        limits = self._limits
        args: list[str | bytes | int] = [
            job_id,
            job_of(envelope),
            envelope.pack(),
            JOB_TTL_MS,
            f"{int(priority)}:{envelope.caller['tenant_id']}",
            attempts,
            int(limit),
            limits.depth,
            int(limits.age_s * 1_000_000),
            limits.in_lane,
            int(UNSERVED_AFTER_S * 1_000_000),
            int(age_s * 1_000_000),
        ]
        if admission is not None:
            args.append(admission.pack())
        answer = await self._enqueue(keys=[self._keys.queue, self._keys.bell], args=args)
        standing = None
        if admission is not None and isinstance(answer[-1], list):
            standing = Standing.read(admission.limits, answer.pop())
        result, depth, oldest_age_s = answer[0].decode(), answer[1], answer[2] / 1_000_000
        if len(answer) == 3:
            return Queued(result, depth, oldest_age_s, standing=standing)
        in_lane, lanes, per_second = answer[3], answer[4], answer[5] / 1000
        wait_s = retry_after_s(result, depth, in_lane, lanes, per_second, limits)
        return Queued(result, depth, oldest_age_s, wait_s)

    async def admit(self, admission: Admission) -> Standing:
        """Count a request that is no call against its key's limits; one round trip.

        Raises `RateLimited` where they do not admit it.
        """
        # its field of limits needs a job's key, which nobody else has and which goes at once
        args = [str(mint_id()), admission.pack()]
        standing = Standing.read(
            admission.limits, await self._admit(keys=[self._keys.queue], args=args)
        )
        if standing.refused:
            raise over_limit(standing)
        return standing

    async def envelope(self, inference_id: UUID) -> Envelope | None:
        """What the job of this id was enqueued with; None if there is no such job."""
        packed: bytes | None = await self._redis.get(self._keys.payload(str(inference_id)))
        return Envelope.unpack(packed) if packed is not None else None

    async def stop(self, inference_id: UUID) -> None:
        """Note at its job, if there is one, that it shall stop: whoever claims it next knows."""
        await self._stop(keys=[self._keys.queue], args=[str(inference_id)])

    async def give_up(self, ids: Sequence[UUID]) -> list[GivenUp]:
        """Of calls that have waited for too long, those that nobody has begun never will be.

        Whoever claims one of them later only writes down that it expired. One round trip.
        """
        said = await self._give_up(keys=[self._keys.queue], args=[str(each) for each in ids])
        return [each.decode() for each in said]

    async def holding(self, ids: Sequence[UUID]) -> set[UUID]:
        """Which of these have a job, waiting or in work; one round trip."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for inference_id in ids:
                pipe.exists(self._keys.job(str(inference_id)))
            held = await pipe.execute()
        return {inference_id for inference_id, there in zip(ids, held, strict=True) if there}


def job_of(envelope: Envelope) -> bytes:
    """The job in arq's format: which function, with which arguments, enqueued when (ms)."""
    return serialize_job(
        {
            "t": None,
            "f": RUN_INFERENCE,
            "a": [str(envelope.inference_id)],
            "k": {},
            "et": int(envelope.accepted_at * 1000),
        }
    )
