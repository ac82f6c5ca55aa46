"""Quotes: what a call would choose and cost, with nothing sent; held for a while if asked for.

The body is a call's, in any dialect; the one it is in stands in the query (`?dialect=`), native
by default. A quote that is held promises the choice and the prices to the one call that names it.
It holds no money: whether there is enough is decided, as for every call, when the call comes.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from sqlalchemy import text
from starlette.responses import Response

from ingress import openapi
from ingress.answers import failure_response
from ingress.auth import Caller, authenticate, not_found
from ingress.deps import CALL_PATIENCE_S, Deps, everyone, get_deps, reachable, session
from ingress.inference import LEAST, hear, parse, read_body
from ingress.limits import limit_headers
from ingress.quoted import asker_of
from ingress.signing import signed
from ingress.wire import moment, usd
from shared.config import active_providers
from shared.domain import capture
from shared.domain.candidate import Candidate
from shared.domain.inference import ROUTING_TARGET, Dialect, Failure, InferenceRequest
from shared.domain.ledger import ZERO, Budget, Caps, Wallet, admit
from shared.domain.planning import (
    Planned,
    Situation,
    hold_for,
    maximum_for,
    plan_for_quote,
    projected_for,
    reserved_tokens,
)
from shared.domain.routing_policy import CallerPolicy
from shared.errors import AinferaError, InvalidBody, Overloaded, RateLimited
from shared.holding import CAPS, Held, out_of_funds, over_cap
from shared.ids import mint_id
from shared.limiting import Admission, Standing

log = logging.getLogger(__name__)
router = APIRouter()

_FUNDS = text(
    """
SELECT w.balance, w.held, w.spent_day, w.spent_today, a.per_call_cap_usd, a.daily_cap_usd,
       t.daily_cap_usd AS tenant_cap, (now() AT TIME ZONE 'UTC')::date AS today,
       s.spent AS tenant_spent, s.held AS tenant_held
  FROM agents a
  JOIN accounts w ON w.agent_id = a.id AND w.tenant_id = a.tenant_id
  JOIN tenants t ON t.id = a.tenant_id
  LEFT JOIN LATERAL (
    SELECT coalesce(sum(x.spent_today)
             FILTER (WHERE x.spent_day = (now() AT TIME ZONE 'UTC')::date), 0) AS spent,
           coalesce(sum(x.held), 0) AS held
      FROM accounts x WHERE x.tenant_id = t.id) s ON t.daily_cap_usd IS NOT NULL
 WHERE a.id = :agent_id AND a.tenant_id = :tenant_id
"""
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked: a call, in which dialect, and for how long its quote shall be held."""

    call: InferenceRequest
    dialect: Dialect
    hold_for_s: int


@router.post("/v1/quote", response_model=None, openapi_extra=openapi.quote(LEAST))
async def quote(request: Request) -> Response:
    """What this call would choose and cost, without making it; no provider is asked."""
    deps = get_deps(request)
    caller = (await authenticate(request.headers, None, deps)).may_use(request.scope)
    wish = read_wish(await read_body(request, deps.settings.max_body_bytes), request, deps)
    standing = None
    try:
        if wish.call.agent_id is not None and wish.call.agent_id != caller.agent_id:
            caller = await authenticate(request.headers, wish.call.agent_id, deps)
        told = caller.for_worker()
        standing = await count_quote(caller, deps)
        deps.killswitch.check(caller.tenant_id)
        answer = await quoted(wish, caller, CallerPolicy.from_json(told["policy"]), deps)
    except AinferaError as refused:
        response = failure_response(refused.failure(), wish.dialect, None, deps)
    else:
        response = answer
    if standing is not None:
        response.headers.update(limit_headers(standing, wish.dialect))
    return response


