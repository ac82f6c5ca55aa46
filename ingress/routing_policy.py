"""A tenant's routing policy: what it says, what is in force, and where each of it comes from.

Operators open and close the gate of the preference dial here too.
"""

import logging
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ingress.agents import append_audit, refuse_bound
from ingress.auth import Caller, current_caller, own_agent, require_internal
from ingress.deps import Deps, everyone, get_deps, session
from ingress.wire import Body, Text
from shared.control import TENANT_POLICY, give_order
from shared.domain.audit import AuditDraft, EventType, draft
from shared.domain.candidate import decimal_text
from shared.domain.policy_file import LONGEST_NAME, MOST_OUTPUT_TOKENS, floor_text
from shared.domain.policy_version import PolicyVersion
from shared.domain.routing_policy import (
    CallerPolicy,
    RequestFeatures,
    caller_policy,
    quality,
    resolve_floor,
)
from shared.domain.task_type import TASK_TYPES
from shared.errors import InvalidBody
from shared.models import AgentRow, TenantRow
from shared.operators import OVER_HTTP
from shared.policies import (
    active_version,
    known_versions,
    set_preference_gate,
    tell_policies_changed,
)

log = logging.getLogger(__name__)
router = APIRouter()
operators = APIRouter(
    prefix="/internal", dependencies=[Depends(require_internal)], include_in_schema=False
)
Mine = Annotated[Caller, Depends(current_caller)]

