"""The switch that stops spending, for one tenant or for all: kept in Postgres, heard everywhere.

Postgres holds no money for a call while its scope is engaged, and engages a scope where a hold
would pass its threshold: once it is engaged no call begins. Every process that lets calls in, or
runs them, keeps the engaged scopes in memory as well, so that most are refused without a word to
Postgres. An order over the control channel changes them within a second; what was engaged is read
again whenever an order came, or may have been missed.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Index, Text, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col

from shared.config import Settings
from shared.control import KILLSWITCH
from shared.db import Database
from shared.domain.spending import ALL, Thresholds
from shared.errors import KillswitchEngaged
from shared.metrics import KILLSWITCH_ENGAGED
from shared.models import NEW_ID, moment, money, number
from shared.operators import record_act
from shared.rereading import Rereading

_ENGAGED = text("released_at IS NULL")
_NO_CALL_BEGINS = text("SELECT let_no_call_begin()")
_ENGAGE = text("SELECT engage_killswitch(:scope, :reason, :actor, :spent, :threshold)")
_RELEASE = text("SELECT release_killswitch(:scope, :actor)")


class KillswitchRow(SQLModel, table=True):
    """One engagement of a scope, which is `all` or a tenant's id; at most one is not released.

    `spent_usd` and `threshold_usd` are known where a threshold engaged it.
    """

    __tablename__ = "killswitches"
    __table_args__ = (
        Index("killswitches_engaged_key", "scope", unique=True, postgresql_where=_ENGAGED),
    )

    id: UUID = Field(primary_key=True, sa_column_kwargs={"server_default": NEW_ID})
    scope: str = Field(sa_type=Text)
    engaged_at: datetime = moment()
    engaged_by: str = Field(sa_type=Text)
    reason: str = Field(default="", sa_type=Text, sa_column_kwargs={"server_default": ""})
    spent_usd: Decimal | None = number()
    threshold_usd: Decimal | None = money(optional=True)
    released_at: datetime | None = moment(optional=True)
    released_by: str | None = Field(default=None, sa_type=Text)


class KillswitchThresholdRow(SQLModel, table=True):
    """What an operator allows a scope to spend in the window; None is no threshold for it."""

    __tablename__ = "killswitch_thresholds"

    scope: str = Field(primary_key=True, sa_type=Text)
    threshold_usd: Decimal | None = money(optional=True)
    set_at: datetime = moment()
    set_by: str = Field(sa_type=Text)


class KillswitchCallRow(SQLModel, table=True):
    """A call that held money when a switch was engaged, or when it was released."""

    __tablename__ = "killswitch_calls"

    killswitch_id: UUID = Field(primary_key=True, foreign_key="killswitches.id")
    inference_id: UUID = Field(primary_key=True)
    tenant_id: UUID
    held_usd: Decimal = money()


async def engaged_switches(session: AsyncSession) -> list[KillswitchRow]:
    """What is engaged, oldest first."""
    query = select(KillswitchRow).where(col(KillswitchRow.released_at).is_(None))
    return list(await session.scalars(query.order_by(col(KillswitchRow.engaged_at))))


async def read_thresholds(session: AsyncSession, settings: Settings) -> dict[str, Any]:
    """What may be spent in the window before a switch engages by itself; amounts are Decimals."""
    rows = list(await session.scalars(select(KillswitchThresholdRow)))
    chosen = {row.scope: row.threshold_usd for row in rows}
    thresholds = Thresholds(settings.killswitch_system_usd, settings.killswitch_tenant_usd, chosen)
    return {
        "window_seconds": settings.killswitch_window_s,
        "system_usd": thresholds.of(ALL),
        "tenant_usd": thresholds.tenant,
        "chosen": [
            {"scope": row.scope, "threshold_usd": row.threshold_usd, "set_by": row.set_by}
            for row in rows
        ],
    }


def guard(settings: Settings) -> str:
    """The settings' thresholds as `open_inferences` and `enlarge_hold` take them."""
    system, tenant = settings.killswitch_system_usd, settings.killswitch_tenant_usd
    told = {
        "window_s": settings.killswitch_window_s,
        "system_usd": None if system is None else f"{system:f}",
        "tenant_usd": None if tenant is None else f"{tenant:f}",
    }
    return orjson.dumps(told).decode()


async def let_none_begin(session: AsyncSession) -> None:
    """Until the caller commits no call begins; all that did can be seen. A caller that is silent
    for five seconds is rolled back."""
    await session.execute(_NO_CALL_BEGINS)


async def engage(
    session: AsyncSession,
    scope: str,
    reason: str,
    actor: str,
    *,
    spent_usd: Decimal | None = None,
    threshold_usd: Decimal | None = None,
) -> bool:
    """Stop new calls of a scope; False if they are stopped already. The caller commits, at once:
    no call begins meanwhile. Each one either holds its money before, and is noted, or is refused.
    """
    await let_none_begin(session)
    bound = {"spent": spent_usd, "threshold": threshold_usd}
    told = {"scope": scope, "reason": reason, "actor": actor, **bound}
    return bool(await session.scalar(_ENGAGE, told))


async def release(session: AsyncSession, scope: str, reason: str, actor: str) -> bool:
    """Let calls of a scope in again; False if they were not stopped. The caller commits.

    What it spent until now counts for no threshold of this scope any more.
    """
    done = bool(await session.scalar(_RELEASE, {"scope": scope, "actor": actor}))
    if done:
        await record_act(session, "killswitch.release", scope, actor=actor, reason=reason)
    return done


class Killswitch:
    """The engaged scopes as this process knows them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._engaged: frozenset[str] = frozenset()
        self._rereading = Rereading("killswitch", self._read)

    async def start(self) -> None:
        """Read what is engaged; raises if Postgres does not answer."""
        await self._read()
        self._rereading.start()

    async def aclose(self) -> None:
        await self._rereading.aclose()

    def check(self, tenant_id: str) -> None:
        """Raises `KillswitchEngaged` if new calls of this tenant are stopped."""
        if self.stops(tenant_id):
            raise KillswitchEngaged

    def stops(self, tenant_id: str) -> bool:
        """Whether new calls of this tenant are stopped."""
        return bool(self._engaged) and (ALL in self._engaged or tenant_id in self._engaged)

    def obey(self, order: Mapping[str, Any]) -> None:
        """An order over the control channel; one to stop is obeyed before it is looked up."""
        if order["type"] != KILLSWITCH:
            return
        if order["engaged"]:
            self._keep(self._engaged | {order["scope"]})
        self._rereading.tell()

    def missed(self) -> None:
        """Orders may have been missed."""
        self._rereading.tell()

    def _keep(self, engaged: frozenset[str]) -> None:
        self._engaged = engaged
        KILLSWITCH_ENGAGED.set(len(engaged))

    async def _read(self) -> None:
        async with self._db.everyone() as session:
            found = frozenset(row.scope for row in await engaged_switches(session))
        # an order that came meanwhile may be newer than what was read
        if not self._rereading.is_stale:
            self._keep(found)
