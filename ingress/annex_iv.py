"""The bundle for a technical documentation under Annex IV of the EU AI Act, of one agent.

It has what this system knows of the agent, says for each point of the annex what of it that is
and what the provider of the AI system must add, and ends with the means to check it.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ingress.audit import InclusionProof, Mine, prove
from ingress.auth import own_agent
from ingress.deps import Deps, everyone, get_deps, session
from ingress.spend_policies import spend_policy
from ingress.wire import moment, usd
from shared.audit_log import AuditLoggedRow
from shared.config import VERSION
from shared.domain.annex_iv import POINTS, REGULATION
from shared.domain.routing import RULESET_HASH
from shared.models import AgentRow, AuditEventRow, AuditHeadRow, TenantRow
from shared.policy_book import PolicyBook

router = APIRouter()

MOST_DAYS = 366

_PERIOD = "agent_id = :agent_id AND created_at >= :since AND created_at < :until"
_MODELS = text(
    f"""
SELECT model_slug, model_used, provider, simulated, count(*) AS calls, sum(cost_usd) AS cost,
       sum(input_tokens)::bigint AS input, sum(output_tokens)::bigint AS output,
       min(created_at) AS first, max(created_at) AS last
  FROM receipts WHERE {_PERIOD}
 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1
"""
)
_OUTCOMES = text(
    f"""
SELECT outcome_status, policy_version, ruleset_hash, decision_rule, count(*) AS calls
  FROM routing_outcomes WHERE {_PERIOD}
 GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1
"""
)
_EVENTS = text(
    f"""
SELECT event_type, count(*) AS events FROM audit_events WHERE {_PERIOD}
 GROUP BY 1 ORDER BY 1
"""
)


class Period(BaseModel):
    """What the counts are of: from the beginning of `since`, up to `until`; UTC."""

    since: str
    until: str


class Gateway(BaseModel):
    service: str
    version: str


class AgentPart(BaseModel):
    agent_id: str
    name: str
    canonical_uri: str
    did_web: str
    status: str
    public_key_ed25519: str
    created_at: str


class Policies(BaseModel):
    """What is in force now; which versions decided in the period is under `outcomes`."""

    spend_policy: dict[str, str | None]
    routing_policy: dict[str, Any]
    ruleset_hash: str


class ModelUse(BaseModel):
    model: str
    provider_model_id: str
    provider: str
    simulated: bool
    calls: int
    cost_usd: str
    input_tokens: int
    output_tokens: int
    first_at: str
    last_at: str


class RoutedOutcome(BaseModel):
    """Routed calls by how they ended and by what decided on them."""

    outcome_status: str
    policy_version: str
    ruleset_hash: str
    decision_rule: str
    calls: int


class Outcomes(BaseModel):
    """`events` counts the agent's audit events by type; they cover pinned calls too."""

    routed: list[RoutedOutcome]
    events: dict[str, int]


class Trail(BaseModel):
    """The end of the agent's chain now. `proof` is of its newest event under a checkpoint, whose
    hash covers every event before it."""

    event_count: int
    head_hash: str | None
    proof: InclusionProof | None
    verify_url: str
    checkpoint_url: str
    log_key_url: str
    how_to_verify: list[str]


class AnnexPoint(BaseModel):
    """`coverage` is never more than `partly`; `sections` are the parts of this document."""

    point: str
    heading: str
    coverage: str
    sections: list[str]
    provider_adds: str


class AnnexIV(BaseModel):
    """What the gateway can say of one agent for the technical documentation of an AI system."""

    regulation: str
    generated_at: str
    notice: str
    period: Period
    gateway: Gateway
    agent: AgentPart
    policies: Policies
    models: list[ModelUse]
    outcomes: Outcomes
    audit: Trail
    annex_iv: list[AnnexPoint]


NOTICE = (
    "Made from the gateway's own records. It is no conformity assessment and no complete technical "
    "documentation: the points below say what the provider of the AI system has to add."
)


