"""What was seen of models, as an input of the rule: how long they take, how well they do.

The rule takes no part in the measuring. What it used stands in the receipt, so that a decision
replays after the numbers have moved on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from shared.domain.pricing import to_nano

QSource = Literal["prior", "empirical"]


@dataclass(frozen=True, slots=True)
class Empirical:
    """How well a model did at one type of task: `q` and its `lower` bound in 0..1, from `n` calls.

    At most nine places. The rule counts on the lower bound.
    """

    q: Decimal
    lower: Decimal
    n: int
    lower_nano: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower_nano", to_nano(self.lower))

    def to_json(self) -> dict[str, Any]:
        return {"q": f"{self.q:f}", "lower": f"{self.lower:f}", "n": self.n}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Empirical":
        return cls(Decimal(str(data["q"])), Decimal(str(data["lower"])), int(data["n"]))


@dataclass(frozen=True, slots=True)
class Evidence:
    """By slug: the observed p95 latency in milliseconds, and the quality at the request's task."""

    latencies: Mapping[str, int] = field(default_factory=dict)
    empirical: Mapping[str, Empirical] = field(default_factory=dict)

    def of(self, slugs: Mapping[str, Any], timed: bool, measured: bool) -> "Evidence":
        """Only what a decision over these models looks at: what it does not use is not recorded."""
        if not timed and not measured:
            return NO_EVIDENCE
        return Evidence(
            {s: ms for s, ms in self.latencies.items() if s in slugs} if timed else {},
            {s: found for s, found in self.empirical.items() if s in slugs} if measured else {},
        )

    def to_json(self) -> dict[str, Any]:
        """`{latencies, empirical}`, by slug in order."""
        return {
            "latencies": {slug: self.latencies[slug] for slug in sorted(self.latencies)},
            "empirical": {s: self.empirical[s].to_json() for s in sorted(self.empirical)},
        }

    @classmethod
    def from_json(cls, inputs: Mapping[str, Any]) -> "Evidence":
        """Of a receipt's `inputs`; those of an older one have none."""
        found = inputs.get("empirical") or {}
        return cls(
            dict(inputs.get("latencies") or {}),
            {slug: Empirical.from_json(data) for slug, data in found.items()},
        )


NO_EVIDENCE = Evidence()
