"""The queue: what a job is called, what it carries, and the one call that enqueues it.

A job carries the inference id alone. The request travels beside it under a key of its own,
`ainfera:payload:<id>`, written in the same call and deleted when the job is finished, so
that no prompt ever stands in a job, a result or a log. The job's own format is arq's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson
from arq.connections import RedisSettings
from arq.constants import job_key_prefix
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared.domain.inference import Dialect

INFERENCE_QUEUE = "ainfera:inference"
BOOKS_QUEUE = "ainfera:books"
RUN_INFERENCE = "run_inference"

PAYLOAD_PREFIX = "ainfera:payload:"
BELL_SUFFIX = ":bell"
# a job nobody claimed for so long is of no use to its caller
PAYLOAD_TTL_MS = 24 * 60 * 60 * 1000

# One call: the job, its payload, its place in the queue by the store's own clock, the bell.
# The bell holds one ring at most; a worker that hears it claims until the queue is empty.
_ENQUEUE = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local time = redis.call('TIME')
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[4])
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
if redis.call('LLEN', KEYS[4]) == 0 then redis.call('LPUSH', KEYS[4], 1) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Envelope:
    """All that a worker needs to run one inference; `body` is the client's body, untouched.

    `reply_to` is the pub/sub channel of the ingress that holds the client. `caller` holds
    `tenant_id`, `agent_id` and the policy that applies. `accepted_at` is in seconds since
    the epoch. `headers` are the few client headers that a provider needs.
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
        }
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
    """The ingress's end of the queue."""

    def __init__(self, redis: Redis) -> None:
        self._enqueue: AsyncScript = redis.register_script(_ENQUEUE)

    async def enqueue(self, envelope: Envelope) -> bool:
        """Queue one inference, in one round trip; False if its id is queued already."""
        job_id = str(envelope.inference_id)
        job = serialize_job(
            {
                "t": None,
                "f": RUN_INFERENCE,
                "a": [job_id],
                "k": {},
                "et": int(envelope.accepted_at * 1000),
            }
        )
        keys = [
            INFERENCE_QUEUE,
            job_key_prefix + job_id,
            PAYLOAD_PREFIX + job_id,
            INFERENCE_QUEUE + BELL_SUFFIX,
        ]
        args: list[str | bytes | int] = [job_id, job, envelope.pack(), PAYLOAD_TTL_MS]
        return bool(await self._enqueue(keys=keys, args=args))
