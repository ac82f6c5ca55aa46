"""A version of the routing policy: what a decision takes from it, by the name that receipts bear.

A version is data and never changes; who wants other floors gives them another name. The two that
were there from the beginning are here too, because receipts of that time name them without their
content. Floors lie in 0..1; a task type without one has the general default of 0.50.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from shared.domain.audit import canonical_json
from shared.domain.candidate import decimal_text
from shared.domain.evidence import QSource

# the same for every version: a caller who names no floor is never below it
GENERAL_FLOOR = Decimal("0.50")
DEFAULT_OUTPUT_TOKENS = 1024
NO_EXPLORATION = Decimal(0)
FLAT_POLICY = "flat-1"
TASK_FLOORS_POLICY = "task-floors-1"


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """`floors` are default floors by task type; `default_output_tokens` is what is reserved where a
    request says nothing. `q_source`: whether qualities are the catalogue's or learnt ones;
    `exploration_share` (0..0.2): how many of the calls try another model than the first.
    """

    version: str
    description: str = ""
    floors: Mapping[str, Decimal] = field(default_factory=dict)
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    q_source: QSource = "prior"
    exploration_share: Decimal = NO_EXPLORATION

    @property
    def hash(self) -> str:
        """Names exactly this content."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Strings and integers only, so that it hashes the same everywhere."""
        return {
            "version": self.version,
            "description": self.description,
            "default_floor": decimal_text(GENERAL_FLOOR),
            "floors": {task: decimal_text(self.floors[task]) for task in sorted(self.floors)},
            "default_output_tokens": self.default_output_tokens,
            "q_source": self.q_source,
            "exploration_share": decimal_text(self.exploration_share),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PolicyVersion":
        """The inverse of `to_json`."""
        return cls(
            version=data["version"],
            description=data["description"],
            floors={task: Decimal(floor) for task, floor in data["floors"].items()},
            default_output_tokens=data["default_output_tokens"],
            q_source=data["q_source"],
            exploration_share=Decimal(data["exploration_share"]),
        )


BUILT_IN = (
    PolicyVersion(FLAT_POLICY, "One floor, 0.50, for every task."),
    PolicyVersion(
        TASK_FLOORS_POLICY,
        "Floors by task type.",
        {
            "reasoning": Decimal("0.88"),
            "code": Decimal("0.78"),
            "tool_use": Decimal("0.78"),
            "general": Decimal("0.68"),
            "chat": Decimal("0.58"),
            "extraction": Decimal("0.58"),
            "embed": Decimal("0.52"),
        },
    ),
)


@dataclass(frozen=True, slots=True)
class Publication:
    """One turn of the policy that is the default of all: `before` was active until then."""

    version: str
    before: str | None
    act: str


def rollback_target(history: Iterable[Publication]) -> str | None:
    """The version under the active one, in a history from its beginning; None at the first.

    A publication is laid on the ones before it. A rollback takes off all that lies above its
    version, so that a second one goes further back and does not come to where it began.
    """
    layers: list[str] = []
    for publication in history:
        if publication.act == "rollback" and publication.version in layers:
            del layers[layers.index(publication.version) + 1 :]
        else:
            layers.append(publication.version)
    return layers[-2] if len(layers) > 1 else None
