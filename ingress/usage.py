"""Figures for owners of agents and for finance: usage by day, caps, how an agent fares.

A call counts on the UTC day on which it ended, which is when its money moved; so a day's cost is
the sum of its `usage` entries in the ledger. It counts once, as one of three:

- `fallback`: it was answered, but another model or provider was asked before in vain;
- `error`: it was refused (funds, caps, killswitch, no model), failed or expired;
- `ok`: all others. A call that its own client cancelled is no error.

A pinned call has no `routing_outcomes` row: that it failed is known from its audit events.
"""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from sqlalchemy import text

from ingress.auth import Caller, current_caller, own_agent
from ingress.deps import get_deps, session
from ingress.openapi import view
from ingress.spreadsheet import Format, as_csv, wants_csv
from ingress.wire import cap, usd

router = APIRouter()

LONGEST_DAYS = 366
WINDOW_HOURS = 24
TOP_MODELS = 10

# Of outcomes and audit events only the exceptions are read, each from an index of its own.
_CALLS = """
exceptions AS MATERIALIZED (
  SELECT o.inference_id AS id, o.outcome_status NOT IN ('succeeded', 'cancelled') AS error,
         o.outcome_status IN ('succeeded', 'cancelled') AND o.fallback_chain <> '[]'::jsonb
           AS fallback
    FROM routing_outcomes o
   WHERE o.tenant_id = :tenant AND o.created_at >= :since
     AND (o.outcome_status <> 'succeeded' OR o.fallback_chain <> '[]'::jsonb)
   UNION
  SELECT (e.payload::jsonb ->> 'inference_id')::uuid, true, false
    FROM audit_events e
   WHERE e.tenant_id = :tenant AND e.created_at >= :since AND e.event_type = 'provider.failed'
     AND e.payload LIKE '%"router":"direct"%'
), calls AS (
  SELECT i.id, i.settled_at, coalesce(i.settled_usd, 0) AS cost,
         i.state = 'refused' OR x.error AS error, x.fallback
    FROM inferences i LEFT JOIN exceptions x ON x.id = i.id
   WHERE i.tenant_id = :tenant AND i.settled_at >= :since
     AND (CAST(:agent AS uuid) IS NULL OR i.agent_id = :agent)
)
"""
_COUNTS = """
       count(*) AS calls, coalesce(sum(cost), 0) AS cost,
       count(*) FILTER (WHERE error) AS error, count(*) FILTER (WHERE fallback) AS fallback
"""
_DAILY = text(
    f"""
WITH {_CALLS}
SELECT (settled_at AT TIME ZONE 'UTC')::date AS day, {_COUNTS} FROM calls GROUP BY 1 ORDER BY 1
"""
)
_METRICS = text(
    f"""
WITH {_CALLS}, models AS (
  SELECT r.model_slug AS model, count(*) AS calls, sum(c.cost) AS cost
    FROM calls c JOIN receipts r ON r.inference_id = c.id
   WHERE r.agent_id = :agent AND r.created_at >= :since
   GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {TOP_MODELS})
SELECT {_COUNTS},
       (SELECT array[percentile_disc(0.5) WITHIN GROUP (ORDER BY observed_latency_ms),
                     percentile_disc(0.95) WITHIN GROUP (ORDER BY observed_latency_ms)]
          FROM routing_outcomes WHERE agent_id = :agent AND created_at >= :since) AS latency,
       (SELECT jsonb_agg(jsonb_build_object('model', model, 'calls', calls, 'cost', cost::text)
                         ORDER BY calls DESC, model) FROM models) AS models
  FROM calls
"""
)
_ROLLUP = text(
    """
SELECT count(*) AS agents,
       count(*) FILTER (WHERE a.per_call_cap_usd IS NOT NULL OR a.daily_cap_usd IS NOT NULL)
         AS policies_set,
       sum(a.daily_cap_usd) AS budget_set,
       (SELECT t.daily_cap_usd FROM tenants t WHERE t.id = :tenant) AS tenant_cap,
       coalesce(sum(w.spent_today) FILTER (WHERE w.spent_day = :today), 0) AS used,
       (SELECT array[percentile_disc(0.5) WITHIN GROUP (ORDER BY o.observed_latency_ms),
                     count(*) FILTER (WHERE o.outcome_status = 'rejected_floor'),
                     count(*) FILTER (WHERE o.outcome_status LIKE 'failed\\_%')]
          FROM routing_outcomes o
         WHERE o.tenant_id = :tenant AND o.created_at >= :since
           AND (CAST(:agent AS uuid) IS NULL OR o.agent_id = :agent)) AS traffic
  FROM agents a LEFT JOIN accounts w ON w.agent_id = a.id
 WHERE a.tenant_id = :tenant AND (CAST(:agent AS uuid) IS NULL OR a.id = :agent)
"""
)