@router.get("/v1/audit/{agent_id}/annex-iv")
async def read_annex_iv(
    agent_id: str,
    request: Request,
    caller: Mine,
    days: Annotated[int, Query(ge=1, le=MOST_DAYS)] = 30,
) -> AnnexIV:
    """What can be said of the agent for Annex IV of the EU AI Act, over the last `days`."""
    deps = get_deps(request)
    until = datetime.now(UTC)
    since = until - timedelta(days=days)
    async with session(deps.db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller)
        bound = {"agent_id": agent.id, "since": since, "until": until}
        return AnnexIV(
            regulation=REGULATION,
            generated_at=moment(until),
            notice=NOTICE,
            period=Period(since=moment(since), until=moment(until)),
            gateway=Gateway(service="Ainfera", version=VERSION),
            agent=_agent(agent),
            policies=await _policies(s, agent, deps.routing.policies),
            models=await _models(s, bound),
            outcomes=await _outcomes(s, bound),
            audit=await _trail(s, agent, deps),
            annex_iv=[AnnexPoint.model_validate(point, from_attributes=True) for point in POINTS],
        )


def _agent(agent: AgentRow) -> AgentPart:
    return AgentPart(
        agent_id=str(agent.id),
        name=agent.name,
        canonical_uri=agent.canonical_uri,
        did_web=agent.did_web,
        status=agent.status,
        public_key_ed25519=agent.public_key_pem,
        created_at=moment(agent.created_at),
    )


async def _policies(s: AsyncSession, agent: AgentRow, book: PolicyBook) -> Policies:
    tenant = await s.get_one(TenantRow, agent.tenant_id)
    return Policies(
        spend_policy=spend_policy(agent),
        routing_policy=book.policy_of(tenant.policy, agent.min_quality).to_json(),
        ruleset_hash=RULESET_HASH,
    )


async def _models(s: AsyncSession, bound: dict[str, Any]) -> list[ModelUse]:
    return [
        ModelUse(
            model=row.model_slug,
            provider_model_id=row.model_used,
            provider=row.provider,
            simulated=row.simulated,
            calls=row.calls,
            cost_usd=usd(row.cost),
            input_tokens=row.input,
            output_tokens=row.output,
            first_at=moment(row.first),
            last_at=moment(row.last),
        )
        for row in await s.execute(_MODELS, bound)
    ]


async def _outcomes(s: AsyncSession, bound: dict[str, Any]) -> Outcomes:
    routed = [
        RoutedOutcome.model_validate(row, from_attributes=True)
        for row in await s.execute(_OUTCOMES, bound)
    ]
    events = {row.event_type: row.events for row in await s.execute(_EVENTS, bound)}
    return Outcomes(routed=routed, events=events)


async def _trail(s: AsyncSession, agent: AgentRow, deps: Deps) -> Trail:
    head = await s.get(AuditHeadRow, agent.id)
    logged = await s.get(AuditLoggedRow, agent.id)
    last = await s.get(AuditEventRow, (agent.id, logged.seq)) if logged is not None else None
    proof, base_url = None, deps.settings.base_url
    if last is not None:
        async with everyone(deps.db) as everybodys:  # the log is over all chains
            proof = await prove(everybodys, last)
    return Trail(
        event_count=head.seq if head is not None else 0,
        head_hash=head.hash if head is not None else None,
        proof=proof,
        verify_url=f"{base_url}/v1/audit/{agent.id}/verify",
        checkpoint_url=f"{base_url}/v1/audit/checkpoint",
        log_key_url=f"{base_url}/v1/audit/log-key",
        how_to_verify=[
            "Ask the operator for a bundle of this agent, made with:",
            f"fleet audit export --agent {agent.id} agent.jsonl",
            "Take the log's key from another place than the bundle, then offline:",
            'fleet audit verify agent.jsonl --key "<log key>" --checkpoints <kept checkpoints>',
            f"Or over HTTP, event by event: {base_url}/v1/audit/{agent.id}/proof?seq=<n>",
            "(RFC 9162 section 2.1.3; the checkpoint is a C2SP signed note).",
        ],
    )