async def quoted(wish: Wish, caller: Caller, policy: CallerPolicy, deps: Deps) -> Response:
    """The quote, or the very error that the call would get."""
    quote_id = mint_id()
    now = situation(policy, caller.tenant_id, deps)
    planned = plan_for_quote(wish.call, now, seed=str(quote_id))
    if planned.failure is not None:
        decision = await signed_decision(planned, now.catalog.to_json(), deps)
        beside = None if decision is None else {"decision": decision}
        return failure_response(planned.failure, wish.dialect, None, deps, beside)
    funds = await look_at_funds(caller, planned.hold_usd, deps)
    expires_at = None
    if wish.hold_for_s:
        asker = asker_of(caller.tenant_id, str(caller.agent_id), wish.call)
        async with reachable(CALL_PATIENCE_S):
            expires_at = await deps.quotes.hold(
                quote_id, asker, planned, now.catalog.hash, wish.hold_for_s
            )
        if expires_at is None:
            raise RateLimited(
                f"No more than {deps.settings.quotes_per_tenant} quotes of a tenant are held at a "
                "time: use one, or wait until one expires.",
                retry_after=wish.hold_for_s,
            )
    held = None if expires_at is None else (quote_id, expires_at)
    decision = await signed_decision(planned, now.catalog.to_json(), deps)
    body = as_json(planned, wish.call.max_tokens, decision, funds, held)
    return Response(orjson.dumps(body), media_type="application/json")


def situation(policy: CallerPolicy, tenant_id: str, deps: Deps) -> Situation:
    """What a worker would decide from now."""
    catalogued = [model.provider for model in deps.catalog.candidates]
    active = active_providers(deps.settings, deps.providers, catalogued)
    return deps.routing.situation(policy, active, tenant_id)


def read_wish(body: bytes, request: Request, deps: Deps) -> Wish:
    """The call of a quote's body. Raises `InvalidBody`, which names the field at fault."""
    spoken = request.query_params.get("dialect", Dialect.NATIVE.value)
    if spoken not in set(Dialect):
        known = ", ".join(each.value for each in Dialect)
        raise InvalidBody(f"dialect: must be one of {known}.", param="dialect")
    call = hear(parse(body, Dialect(spoken)), request.headers)
    asked = call.body.get("hold_for_s", request.query_params.get("hold_for_s"))
    return Wish(call, Dialect(spoken), read_hold(asked, deps.settings.quote_hold_s))


def read_hold(asked: Any, longest_s: int) -> int:
    """For how many seconds a quote shall be held; 0 is not at all."""
    if asked is None:
        return 0
    text = str(asked) if isinstance(asked, int | str) and not isinstance(asked, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= longest_s):
        raise InvalidBody(
            f"hold_for_s: must be whole seconds from 0 to {longest_s} (QUOTE_HOLD_SECONDS).",
            param="hold_for_s",
        )
    return int(text)


async def count_quote(caller: Caller, deps: Deps) -> Standing | None:
    """Count the quote as a request of its key; None for a key without limits.

    Raises `RateLimited`. It reserves no tokens and is no call under way.
    """
    if caller.limits is None:
        return None
    limits = replace(caller.limits, concurrent_calls=0)
    try:
        return await deps.queue.admit(Admission(caller.key_id, limits))
    except (RedisError, OSError) as error:
        raise Overloaded("The key's limits cannot be read at the moment. Retry.") from error


async def look_at_funds(caller: Caller, needed_usd: Decimal, deps: Deps) -> dict[str, Any]:
    """Whether the wallet and the caps would let the call begin now; nothing is held."""
    bound = {"agent_id": UUID(str(caller.agent_id)), "tenant_id": caller.tenant}
    async with session(deps.db, caller.tenant, patience_s=CALL_PATIENCE_S) as s:
        row = (await s.execute(_FUNDS, bound)).one_or_none()
    if row is None:
        not_found()
    wallet = Wallet(row.balance, row.held, row.spent_today, row.spent_day)
    budget = None
    if row.tenant_cap is not None:
        budget = Budget(row.tenant_cap, row.tenant_spent, row.tenant_held)
    caps = Caps(row.per_call_cap_usd, row.daily_cap_usd)
    found = admit(wallet, needed_usd, caps, row.today, budget=budget)
    told = Held(
        found.outcome.value,
        1,
        wallet.balance,
        wallet.held,
        wallet.spent_on(row.today),
        found.cap,
        None if budget is None else budget.spent,
        None if budget is None else budget.held,
    )
    refused = why_refused(told, needed_usd)
    return {
        "allowed": refused is None,
        "settled_usd": usd(wallet.balance),
        "held_usd": usd(wallet.held),
        "available_usd": usd(wallet.available),
        "required_usd": usd(needed_usd),
        "caps": caps_left(row, row.today),
        "refusal": None if refused is None else as_refusal(refused.failure()),
    }


