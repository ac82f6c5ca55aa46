"""An agent's ledger: what moved in and out of its wallet, page by page or as one table."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress.auth import Caller, current_caller, not_found, own_agent
from ingress.deps import Deps, get_deps, session
from ingress.openapi import view
from ingress.spreadsheet import Format, stream_csv, wants_csv
from ingress.wallets import wallet_of
from ingress.wire import Moment, moment, usd
from shared.domain.ledger import TransferKind
from shared.domain.spreadsheet import Cell
from shared.models import LedgerEntryRow

router = APIRouter()

MOST_ENTRIES = 500
EXPORTED_AT_ONCE = 1_000
EXPORT_HEADER = (
    "id",
    "created_at",
    "kind",
    "amount_usd",
    "balance_after_usd",
    "inference_id",
    "memo",
)

_AT, _ID = col(LedgerEntryRow.created_at), col(LedgerEntryRow.transfer_id)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands in its ledger; what comes after it on a page is older."""

    at: datetime
    transfer_id: UUID


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are meant: `since` is within, `until` is not."""

    kinds: tuple[TransferKind, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


def entry_filter(
    kind: Annotated[list[TransferKind], Query()] = [],  # noqa: B006 - FastAPI copies a default
    since: Annotated[Moment | None, Query(description="UTC unless it says otherwise.")] = None,
    until: Annotated[Moment | None, Query(description="Not included.")] = None,
) -> Filter:
    """FastAPI dependency: the filters of a request."""
    return Filter(tuple(kind), since, until)


@router.get("/v1/ledger/{agent_id}", openapi_extra=view("Ledger", csv=True, of_one=True))
async def read_ledger(
    agent_id: str,
    request: Request,
    caller: Annotated[Caller, Depends(current_caller)],
    meant: Annotated[Filter, Depends(entry_filter)],
    limit: Annotated[int, Query(ge=1)] = 100,
    before: Annotated[UUID | None, Query(description="`next_cursor` of the last page.")] = None,
    format: Format = None,
) -> Any:
    """The wallet's entries, newest first, at most 500; money that left is negative.

    As CSV it is the whole of them, however many.
    """
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
        wallet = await wallet_of(s, agent.id)
        place = None if before is None else await _place(s, wallet.id, before)
        if wants_csv(request, format):
            pages = _export(deps, caller.tenant, wallet.id, meant, place)
            return stream_csv(f"ledger-{agent.id}", EXPORT_HEADER, pages)
        most = min(limit, MOST_ENTRIES)
        entries = await _entries(s, wallet.id, meant, place, most + 1)
    more = len(entries) > most
    return {
        "agent_id": str(agent.id),
        "balance_usd": usd(wallet.balance),
        "entries": [_entry(entry, agent.id) for entry in entries[:most]],
        "has_more": more,
        "next_cursor": str(entries[most - 1].transfer_id) if more else None,
    }


async def _place(s: AsyncSession, wallet_id: UUID, transfer_id: UUID) -> Place:
    """Raises `NotFound` for an entry of another wallet, as for one that is unknown."""
    mine = col(LedgerEntryRow.account_id) == wallet_id
    query = select(_AT).where(mine, _ID.in_([transfer_id]))
    at = await s.scalar(query)
    if at is None:
        not_found()
    return Place(at, transfer_id)


async def _entries(
    s: AsyncSession, wallet_id: UUID, meant: Filter, after: Place | None, limit: int
) -> Sequence[LedgerEntryRow]:
    query = select(LedgerEntryRow).where(col(LedgerEntryRow.account_id) == wallet_id)
    if meant.kinds:
        query = query.where(col(LedgerEntryRow.kind).in_(meant.kinds))
    if meant.since is not None:
        query = query.where(meant.since <= _AT)
    if meant.until is not None:
        query = query.where(meant.until > _AT)
    if after is not None:
        # the first condition is for the index, which knows nothing of ids
        query = query.where(after.at >= _AT, tuple_(_AT, _ID) < (after.at, after.transfer_id))
    return (await s.scalars(query.order_by(_AT.desc(), _ID.desc()).limit(limit))).all()


async def _export(
    deps: Deps, tenant: UUID, wallet_id: UUID, meant: Filter, after: Place | None
) -> AsyncIterator[Sequence[Sequence[Cell]]]:
    """The entries page by page, each from a session of its own.

    So a slow client holds neither a connection nor a transaction open; the ledger is append-only,
    so pages fit together all the same.
    """
    full = True
    while full:
        async with session(deps.db, tenant) as s:
            entries = await _entries(s, wallet_id, meant, after, EXPORTED_AT_ONCE)
        full = len(entries) == EXPORTED_AT_ONCE
        if entries:
            after = Place(entries[-1].created_at, entries[-1].transfer_id)
            yield [_cells(entry) for entry in entries]


def _cells(entry: LedgerEntryRow) -> tuple[Cell, ...]:
    return (
        str(entry.transfer_id),
        moment(entry.created_at),
        entry.kind,
        entry.amount,
        entry.balance_after,
        None if entry.inference_id is None else str(entry.inference_id),
        entry.memo,
    )


def _entry(entry: LedgerEntryRow, agent_id: UUID) -> dict[str, Any]:
    return {
        "id": str(entry.transfer_id),
        "agent_id": str(agent_id),
        "amount_usd": usd(entry.amount),
        "balance_after_usd": None if entry.balance_after is None else usd(entry.balance_after),
        "kind": entry.kind,
        "memo": entry.memo,
        "inference_id": None if entry.inference_id is None else str(entry.inference_id),
        "created_at": moment(entry.created_at),
    }
