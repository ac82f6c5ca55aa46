"""What thresholds are held against, in Postgres; and what the books worker sees of spending, for
every ingress to show: there no tenant is named."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson
from redis.asyncio import Redis
from sqlalchemy import BigInteger, Boolean, Numeric, Text, text, true
from sqlmodel import Field, SQLModel

from shared.models import moment, number

SPENDING_KEY = "ainfera:spending"
# a worker that is gone says nothing, rather than what was true once
SAID_FOR_S = 10


class KillswitchWindowRow(SQLModel, table=True):
    """One row: between which moments `KillswitchSpentRow.settled_usd` is counted, and the moment up
    to which it can be once all transactions with numbers below `next_xid` are over."""

    __tablename__ = "killswitch_window"

    single: bool = Field(
        primary_key=True, sa_type=Boolean, sa_column_kwargs={"server_default": true()}
    )
    counted_from: datetime = moment()
    counted_to: datetime = moment()
    next_to: datetime | None = moment(optional=True)
    next_xid: int | None = Field(default=None, sa_type=BigInteger)


class KillswitchSpentRow(SQLModel, table=True):
    """What a scope settled while it was counted; and what it settled in a window of so many seconds
    and holds, at most. None is not known. Whoever holds money where there is a threshold locks it.
    """

    __tablename__ = "killswitch_spent"

    scope: str = Field(primary_key=True, sa_type=Text)
    settled_usd: Decimal = Field(
        default=Decimal(0), sa_type=Numeric, sa_column_kwargs={"server_default": text("0")}
    )
    at_most_usd: Decimal | None = number()
    at_most_window_s: int | None = None


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
