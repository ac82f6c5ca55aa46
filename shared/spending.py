"""What the books worker sees of spending, for every ingress to show; no tenant is named."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson
from redis.asyncio import Redis

SPENDING_KEY = "ainfera:spending"
# a worker that is gone says nothing, rather than what was true once
SAID_FOR_S = 10


@dataclass(frozen=True, slots=True)
class Spending:
    """Dollars in the window of the whole system, its threshold (None: none), and the largest share
    of its threshold that any tenant has spent."""

    spent_usd: Decimal
    threshold_usd: Decimal | None
    closest_tenant: Decimal


async def tell_spending(redis: Redis, seen: Spending) -> None:
    threshold = seen.threshold_usd
    told = orjson.dumps(
        {
            "spent_usd": f"{seen.spent_usd:f}",
            "threshold_usd": None if threshold is None else f"{threshold:f}",
            "closest_tenant": f"{seen.closest_tenant:f}",
        }
    )
    await redis.set(SPENDING_KEY, told, ex=SAID_FOR_S)


async def hear_spending(redis: Redis) -> Spending | None:
    """What was said last; None where nobody watches, or has said anything of late."""
    told = await redis.get(SPENDING_KEY)
    if told is None:
        return None
    fields: dict[str, Any] = orjson.loads(told)
    threshold = fields["threshold_usd"]
    return Spending(
        Decimal(fields["spent_usd"]),
        None if threshold is None else Decimal(threshold),
        Decimal(fields["closest_tenant"]),
    )
