"""Wallets: what an agent has, and putting money in where that is allowed."""

from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import Field
from sqlalchemy import RowMapping, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress.agents import append_audit
from ingress.auth import Caller, current_caller, is_internal, not_found, own_agent, parse_id
from ingress.deps import Deps, everyone, get_deps, session
from ingress.openapi import INTERNAL_OR_OWN_KEY, view
from ingress.spreadsheet import Format, stream_csv, wants_csv
from ingress.wire import Body, usd
from shared.domain.audit import EventType, draft
from shared.domain.ledger import TOPUPS_ACCOUNT, TransferKind, TransferOutcome
from shared.domain.spreadsheet import Cell
from shared.errors import Forbidden, IdempotencyConflict
from shared.ids import mint_id
from shared.models import AccountRow, AgentRow

router = APIRouter()

MOST_WALLETS = 500
EXPORT_HEADER = ("agent_id", "name", "balance_usd", "available_usd", "held_usd")
LARGEST_TOPUP = 100_000
TOPUP_PATH = "/v1/wallets/topup"


class Topup(Body):
    agent_id: str
    amount_usd: Annotated[Decimal, Field(gt=0, le=LARGEST_TOPUP, decimal_places=9)]


async def topup_caller(request: Request) -> Caller | None:
    """Who puts money in: None is the operator.

    Raises `InvalidApiKey` without either key, `Forbidden` where self top-up is off.
    """
    if is_internal(request):
        return None
    caller = await current_caller(request)
    if not get_deps(request).settings.self_topup:
        raise Forbidden("Self top-up is off here; money comes in through a payment rail.")
    return caller


@router.post(TOPUP_PATH, openapi_extra=INTERNAL_OR_OWN_KEY)
async def topup(
    body: Topup,
    request: Request,
    caller: Annotated[Caller | None, Depends(topup_caller)],
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> dict[str, Any]:
    """Move money into a wallet; once per `Idempotency-Key`, if there is one."""
    db, wanted = get_deps(request).db, parse_id(body.agent_id)
    if caller is not None:
        async with session(db, caller.tenant) as s:
            await own_agent(s, body.agent_id, caller)
    async with everyone(db) as s:  # money comes from an account of the system
        agent = await s.get(AgentRow, wanted)
        if agent is None:
            not_found()
        transfer_id = _transfer_id(agent.tenant_id, idempotency_key)
        moved = await _transfer(s, transfer_id, await wallet_of(s, agent.id), body.amount_usd)
        if moved["result"] == TransferOutcome.EXISTS_WITH_DIFFERENT_AMOUNT:
            raise IdempotencyConflict("This Idempotency-Key was used for another top-up.")
        if moved["result"] == TransferOutcome.CREATED:
            data = {
                "amount_usd": usd(body.amount_usd),
                "balance_usd": usd(moved["balance"]),
                "kind": TransferKind.TOPUP.value,
                "transfer_id": str(transfer_id),
            }
            event = draft(EventType.WALLET_TOPPED_UP, str(agent.id), data)
            await append_audit(s, agent, [event])
        await s.commit()
    return {"agent_id": str(agent.id), "new_balance_usd": usd(moved["balance"])}


def _transfer_id(tenant_id: UUID, idempotency_key: str | None) -> UUID:
    """The same key of the same tenant names the same transfer, which can only happen once."""
    if idempotency_key is None:
        return mint_id()
    return uuid5(NAMESPACE_URL, f"{tenant_id} {TOPUP_PATH} {idempotency_key}")


async def _transfer(
    s: AsyncSession, transfer_id: UUID, wallet: AccountRow, amount: Decimal
) -> RowMapping:
    moved = await s.execute(
        text("SELECT * FROM transfer_funds(:id, :debit, :credit, :amount, :kind, :memo)"),
        {
            "id": transfer_id,
            "debit": TOPUPS_ACCOUNT,
            "credit": wallet.id,
            "amount": amount,
            "kind": TransferKind.TOPUP.value,
            "memo": "top-up",
        },
    )
    return moved.mappings().one()


async def wallet_of(s: AsyncSession, agent_id: UUID) -> AccountRow:
    query = select(AccountRow).where(col(AccountRow.agent_id) == agent_id)
    return (await s.scalars(query)).one()


@router.get("/v1/wallets", openapi_extra=view("Wallets", csv=True))
async def list_wallets(
    request: Request,
    caller: Annotated[Caller, Depends(current_caller)],
    limit: Annotated[int, Query(ge=1)] = 100,
    before: UUID | None = None,
    format: Format = None,
) -> Any:
    """The wallets of the tenant's agents, newest agent first, at most 500; `before` is an agent.

    As CSV it is all of them, however many.
    """
    deps = get_deps(request)
    if wants_csv(request, format):
        return stream_csv("wallets", EXPORT_HEADER, _export(deps, caller, before))
    most = min(limit, MOST_WALLETS)
    async with session(deps.db, caller.tenant) as s:
        rows = await _wallets(s, caller, before, most + 1)
    page = [{**_purse(wallet), "name": agent.name} for wallet, agent in rows[:most]]
    more = len(rows) > most
    return {
        "wallets": page,
        "has_more": more,
        "next_cursor": page[-1]["agent_id"] if more else None,
    }


async def _wallets(
    s: AsyncSession, caller: Caller, before: UUID | None, limit: int
) -> list[tuple[AccountRow, AgentRow]]:
    query = (
        select(AccountRow, AgentRow)
        .join(AgentRow, col(AgentRow.id) == col(AccountRow.agent_id))
        .where(col(AgentRow.tenant_id) == caller.tenant)
        .order_by(col(AgentRow.id).desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(col(AgentRow.id) < before)
    if caller.bound_to is not None:
        query = query.where(col(AgentRow.id) == UUID(caller.bound_to))
    return [(wallet, agent) for wallet, agent in (await s.execute(query)).all()]


async def _export(
    deps: Deps, caller: Caller, before: UUID | None
) -> AsyncIterator[Sequence[Sequence[Cell]]]:
    """The wallets page by page, each from a session of its own."""
    full = True
    while full:
        async with session(deps.db, caller.tenant) as s:
            rows = await _wallets(s, caller, before, MOST_WALLETS)
        full = len(rows) == MOST_WALLETS
        if rows:
            before = rows[-1][1].id
            yield [_cells(wallet, agent) for wallet, agent in rows]


def _cells(wallet: AccountRow, agent: AgentRow) -> tuple[Cell, ...]:
    amounts = wallet.balance, wallet.balance - wallet.held, wallet.held
    return (str(agent.id), agent.name, *(Decimal(usd(amount)) for amount in amounts))


@router.get("/v1/wallets/{agent_id}", openapi_extra=view("Wallet", of_one=True))
async def read_wallet(
    agent_id: str, request: Request, caller: Annotated[Caller, Depends(current_caller)]
) -> dict[str, Any]:
    """What the agent has, what running calls hold of it, and what is free."""
    async with session(get_deps(request).db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
        wallet = await wallet_of(s, agent.id)
    return _purse(wallet)


def _purse(wallet: AccountRow) -> dict[str, Any]:
    return {
        "agent_id": str(wallet.agent_id),
        "balance_usd": usd(wallet.balance),
        "available_usd": usd(wallet.balance - wallet.held),
        "held_usd": usd(wallet.held),
    }
