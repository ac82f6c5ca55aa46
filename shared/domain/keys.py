"""What a key may do, and the rule that no key makes another that may do more than itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.domain.limits import KeyLimits


class Scope(StrEnum):
    """`call`: make inferences and see what became of them. `read`: see all else that is the
    tenant's. `admin`: agents, spend policies, keys, money. None contains another."""

    CALL = "call"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may do: where (`agent_id`, None is every agent of the tenant), what, until when
    (None is for good), and how much (0 is no limit). Ids are in text form."""

    agent_id: str | None
    scopes: frozenset[Scope]
    expires_at: datetime | None
    limits: KeyLimits


def in_order(scopes: Iterable[str]) -> list[str]:
    """Scopes in the order in which they are always told, each once."""
    wanted = set(scopes)
    return [scope.value for scope in Scope if scope in wanted]


def excess(wanted: Grant, own: Grant) -> str | None:
    """What `wanted` may do that `own` may not, in words; None if nothing."""
    if own.agent_id is not None and wanted.agent_id != own.agent_id:
        return "it is bound to an agent"
    if missing := wanted.scopes - own.scopes:
        return f"it has not the scope {' or '.join(f'`{each}`' for each in in_order(missing))}"
    if own.expires_at is not None and (
        wanted.expires_at is None or wanted.expires_at > own.expires_at
    ):
        return "it expires sooner"
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent_calls"):
        most, much = getattr(own.limits, name), getattr(wanted.limits, name)
        if most and not 0 < much <= most:
            return f"its {name} are {most}"
    return None