Mine = Annotated[Caller, Depends(current_caller)]
Days = Annotated[int, Query(ge=1, le=LONGEST_DAYS)]


def window(caller: Caller, since: datetime) -> dict[str, Any]:
    """What every query is bound to: the tenant, its one agent if the key is bound, a beginning."""
    return {"tenant": caller.tenant, "agent": caller.bound_to, "since": since}


def midnight(day: date) -> datetime:
    """The beginning of a UTC day."""
    return datetime.combine(day, time.min, UTC)


@router.get("/v1/usage/daily", openapi_extra=view("UsageDaily", csv=True))
async def daily_usage(
    request: Request, caller: Mine, days: Days = 30, format: Format = None
) -> Any:
    """Calls and cost by UTC day, oldest first; days on which no call ended are left out."""
    since = midnight(datetime.now(UTC).date() - timedelta(days=days - 1))
    async with session(get_deps(request).db, caller.tenant) as s:
        rows = (await s.execute(_DAILY, window(caller, since))).all()
    told = [_day(row) for row in rows]
    if wants_csv(request, format):
        return _daily_csv(told)
    cost = sum((row.cost for row in rows), Decimal(0))
    totals = {"calls": sum(row.calls for row in rows), "cost_usd": usd(cost)}
    return {"days": told, "totals": totals}


def _day(row: Any) -> dict[str, Any]:
    ok = row.calls - row.error - row.fallback
    return {
        "date": row.day.isoformat(),
        "calls": row.calls,
        "cost_usd": usd(row.cost),
        "by_status": {"ok": ok, "fallback": row.fallback, "error": row.error},
    }


def _daily_csv(days: list[dict[str, Any]]) -> Response:
    header = ("date", "calls", "cost_usd", "ok", "fallback", "error")
    rows = [
        (day["date"], day["calls"], Decimal(day["cost_usd"]), *day["by_status"].values())
        for day in days
    ]
    return as_csv("usage-daily", header, rows)


@router.get("/v1/caps/rollup", openapi_extra=view("CapsRollup"))
async def caps_rollup(request: Request, caller: Mine) -> dict[str, Any]:
    """The agents' caps, what was settled today (UTC), and how the last 24 hours went.

    `budget.set` is the sum of the agents' daily caps, null where none has one. `breaches` counts
    the routed calls of 24 hours that got no answer: `quality` those for which no model cleared the
    floor (`rejected_floor`), `reliability` those that failed (`failed_*`).
    """
    now = datetime.now(UTC)
    bound = {**window(caller, now - timedelta(hours=WINDOW_HOURS)), "today": now.date()}
    async with session(get_deps(request).db, caller.tenant) as s:
        row = (await s.execute(_ROLLUP, bound)).one()
    latency, below_floor, failed = row.traffic
    over_all = {} if row.tenant_cap is None else {"tenant_cap_usd": usd(row.tenant_cap)}
    return {
        "agents": row.agents,
        "policies_set": row.policies_set,
        "budget": {"set": cap(row.budget_set), "used_usd": usd(row.used)},
        **over_all,
        "latency_p50_ms": latency,
        "breaches": {"quality": below_floor, "reliability": failed},
    }


@router.get("/v1/agents/{agent_id}/metrics", openapi_extra=view("AgentMetrics", of_one=True))
async def agent_metrics(agent_id: str, request: Request, caller: Mine) -> dict[str, Any]:
    """How one agent fared in the last 24 hours; latencies are those of routed calls."""
    since = datetime.now(UTC) - timedelta(hours=WINDOW_HOURS)
    async with session(get_deps(request).db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
        row = (await s.execute(_METRICS, {**window(caller, since), "agent": agent.id})).one()
    p50, p95 = row.latency
    return {
        "agent_id": str(agent.id),
        "window_hours": WINDOW_HOURS,
        "calls": row.calls,
        "cost_usd": usd(row.cost),
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "error_rate": share(row.error, row.calls),
        "fallback_rate": share(row.fallback, row.calls),
        "top_models": [
            {"model": m["model"], "calls": m["calls"], "cost_usd": usd(Decimal(m["cost"]))}
            for m in row.models or ()
        ],
    }


def share(part: int, whole: int) -> float | None:
    """`part` of `whole`, 0 to 1; None of nothing."""
    return round(part / whole, 6) if whole else None