def caps_left(row: Any, today: date) -> list[dict[str, Any]]:
    """Each cap there is, and what it leaves now: what is held counts as if it were spent."""
    spent = row.spent_today if row.spent_day == today else ZERO
    found = (
        ("per_call_cap", row.per_call_cap_usd, ZERO, ZERO),
        ("daily_cap", row.daily_cap_usd, spent, row.held),
        ("tenant_cap", row.tenant_cap, row.tenant_spent, row.tenant_held),
    )
    return [
        {
            "cap": name,
            "cap_usd": usd(cap),
            "settled_usd": usd(settled),
            "held_usd": usd(held),
            "available_usd": usd(max(cap - settled - held, ZERO)),
        }
        for name, cap, settled, held in found
        if cap is not None
    ]


def why_refused(told: Held, needed_usd: Decimal) -> AinferaError | None:
    """The error that the call would get for its money; None where it would begin."""
    if told.result in CAPS:
        return over_cap(told, needed_usd)
    if told.result == "INSUFFICIENT_FUNDS":
        return out_of_funds(told, needed_usd)
    return None


def as_refusal(failure: Failure) -> dict[str, Any]:
    return {"status": failure.status, "code": failure.code, "message": failure.message} | {
        "detail": dict(failure.detail)
    }


def as_json(
    planned: Planned,
    max_tokens: int | None,
    decision: dict[str, Any] | None,
    funds: Mapping[str, Any],
    held: tuple[UUID, datetime] | None,
) -> dict[str, Any]:
    """A quote as its client gets it."""
    chosen, asked = planned.candidates[0], planned.features
    return {
        "quote_id": None if held is None else str(held[0]),
        "expires_at": None if held is None else moment(held[1]),
        "router": "direct" if planned.decision is None else ROUTING_TARGET,
        **costs(planned, chosen, max_tokens),
        "input_tokens_estimated": asked.input_tokens,
        "output_tokens_reserved": reserved_tokens(asked, chosen),
        "fallbacks": [costs(planned, each, max_tokens) for each in planned.candidates[1:]],
        "funds": funds,
        "decision": decision,
    }


def costs(planned: Planned, candidate: Candidate, max_tokens: int | None) -> dict[str, Any]:
    """A model, what it is projected to cost, what would be held for it at the start, and the most
    that it can cost: an answer without a limit may outgrow its hold, which is extended then."""
    return {
        "model": candidate.slug,
        "model_used": candidate.provider_model_id,
        "provider": candidate.provider,
        "projected_cost_usd": usd(projected_for(planned.features, candidate)),
        "held_usd": usd(hold_for(planned.features, candidate)),
        "maximum_cost_usd": usd(maximum_for(planned.features, candidate, max_tokens)),
    }


async def signed_decision(
    planned: Planned, models: list[dict[str, Any]], deps: Deps
) -> dict[str, Any] | None:
    """The decision receipt, as `/decision` has it, of a call that was not made; None if pinned."""
    if planned.decision is None:
        return None
    fate = {
        "inference_id": None,
        "cost_actual": None,
        "observed_latency_ms": None,
        "ttft_ms": None,
        "outcome_status": None,
    }
    row = {**capture.columns(planned.decision), **fate}
    receipt = {**capture.receipt(row, models), "inference_id": None}
    async with everyone(deps.db, patience_s=CALL_PATIENCE_S) as s:
        key = await deps.log_key.get(s, deps.settings)
    return {**signed(receipt, key), "audit_proof": None}