FIELDS = ("min_quality", "policy_version", "default_output_tokens")
Floor = Annotated[
    Annotated[str, BeforeValidator(floor_text)] | None,
    Field(json_schema_extra={"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}),
]


class RoutingPolicyChange(BaseModel):
    """What is absent stays as it is; null takes the tenant's word back.

    `min_quality` is 0 to 1, or good, strong, frontier.
    """

    model_config = ConfigDict(extra="forbid")

    min_quality: Floor = None
    policy_version: Annotated[Text, Field(max_length=LONGEST_NAME)] | None = None
    default_output_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_OUTPUT_TOKENS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"name {', '.join(FIELDS[:-1])} or {FIELDS[-1]}")
        return self


class AgentFloorChange(Body):
    """The floor of one agent: 0 to 1, or good, strong, frontier; null takes it back."""

    min_quality: Floor


@router.get("/v1/routing-policy")
async def read_policy(request: Request, caller: Mine) -> dict[str, Any]:
    """The tenant's routing policy, what is in force, and where each value comes from."""
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        tenant = await _tenant(s, caller)
        return await _view(s, tenant.policy, caller, deps)


@router.put("/v1/routing-policy")
async def change_policy(
    body: RoutingPolicyChange, request: Request, caller: Mine
) -> dict[str, Any]:
    """Set the routing policy of all the tenant's agents, from the next call on.

    Every instance of the ingress hears of it within a second; each agent's chain witnesses it.
    """
    refuse_bound(caller)
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        tenant = await _tenant(s, caller, lock=True)
        if body.policy_version is not None:
            _refuse_unknown(body.policy_version, await known_versions(s))
        before = tenant.policy
        wanted = {**before, **{name: getattr(body, name) for name in body.model_fields_set}}
        after = {name: value for name, value in wanted.items() if value is not None}
        if after != before:
            tenant.policy = after
            await s.flush()
            await _witness(s, caller, before, after)
        answer = await _view(s, after, caller, deps)
        await s.commit()
    await _tell(caller, deps)
    return answer


@router.patch("/v1/agents/{agent_id}/routing-policy")
async def change_agents_floor(
    agent_id: str, body: AgentFloorChange, request: Request, caller: Mine
) -> dict[str, Any]:
    """Set or take back the floor of one agent, which wins over the tenant's, from the next call on.

    Every instance of the ingress hears of it within a second; the agent's chain witnesses it.
    """
    refuse_bound(caller)
    deps = get_deps(request)
    async with session(deps.db, caller.tenant) as s:
        agent = await own_agent(s, agent_id, caller, lock=True)
        before, after = quality(agent.min_quality), quality(body.min_quality)
        if after != before:
            agent.min_quality = after
            await s.flush()
            said = [{"agent_min_quality": decimal_text(floor)} for floor in (before, after)]
            await append_audit(s, agent, [_changed(caller, agent, *said)])
        tenant = await _tenant(s, caller)
        known, active = await known_versions(s), await active_version(s)
        await s.commit()
    await _tell(caller, deps)
    floors = _floors(caller_policy(tenant.policy, after, known, active))
    return {
        "agent_id": str(agent.id),
        "min_quality": _number(after),
        "in_force": {"min_quality": floors},
    }


def _refuse_unknown(version: str, known: Mapping[str, PolicyVersion]) -> None:
    """Raises `InvalidBody`, which names the versions that there are."""
    if version not in known:
        raise InvalidBody(
            f"policy_version: there is no version of this name; known are {', '.join(known)}.",
            param="policy_version",
        )


async def _tenant(s: AsyncSession, caller: Caller, *, lock: bool = False) -> TenantRow:
    query = select(TenantRow).where(col(TenantRow.id) == caller.tenant)
    return (await s.scalars(query.with_for_update() if lock else query)).one()


async def _witness(
    s: AsyncSession, caller: Caller, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """An event in the chain of each agent, because each of them is routed by it."""
    said = _stated(before), _stated(after)
    query = select(AgentRow).where(col(AgentRow.tenant_id) == caller.tenant)
    for agent in await s.scalars(query.order_by(col(AgentRow.id))):
        await append_audit(s, agent, [_changed(caller, agent, *said)])


def _changed(
    caller: Caller, agent: AgentRow, before: Mapping[str, Any], after: Mapping[str, Any]
) -> AuditDraft:
    told = {"before": before, "after": after, "changed_by": f"key {caller.key_id}"}
    return draft(EventType.ROUTING_POLICY_CHANGED, str(agent.id), told)


async def _tell(caller: Caller, deps: Deps) -> None:
    """Every ingress hears it within a second; one that cannot asks anew when it can."""
    deps.keyring.forget_tenant(caller.tenant_id)
    try:
        await give_order(deps.redis, TENANT_POLICY, tenant_id=caller.tenant_id)
    except (RedisError, OSError) as error:
        log.warning("policy_change_not_told", extra={"error": repr(error)})


async def _view(
    s: AsyncSession, stored: Mapping[str, Any], caller: Caller, deps: Deps
) -> dict[str, Any]:
    known, active = await known_versions(s), await active_version(s)
    query = select(AgentRow).where(
        col(AgentRow.tenant_id) == caller.tenant, col(AgentRow.min_quality).is_not(None)
    )
    agents = [a for a in await s.scalars(query.order_by(col(AgentRow.id))) if _shown(a, caller)]
    return {
        **_stated(stored),
        "in_force": {
            **_in_force(stored, known, active),
            "preference_live": {"value": deps.routing.policies.preference_live, "source": "system"},
        },
        "agents": [{"agent_id": str(a.id), "min_quality": _number(a.min_quality)} for a in agents],
        "known_versions": _listed(known.values(), active),
    }


def _shown(agent: AgentRow, caller: Caller) -> bool:
    return caller.bound_to is None or str(agent.id) == caller.bound_to


def _stated(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the tenant itself said; None where it said nothing."""
    return {name: stored.get(name) for name in FIELDS}


def _in_force(
    stored: Mapping[str, Any], known: Mapping[str, PolicyVersion], active: str
) -> dict[str, Any]:
    """Each value with its source: tenant, system, policy_version; floors as receipts say it."""
    policy = caller_policy(stored, None, known, active)
    of_tenant = policy.version == stored.get("policy_version")
    tokens_of = "tenant" if stored.get("default_output_tokens") else "policy_version"
    version = known[policy.version]
    return {
        "policy_version": {"value": policy.version, "source": "tenant" if of_tenant else "system"},
        "min_quality": _floors(policy),
        "default_output_tokens": {"value": policy.default_output_tokens, "source": tokens_of},
        "q_source": {"value": version.q_source, "source": "policy_version"},
        "exploration_share": {
            "value": _number(version.exploration_share),
            "source": "policy_version",
        },
    }


def _floors(policy: CallerPolicy) -> dict[str, Any]:
    """The floor of a call of each task type that names none itself."""
    floors = {}
    for task in sorted(TASK_TYPES):
        floor, source = resolve_floor(RequestFeatures(task, 0, 0), policy, False)
        floors[task] = {"value": _number(floor), "source": source}
    return floors


def _listed(known: Sequence[PolicyVersion] | Any, active: str) -> list[dict[str, Any]]:
    return [
        {
            "version": each.version,
            "description": each.description,
            "floors": {task: _number(floor) for task, floor in sorted(each.floors.items())},
            "active": each.version == active,
        }
        for each in known
    ]


def _number(value: Any) -> float | None:
    """A quality as receipts show it."""
    found: Decimal | None = quality(value)
    return None if found is None else float(found)


# -- operators --------------------------------------------------------------------------------


class Gate(BaseModel):
    """Whether the preference dial shall move floors, and why; the reason is written down."""

    live: bool
    reason: Text = ""


@operators.get("/routing-preference")
async def preference_status(request: Request) -> dict[str, Any]:
    """Whether the gate of the preference dial is open, as this instance knows it."""
    return {"live": get_deps(request).routing.policies.preference_live}


@operators.post("/routing-preference")
async def set_preference(request: Request, gate: Gate) -> dict[str, Any]:
    """Open or close the gate, for every worker within a second."""
    deps = get_deps(request)
    async with everyone(deps.db) as s:
        changed = await set_preference_gate(s, gate.live, gate.reason, OVER_HTTP)
        await s.commit()
    deps.routing.policies.missed()
    try:
        await tell_policies_changed(deps.redis)
    except (RedisError, OSError) as error:
        log.warning("gate_not_told", extra={"error": repr(error)})
    return {"live": gate.live, "changed": changed}


router.include_router(operators)
