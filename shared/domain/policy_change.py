"""What another policy version would have chosen: the rule, run again on recorded decisions.

Nothing is guessed but one thing: whether a call left its output tokens to the policy is not
recorded, so one that reserved exactly the policy's default is taken for one that did.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from shared.domain.candidate import Catalog, decimal_text
from shared.domain.policy_version import PolicyVersion
from shared.domain.routing import Decision, replay_on

MOST_EXAMPLES = 10
NOBODY = "refused"
_CENT = Decimal("0.01")
_ZERO = Decimal(0)


def decide_under(
    version: PolicyVersion, terms: Mapping[str, Any], catalog: Catalog, tenant_tokens: int | None
) -> Decision:
    """The decision of a recorded call, had `version` been its policy.

    `terms` are the decision's inputs without the catalogue; `tenant_tokens` is what the tenant
    wants reserved where a request says nothing, None where it leaves that to the version.
    """
    policy, features = terms["policy"], terms["features"]
    tokens = tenant_tokens or version.default_output_tokens
    asked = features["reserved_output_tokens"]
    reserved = tokens if asked == policy["default_output_tokens"] else asked
    content = version.to_json()
    return replay_on(
        catalog,
        {
            **terms,
            "features": {**features, "reserved_output_tokens": reserved},
            "policy": {
                **policy,
                "version": version.version,
                "default_output_tokens": tokens,
                "floors": content["floors"],
                "q_source": content["q_source"],
                "exploration_share": content["exploration_share"],
            },
        },
    )


@dataclass(frozen=True, slots=True)
class Change:
    """One call that would get another model, or none. Costs are projected, in USD."""

    inference_id: str
    task_type: str
    before: Decision
    after: Decision

    @property
    def models(self) -> tuple[str, str]:
        return _model(self.before), _model(self.after)

    def to_json(self) -> dict[str, Any]:
        source, target = self.models
        return {
            "inference_id": self.inference_id,
            "task_type": self.task_type,
            "from": source,
            "to": target,
            "floor_before": decimal_text(self.before.min_quality),
            "floor_after": decimal_text(self.after.min_quality),
            "projected_usd_before": _usd(self.before.projected_cost),
            "projected_usd_after": _usd(self.after.projected_cost),
        }


@dataclass(slots=True)
class Tally:
    """Calls compared. The costs are those of the calls that both versions would have routed."""

    calls: int = 0
    changed: int = 0
    refused: int = 0
    answered: int = 0
    before_usd: Decimal = _ZERO
    after_usd: Decimal = _ZERO

    def add(self, before: Decision, after: Decision) -> None:
        self.calls += 1
        self.changed += _model(before) != _model(after)
        if before.projected_cost is None or after.projected_cost is None:
            self.refused += before.chosen is not None
            self.answered += after.chosen is not None
            return
        self.before_usd += before.projected_cost
        self.after_usd += after.projected_cost

    def to_json(self) -> dict[str, Any]:
        """`refused` would be refused and are not, `answered` the other way round."""
        difference = self.after_usd - self.before_usd
        return {
            "calls": self.calls,
            "changed": self.changed,
            "changed_percent": _percent(Decimal(self.changed), Decimal(self.calls)),
            "refused": self.refused,
            "answered": self.answered,
            "projected_usd": {
                "before": _usd(self.before_usd),
                "after": _usd(self.after_usd),
                "difference": _usd(difference),
                "percent": _percent(difference, self.before_usd),
            },
        }


@dataclass(slots=True)
class Comparison:
    """Two versions on the same calls: in all, by task type, from model to model, and examples."""

    total: Tally = field(default_factory=Tally)
    by_task: dict[str, Tally] = field(default_factory=dict)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Change] = field(default_factory=list)

    def add(self, inference_id: str, before: Decision, after: Decision) -> Change | None:
        """Count a call; the change, if it would get another model or none."""
        self.total.add(before, after)
        self.by_task.setdefault(before.task_type, Tally()).add(before, after)
        change = Change(inference_id, before.task_type, before, after)
        if len(set(change.models)) == 1:
            return None
        self.moves[change.models] += 1
        # the first of each move is worth more than ten of the same
        if len(self.examples) < MOST_EXAMPLES and (
            self.moves[change.models] == 1 or len(self.examples) < MOST_EXAMPLES // 2
        ):
            self.examples.append(change)
        return change

    def to_json(self) -> dict[str, Any]:
        ordered = sorted(self.moves.items(), key=lambda move: (-move[1], move[0]))
        return {
            **self.total.to_json(),
            "by_task_type": {task: self.by_task[task].to_json() for task in sorted(self.by_task)},
            "moves": [{"from": a, "to": b, "calls": calls} for (a, b), calls in ordered],
            "examples": [change.to_json() for change in self.examples],
        }


def _model(decision: Decision) -> str:
    return NOBODY if decision.chosen is None else decision.chosen.slug


def _usd(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:.9f}"


def _percent(part: Decimal, whole: Decimal) -> str | None:
    """With two places; None of nothing."""
    return None if whole == 0 else f"{(part * 100 / whole).quantize(_CENT)}"
