"""`fleet corrections`: take a transfer back by another one, and see what was taken back."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any
from uuid import UUID

import typer

from shared.domain.ledger import CorrectionOutcome
from shared.ids import mint_id
from shared.models import TransferRow
from shared.operators import this_operator
from workers.commands.terminal import (
    AsJson,
    NeededReason,
    Yes,
    ask_first,
    fail,
    run,
    say_json,
    show_rows,
    stores,
)
from workers.corrections import Corrected, correct_transfer, list_corrections
from workers.development import say

corrections = typer.Typer(
    no_args_is_help=True, help="Money that was moved by mistake: moved back, never edited."
)

Dollars = Annotated[
    str | None, typer.Option("--amount", metavar="USD", help="How much; without it, all of it.")
]
Id = Annotated[
    UUID | None, typer.Option("--id", help="The correction's own id: given twice, made once.")
]
REFUSALS = {
    CorrectionOutcome.TRANSFER_UNKNOWN: "There is no such transfer.",
    CorrectionOutcome.EXCEEDS_TRANSFER: "No more than {remaining} USD of it can be taken back.",
    CorrectionOutcome.INSUFFICIENT_FUNDS: "The wallet has not {amount} USD available any more: its "
    "balance is {balance} USD, less what calls in flight hold.",
    CorrectionOutcome.EXISTS_WITH_DIFFERENT_AMOUNT: "Another correction has this id.",
}


@corrections.command("make")
def make_command(
    transfer: Annotated[UUID, typer.Argument(help="The transfer's id, as the ledger shows it.")],
    reason: NeededReason,
    amount: Dollars = None,
    id: Id = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take a transfer back, wholly or in part, by one that goes its way back.

    All corrections of a transfer together never take back more than it moved, and none takes from
    a wallet what it has not available. A correction that was a mistake is corrected itself.

    Example: fleet corrections make 0199… --amount 0.25 --reason "billed twice by the vendor"
    """
    wanted = dollars(amount)
    ask_first(f"Take back {amount or 'what is left'} of the transfer {transfer}?", yes)
    done = run(made(id or mint_id(), transfer, wanted, reason))
    if done.outcome in REFUSALS:
        fail(refusal(done))
    if as_json:
        say_json(as_told(done))
        return
    state = (
        "was taken back" if done.outcome is CorrectionOutcome.CREATED else "was taken back before"
    )
    say(f"{text_of(done.amount)} USD of {transfer} {state}, by the transfer {done.id}.")


@corrections.command("list")
def list_command(
    tenant: Annotated[UUID | None, typer.Option(help="Only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List what was taken back, the newest first."""
    found = [row_json(row) for row in run(listed(tenant, limit))]
    if as_json:
        say_json(found)
        return
    names = ("created_at", "amount_usd", "corrects", "id", "tenant_id", "reason")
    headings = ("at", "amount", "corrects", "by", "tenant", "reason")
    show_rows(headings, [[each[name] or "" for name in names] for each in found])


def refusal(done: Corrected) -> str:
    """Why a correction was not made."""
    if done.taken_back_by:
        by = ", ".join(map(str, done.taken_back_by))
        noun = "transfer" if len(done.taken_back_by) == 1 else "transfers"
        return f"All of it was taken back already, by the {noun} {by}."
    told = {"amount": done.amount, "remaining": done.remaining, "balance": done.balance}
    amounts = {name: text_of(amount) for name, amount in told.items()}
    return REFUSALS[done.outcome].format(**amounts)


async def made(id: UUID, transfer: UUID, amount: Decimal | None, reason: str) -> Corrected:
    async with stores() as opened, opened.db.everyone() as session:
        done = await correct_transfer(session, id, transfer, amount, reason, this_operator())
        await session.commit()
        return done


async def listed(tenant: UUID | None, limit: int) -> list[TransferRow]:
    async with stores() as opened, opened.db.everyone() as session:
        return list(await list_corrections(session, tenant, limit))


def dollars(written: str | None) -> Decimal | None:
    """An amount above zero, nine places at most. Raises `typer.BadParameter`."""
    if written is None:
        return None
    try:
        amount = Decimal(written)
    except InvalidOperation:
        raise typer.BadParameter(f"{written!r} is no amount; write 0.25.") from None
    if not amount.is_finite() or amount <= 0 or amount != amount.quantize(Decimal("1e-9")):
        raise typer.BadParameter("An amount is above zero and has nine places at most.")
    return amount


def as_told(done: Corrected) -> dict[str, Any]:
    return {
        "result": done.outcome.value,
        "id": str(done.id),
        "amount_usd": text_of(done.amount),
        "remaining_usd": text_of(done.remaining),
        "balance_usd": text_of(done.balance),
    }


def row_json(row: TransferRow) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "created_at": row.created_at.isoformat(),
        "tenant_id": str(row.tenant_id),
        "corrects": str(row.corrects),
        "amount_usd": text_of(row.amount),
        "debit_account": str(row.debit_account),
        "credit_account": str(row.credit_account),
        "inference_id": row.inference_id and str(row.inference_id),
        "reason": row.memo,
    }


def text_of(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"
