"""What a decision is made from besides the catalogue: the caller's policy and the request.

Floor: the caller's explicit `min_quality`; else the agent's, else the tenant's; else the
policy version's floor for the task type, where it has one; else 0.50. The preference dial
moves any floor that this request did not name itself, and only while its gate is open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from shared.domain.candidate import decimal_text
from shared.domain.estimate import estimate_input_tokens
from shared.domain.evidence import QSource
from shared.domain.inference import InferenceRequest
from shared.domain.policy_version import (
    BUILT_IN,
    DEFAULT_OUTPUT_TOKENS,
    FLAT_POLICY,
    GENERAL_FLOOR,
    NO_EXPLORATION,
    PolicyVersion,
)
from shared.domain.task_type import classify

TIERS = {"good": GENERAL_FLOOR, "strong": Decimal("0.70"), "frontier": Decimal("0.85")}
DEFAULT_FLOOR = TIERS["good"]

PREFERENCES = ("balanced", "quality", "cost")
PREFERENCE_STEP = Decimal("0.10")
PREFERENCE_LOW, PREFERENCE_HIGH = Decimal("0.50"), Decimal("0.85")

# What receipts mean that name a version and do not tell its floors: version -> floor by task type.
POLICY_VERSIONS: Mapping[str, Mapping[str, Decimal]] = {
    each.version: each.floors for each in BUILT_IN
}
KNOWN: Mapping[str, PolicyVersion] = {each.version: each for each in BUILT_IN}


@dataclass(frozen=True, slots=True)
class CallerPolicy:
    """The defaults of an agent and its tenant, and the content of the policy version that they
    have: `floors` by task type, where the qualities come from, and the share that explores.

    Without `floors` they are those of the built-in version of that name; None is never read back.
    """

    agent_min_quality: Decimal | None = None
    tenant_min_quality: Decimal | None = None
    version: str = FLAT_POLICY
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    q_source: QSource = "prior"
    exploration_share: Decimal = NO_EXPLORATION
    floors: Mapping[str, Decimal] | None = None

    def __post_init__(self) -> None:
        if self.floors is None:
            object.__setattr__(self, "floors", POLICY_VERSIONS.get(self.version, {}))

    def floor_of(self, task_type: str) -> Decimal | None:
        """The version's floor for a task type, if it has one."""
        return None if self.floors is None else self.floors.get(task_type)

    def to_json(self) -> dict[str, Any]:
        floors = self.floors or {}
        return {
            "agent_min_quality": decimal_text(self.agent_min_quality),
            "tenant_min_quality": decimal_text(self.tenant_min_quality),
            "version": self.version,
            "default_output_tokens": self.default_output_tokens,
            "q_source": self.q_source,
            "exploration_share": decimal_text(self.exploration_share),
            "floors": {task: decimal_text(floors[task]) for task in sorted(floors)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CallerPolicy":
        """The inverse of `to_json`; what is absent is as it was before it was recorded."""
        floors = data.get("floors")
        return cls(
            _decimal(data.get("agent_min_quality")),
            _decimal(data.get("tenant_min_quality")),
            data.get("version") or FLAT_POLICY,
            data.get("default_output_tokens") or DEFAULT_OUTPUT_TOKENS,
            data.get("q_source") or "prior",
            _decimal(data.get("exploration_share")) or NO_EXPLORATION,
            None if floors is None else _floors(tuple(floors.items())),
        )


@lru_cache(maxsize=64)
def _floors(told: tuple[tuple[str, str], ...]) -> Mapping[str, Decimal]:
    """Floors as numbers. Versions are few and every call bears one, so they are made once."""
    return MappingProxyType({task: Decimal(floor) for task, floor in told})


def caller_policy(
    tenant_policy: Mapping[str, Any],
    agent_min_quality: Decimal | None,
    versions: Mapping[str, PolicyVersion] = KNOWN,
    active: str = FLAT_POLICY,
) -> CallerPolicy:
    """The policy of one caller from its tenant's stored policy and its agent's floor.

    The stored policy has `min_quality` (number or tier name), `policy_version` and
    `default_output_tokens`, all optional. Who names no version, or one that is not among the
    `versions`, has the `active` one.
    """
    named = versions.get(str(tenant_policy.get("policy_version")))
    version = versions[active] if named is None else named
    tokens = tenant_policy.get("default_output_tokens") or version.default_output_tokens
    return CallerPolicy(
        agent_min_quality=agent_min_quality,
        tenant_min_quality=quality(tenant_policy.get("min_quality")),
        version=version.version,
        default_output_tokens=tokens,
        q_source=version.q_source,
        exploration_share=version.exploration_share,
        floors=version.floors,
    )


def quality(value: Any) -> Decimal | None:
    """A floor as a number: 0..1 as it is, a tier by its name, None as None."""
    if value is None:
        return None
    return TIERS[value] if isinstance(value, str) and value in TIERS else Decimal(str(value))


def preference(value: str | None) -> str:
    """The dial's position; an unknown word means `balanced`."""
    return value if value in PREFERENCES else "balanced"


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """All of a request that the rule looks at; holds no word of the prompt.

    `min_quality` is the caller's explicit floor. `reserved_output_tokens` is `max_tokens`,
    else the policy's default, before a model's own limit cuts it. `data_class` and `region` are
    the caller's word; None where it said nothing.
    """

    task_type: str
    input_tokens: int
    reserved_output_tokens: int
    capabilities: frozenset[str] = frozenset()
    min_quality: Decimal | None = None
    routing_preference: str = "balanced"
    budget_cap_usd: Decimal | None = None
    latency_cap_ms: int | None = None
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    tenant_id: str | None = None
    data_class: str | None = None
    region: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "task_type": self.task_type,
            "input_tokens": self.input_tokens,
            "reserved_output_tokens": self.reserved_output_tokens,
            "capabilities": sorted(self.capabilities),
            "min_quality": decimal_text(self.min_quality),
            "routing_preference": self.routing_preference,
            "budget_cap_usd": decimal_text(self.budget_cap_usd),
            "latency_cap_ms": self.latency_cap_ms,
            "allow": sorted(self.allow),
            "deny": sorted(self.deny),
            "tenant_id": self.tenant_id,
            "data_class": self.data_class,
            "region": self.region,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RequestFeatures":
        return cls(
            task_type=data["task_type"],
            input_tokens=data["input_tokens"],
            reserved_output_tokens=data["reserved_output_tokens"],
            capabilities=frozenset(data["capabilities"]),
            min_quality=_decimal(data["min_quality"]),
            routing_preference=data["routing_preference"],
            budget_cap_usd=_decimal(data["budget_cap_usd"]),
            latency_cap_ms=data["latency_cap_ms"],
            allow=frozenset(data["allow"]),
            deny=frozenset(data["deny"]),
            tenant_id=data.get("tenant_id"),
            data_class=data.get("data_class"),
            region=data.get("region"),
        )


def features(request: InferenceRequest, policy: CallerPolicy, tenant_id: str) -> RequestFeatures:
    """What the rule needs to know of `request`, which is a call of this tenant's."""
    hint = request.hint
    max_tokens = request.max_tokens
    return RequestFeatures(
        task_type=classify(request),
        input_tokens=estimate_input_tokens(request),
        reserved_output_tokens=policy.default_output_tokens if max_tokens is None else max_tokens,
        capabilities=frozenset(c.value for c in request.capabilities),
        min_quality=hint.min_quality,
        routing_preference=preference(hint.routing_preference),
        budget_cap_usd=hint.budget_cap_usd,
        latency_cap_ms=hint.latency_cap_ms,
        allow=frozenset(hint.allow),
        deny=frozenset(hint.deny),
        tenant_id=tenant_id,
        data_class=hint.data_class,
        region=hint.region,
    )


def resolve_floor(
    asked: RequestFeatures, policy: CallerPolicy, preference_live: bool
) -> tuple[Decimal, str]:
    """`(floor, where it comes from)`: request, agent, tenant, task_type or default."""
    if asked.min_quality is not None:
        return asked.min_quality, "request"
    floor, source = _default_floor(asked.task_type, policy)
    return (_dialled(floor, asked.routing_preference) if preference_live else floor), source


def _default_floor(task_type: str, policy: CallerPolicy) -> tuple[Decimal, str]:
    if policy.agent_min_quality is not None:
        return policy.agent_min_quality, "agent"
    if policy.tenant_min_quality is not None:
        return policy.tenant_min_quality, "tenant"
    by_task = policy.floor_of(task_type)
    return (DEFAULT_FLOOR, "default") if by_task is None else (by_task, "task_type")


def _dialled(floor: Decimal, position: str) -> Decimal:
    """The floor moved by the dial: `quality` never lowers it, `cost` never raises it."""
    if position == "quality":
        return max(floor, min(floor + PREFERENCE_STEP, PREFERENCE_HIGH))
    if position == "cost":
        return min(floor, max(floor - PREFERENCE_STEP, PREFERENCE_LOW))
    return floor


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(str(value))
