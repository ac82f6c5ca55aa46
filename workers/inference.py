"""The story of one request, from its claim to its settlement.

    run_inference: claim -> parse -> plan -> hold -> ask -> settle -> tell the end

A later attempt at a call of which the client has heard words asks nobody: it settles and tells.
The end is told only after the settlement is durable. A provider is asked with no
transaction open. Whatever happens, exactly one settlement is written; the database, not the
queue, guards against a second.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy.exc import SQLAlchemyError

from shared.db import TRANSIENT
from shared.dead_letters import read_envelope
from shared.domain.dialects import DIALECTS
from shared.domain.dialects.wishes import hear_headers
from shared.domain.inference import Completed, Failed, Failure
from shared.errors import (
    AinferaError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    KillswitchEngaged,
    NotFound,
    Overloaded,
)
from shared.holding import CAPS, Held, out_of_funds, over_cap
from shared.log import bind_inference, bind_trace
from shared.queue import Envelope
from workers.answer import Answer
from workers.asking import Asking, ask, hold_covers
from workers.call import Call, Ending, Outcome
from workers.dead_letters import UNREADABLE, WORKERS_LOST, Cause, Remains, bury
from workers.deps import Deps
from workers.routing import Plan, plan_anew, plan_call
from workers.settle import FENCED, NotOurs, hold_item, settle
from workers.told import Told, broken_ending, plan_told, told_before

log = logging.getLogger(__name__)

# A job that took this many workers with it is not tried on another.
MAX_ATTEMPTS = 3

OPENED = frozenset({"OPENED", "EXISTS"})
TOO_DEAR = frozenset({*CAPS, "INSUFFICIENT_FUNDS", "KILLSWITCH"})


async def run_inference(ctx: Mapping[str, Any], inference_id: str) -> None:
    """The arq job: `ctx` holds our `deps` and what the claim brought (`workers.claims.Claim`)."""
    deps: Deps = ctx["deps"]
    payload: bytes | None = ctx["payload"]
    if payload is None:
        log.warning("payload_missing", extra={"inference_id": inference_id})
        return
    bind_inference(inference_id)
    remains = Remains(
        UUID(inference_id),
        ctx["job_try"],
        payload,
        handed_back=ctx.get("handed_back", frozenset()),
        late=ctx.get("late", False),
    )
    try:
        envelope = read_envelope(payload)
    except ValueError:
        await bury(remains, UNREADABLE, broken_inside(), deps)
        return
    bind_trace(envelope.trace_id)
    if envelope.tried:  # it died since; what was ordered for its replay stands at its new job
        deps.cancellations.forget(inference_id)
    if ctx.get("stop"):  # the order was given when perhaps nobody was there to hear it
        deps.cancellations.cancel(inference_id)
    remains = replace(remains, envelope=envelope)
    if len(remains.lost) >= MAX_ATTEMPTS:  # not parsed: that may be what kills
        remains.tell(set_aside(), deps)
        await bury(remains, WORKERS_LOST, set_aside(), deps)
        return
    await attempt_once(remains, envelope, ctx, deps)


async def attempt_once(
    remains: Remains, envelope: Envelope, ctx: Mapping[str, Any], deps: Deps
) -> None:
    """One attempt at a call. A bug that comes before any provider was asked buries it."""
    call = None
    try:
        call = take_up(envelope, remains.attempt, ctx.get("age_s", 0.0), deps)
        call.late, call.hold_on = remains.late, ctx.get("hold_on")
        if envelope.kept and not await take_kept(call, deps):
            return
        await carry_out(call, deps)
    except AinferaError as refused:
        if not envelope.kept:  # of a kept call nothing is told: it is driven again
            tell_failure(call, remains, refused.failure(), deps)
    except Exception as bug:  # the client must not wait for an answer that will never come
        asked = call is not None and call.reached
        if not (asked and envelope.kept):
            tell_failure(call, remains, broken_inside(), deps)
        if not asked:
            await bury(remains, Cause.of(bug), broken_inside(), deps)
        raise
    finally:
        if call is not None and call.tokens is not None:
            ctx.get("used", {})["tokens"] = call.tokens


def tell_failure(call: Call | None, remains: Remains, failure: Failure, deps: Deps) -> None:
    """After whatever the attempt has told already, or as its first and only word."""
    if call is not None:
        call.answer.fail(failure)
    else:
        remains.tell(failure, deps)


def take_up(envelope: Envelope, attempt: int, age_s: float, deps: Deps) -> Call:
    """The body parsed by the same pure functions that the ingress used."""
    parsed = DIALECTS[envelope.dialect].parse_request(orjson.loads(envelope.body))
    request = hear_headers(parsed, envelope.headers)
    answer = Answer(deps.publisher, envelope, request, attempt)
    return Call(envelope, request, attempt, answer, claimed_at=deps.monotonic(), age_s=age_s)


async def take_kept(call: Call, deps: Deps) -> bool:
    """Claim a kept call in the database too; False if there is nothing (more) to do for it.

    There the attempts are counted that a loss of the queue forgets, and there stands an order to
    stop that was given while nobody ran the call. Raises `Overloaded` if the database is away.
    """
    try:
        cancelled = await deps.kept.take(call.envelope.inference_id, call.attempt)
    except (SQLAlchemyError, *TRANSIENT) as error:
        raise Overloaded("The database does not answer at the moment.") from error
    if cancelled is None:
        log.info("kept_call_not_ours", extra={"attempt": call.attempt})
        return False
    if cancelled:
        deps.cancellations.cancel(call.inference_id)
    return True


async def carry_out(call: Call, deps: Deps) -> None:
    """Plan, hold, ask, settle, tell: each step may end the call, none may leave it open."""
    told = await told_before(call, deps)
    if told is not None:
        await break_off(call, plan_told(told, call, deps), told, deps)
        return
    plan = plan_call(call, deps)
    refusal = refused_before_hold(call, plan, deps)
    if refusal is None:
        try:
            held = await deps.ledger.hold(hold_item(call, plan, deps))
            if plan.drawn and held.result in TOO_DEAR:
                # the dice know no cap and no wallet: nobody is refused a call for their sake
                plan = plan_anew(plan, deps)
                held = await deps.ledger.hold(hold_item(call, plan, deps))
        except Overloaded as away:
            if call.envelope.kept:  # accepted means kept: it runs once the database is back
                raise
            await give_up_hold(call, plan, away, deps)
            return
        if held.result == "SETTLED":
            call.answer.fail(already_over())
            return
        if held.result == "FENCED":  # a dead letter has it; who waited for it was told
            log.warning("call_is_dead", extra={"attempt": call.attempt})
            return
        if held.result == "KILLSWITCH":
            deps.killswitch.missed()  # Postgres knows of one that this process has not heard of
        refusal = refused_by_ledger(held, plan)
    await finish(call, plan, refusal or await ask_until_answered(call, plan, deps), deps)


async def finish(call: Call, plan: Plan, ending: Ending, deps: Deps) -> None:
    """Settle, then tell; nothing is told by an attempt that was overtaken."""
    try:
        completed = await settle(call, plan, ending, deps)
    except NotOurs as reason:
        log.warning("settlement_refused", extra={"reason": str(reason), "attempt": call.attempt})
        return
    call.tokens = ending.usage.limited
    tell_the_end(call, ending, completed)


async def break_off(call: Call, plan: Plan, told: Told, deps: Deps) -> None:
    """End an answer that another worker had begun: settle what was told, then tell the end."""
    call.reached = True
    call.answer.come_after(told.records)
    ending = broken_ending(told, call, plan, deps)
    try:
        await settle(call, plan, ending, deps)
    except NotOurs as reason:
        log.warning("settlement_refused", extra={"reason": str(reason), "attempt": call.attempt})
        if str(reason) != FENCED and not told.ended:
            call.answer.fail(already_over())
        return
    call.tokens = ending.usage.limited
    call.answer.fail(ending.failure_or_bug())


async def give_up_hold(call: Call, plan: Plan, away: Overloaded, deps: Deps) -> None:
    """The database did not answer, so the hold may or may not stand: tell, then close the call.

    The settlement waits for the database as long as it takes, and voids the hold if there is one.
    """
    call.answer.fail(away.failure())
    try:
        await settle(call, plan, Ending(Outcome.EXPIRED, failure=away.failure()), deps)
    except NotOurs as reason:
        log.warning("settlement_refused", extra={"reason": str(reason), "attempt": call.attempt})


def refused_before_hold(call: Call, plan: Plan, deps: Deps) -> Ending | None:
    """What ends a call before any money is touched."""
    settings = deps.settings
    patience_s = (
        settings.background_deadline_s if call.request.background else (settings.call_deadline_s)
    )
    if call.late or call.age_s > patience_s:
        late = DeadlineExceeded("The call waited in the queue for too long and was not started.")
        return Ending(Outcome.EXPIRED, failure=late.failure())
    if deps.killswitch.stops(call.tenant_id) or not_to_be_kept(call):
        return Ending(Outcome.REJECTED_CAP, failure=KillswitchEngaged().failure())
    return plan.refusal


def not_to_be_kept(call: Call) -> bool:
    """A call in the background that its ingress did not keep: the killswitch is engaged there."""
    return call.request.background and not call.envelope.kept


def refused_by_ledger(held: Held, plan: Plan) -> Ending | None:
    """The ledger's answer to the hold as an ending, or None where the money is held."""
    if held.result in OPENED:
        return None
    if held.result in CAPS:
        return Ending(Outcome.REJECTED_CAP, failure=over_cap(held, plan.hold_usd).failure())
    if held.result == "KILLSWITCH":
        return Ending(Outcome.REJECTED_CAP, failure=KillswitchEngaged().failure())
    if held.result == "INSUFFICIENT_FUNDS":
        error: AinferaError = out_of_funds(held, plan.hold_usd)
    else:
        error = NotFound("There is no such agent.")
    return Ending(Outcome.REJECTED_FUNDS, failure=error.failure())


