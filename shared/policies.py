"""The versions of the routing policy as they are stored, and which of them is everybody's default.

A version does not change once it is there. Publishing makes it active; the history of that is
append-only. Whoever changes something here tells the processes of it: `tell_policies_changed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import Boolean, Index, Integer, Text, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col

from shared.control import POLICIES, give_order
from shared.domain.policy_version import PolicyVersion, Publication, rollback_target
from shared.models import document, moment
from shared.operators import record_act

PREFERENCE = "preference"
# publications are made one after the other; an arbitrary number, ours alone
_PUBLISHING = text("SELECT pg_advisory_xact_lock(4711011)")


class PolicyVersionRow(SQLModel, table=True):
    """A version; immutable. `document` is `PolicyVersion.to_json()`."""

    __tablename__ = "policy_versions"

    version: str = Field(primary_key=True, sa_type=Text)
    document: dict[str, Any] = document()
    document_hash: str = Field(sa_type=Text)
    created_at: datetime = moment()
    created_by: str = Field(sa_type=Text)


class PolicyPublicationRow(SQLModel, table=True):
    """Append-only: `version` is the default of all from `at` on, after `before`."""

    __tablename__ = "policy_publications"
    __table_args__ = (Index("policy_publications_version_idx", "version"),)

    seq: int = Field(sa_type=Integer, primary_key=True, sa_column_kwargs={"autoincrement": False})
    version: str = Field(sa_type=Text, foreign_key="policy_versions.version")
    before: str | None = Field(
        default=None, sa_type=Text, foreign_key="policy_versions.version", nullable=True
    )
    act: str = Field(sa_type=Text)
    at: datetime = moment()
    actor: str = Field(sa_type=Text)
    reason: str = Field(default="", sa_type=Text, sa_column_kwargs={"server_default": ""})


class RoutingGateRow(SQLModel, table=True):
    """A gate as an operator set it; without a row it is as the environment says."""

    __tablename__ = "routing_gates"

    name: str = Field(primary_key=True, sa_type=Text)
    live: bool = Field(sa_type=Boolean)
    set_at: datetime = moment()
    set_by: str = Field(sa_type=Text)
    reason: str = Field(default="", sa_type=Text, sa_column_kwargs={"server_default": ""})


class PolicyRefused(ValueError):
    """Why a version is not stored, or not published; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication changed; nothing, where the version was active already."""

    version: str
    before: str
    changed: bool


async def known_versions(session: AsyncSession) -> dict[str, PolicyVersion]:
    """Every version by its name, the oldest first."""
    query = select(PolicyVersionRow).order_by(
        col(PolicyVersionRow.created_at), col(PolicyVersionRow.version)
    )
    rows = await session.scalars(query)
    return {row.version: PolicyVersion.from_json(row.document) for row in rows}


async def publications(session: AsyncSession) -> Sequence[PolicyPublicationRow]:
    """The whole history, from its beginning; it is never empty."""
    query = select(PolicyPublicationRow).order_by(col(PolicyPublicationRow.seq))
    return (await session.scalars(query)).all()


async def active_version(session: AsyncSession) -> str:
    """The default of all who name no version."""
    query = select(col(PolicyPublicationRow.version))
    query = query.order_by(col(PolicyPublicationRow.seq).desc()).limit(1)
    return str((await session.execute(query)).scalar_one())


async def store_version(session: AsyncSession, version: PolicyVersion, actor: str) -> bool:
    """Make a version known; False if it is. Raises `PolicyRefused` if its name has other content.

    The caller commits.
    """
    adding = insert(PolicyVersionRow).values(
        version=version.version,
        document=version.to_json(),
        document_hash=version.hash,
        created_by=actor,
    )
    adding = adding.on_conflict_do_nothing()
    if await session.scalar(adding.returning(col(PolicyVersionRow.version))) is not None:
        await record_act(session, "policy.add", version.version, actor=actor, hash=version.hash)
        return True
    stored = await session.get(PolicyVersionRow, version.version)
    if stored is None or stored.document_hash != version.hash:
        raise PolicyRefused(
            f"There is a version {version.version} with other content, and versions do not change:"
            " give this one another name."
        )
    return False


async def publish(
    session: AsyncSession, version: str, reason: str, actor: str, act: str = "publish"
) -> Published:
    """Make a known version the default of all. The caller commits, and tells the processes.

    Raises `PolicyRefused` for a version that is not known.
    """
    await session.execute(_PUBLISHING)
    if await session.get(PolicyVersionRow, version) is None:
        raise PolicyRefused(f"There is no version {version}; `fleet policy list` has them.")
    history = await publications(session)
    before = history[-1].version
    if before == version:
        return Published(version, before, changed=False)
    seq = history[-1].seq + 1
    values = {"seq": seq, "version": version, "before": before, "act": act}
    await session.execute(insert(PolicyPublicationRow).values(**values, actor=actor, reason=reason))
    detail = {"before": before, "seq": seq, "reason": reason}
    await record_act(session, f"policy.{act}", version, actor=actor, **detail)
    return Published(version, before, changed=True)


async def rollback(
    session: AsyncSession, version: str | None, reason: str, actor: str
) -> Published:
    """Make an earlier version the default again: the one before, or one that was ever active.

    Raises `PolicyRefused`. The caller commits, and tells the processes.
    """
    await session.execute(_PUBLISHING)
    history = await publications(session)
    if version is None:
        version = rollback_target(Publication(row.version, row.before, row.act) for row in history)
        if version is None:
            raise PolicyRefused("There is nothing to go back to: no other version was before it.")
    if version not in {row.version for row in history}:
        raise PolicyRefused(f"{version} was never active; publish it if it shall be.")
    return await publish(session, version, reason, actor, act="rollback")


async def preference_gate(session: AsyncSession) -> RoutingGateRow | None:
    """The gate of the preference dial as an operator set it; None where nobody has."""
    return await session.get(RoutingGateRow, PREFERENCE)


async def set_preference_gate(session: AsyncSession, live: bool, reason: str, actor: str) -> bool:
    """Open or close the gate; False if an operator had it so. The caller commits, and tells."""
    values = {"live": live, "set_by": actor, "reason": reason}
    setting = insert(RoutingGateRow).values(name=PREFERENCE, **values)
    setting = setting.on_conflict_do_update(
        index_elements=["name"],
        set_={**values, "set_at": func.now()},
        where=col(RoutingGateRow.live).is_distinct_from(live),
    )
    done = await session.scalar(setting.returning(col(RoutingGateRow.name)))
    if done is not None:
        act = f"preference.{'on' if live else 'off'}"
        await record_act(session, act, PREFERENCE, actor=actor, reason=reason)
    return done is not None


async def tell_policies_changed(redis: Redis) -> None:
    """Every process reads versions and gates again, within a second."""
    await give_order(redis, POLICIES)