async def ask_until_answered(call: Call, plan: Plan, deps: Deps) -> Ending:
    """Ask the chosen model, then the fallbacks in order, but never after the first word."""
    held_usd = plan.hold_usd
    call.reached = True
    for asked, candidate in enumerate(plan.candidates):
        if call.hold_on is not None:
            await call.hold_on()
        asking = Asking(call, plan, candidate, held_usd, deps)
        try:
            with deps.cancellations.watch(call.inference_id):
                last = await ask(asking, deps)
        except asyncio.CancelledError:
            if not deps.cancellations.was_cancelled(call.inference_id):
                raise
            current = asyncio.current_task()
            assert current is not None
            current.uncancel()
            return asking.ending(Outcome.CANCELLED, stopped())
        except Exception:  # a bug while a provider is asked: what was used is settled all the same
            log.exception("asking_failed", extra={"model": candidate.slug})
            return asking.ending(asking.broken(), broken_inside())
        if isinstance(last, Completed):
            return asking.ending(Outcome.SUCCEEDED, None)
        fallback = next(iter(plan.candidates[asked + 1 :]), None)
        if fallback is None or not may_fall_back(last, asking):
            return asking.ending(asking.broken(), last.failure)
        if not await hold_covers(plan.hold_for(fallback), asking, deps):
            return asking.ending(asking.broken(), last.failure)
        held_usd = asking.held_usd
        call.asked.append(asking.in_vain(last.failure))
        log.warning("provider_fallback", extra={"model": candidate.slug, "next": fallback.slug})
    raise AssertionError("a plan without candidates has a refusal")


def may_fall_back(last: Failed, asking: Asking) -> bool:
    """Only a provider's fault, and only while the model has said nothing."""
    return last.failure.status >= 500 and asking.first_word_at is None


def tell_the_end(call: Call, ending: Ending, completed: Completed | None) -> None:
    """The last record: the end of the answer, or how it broke."""
    if completed is not None:
        call.answer.finish(completed)
    else:
        call.answer.fail(ending.failure_or_bug())


def broken_inside() -> Failure:
    return InternalError("The call failed inside the gateway; what was used is settled.").failure()


def stopped() -> Failure:
    """For whoever still waits: the client that left is no longer there to hear it."""
    return Cancelled("The call was cancelled; what was used is settled.").failure()


def set_aside() -> Failure:
    return Overloaded(
        "The call failed on several workers and was set aside; nothing was charged for it. An "
        "operator may run it again under its id."
    ).failure()


def already_over() -> Failure:
    return InternalError(
        "This call was settled by an earlier attempt whose answer did not reach you. "
        "It was charged once; its receipt says what."
    ).failure()
