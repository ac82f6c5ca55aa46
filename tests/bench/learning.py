"""A simulated day with a difference of quality hidden in it, and the report on it.

    python -m tests.bench.learning [--seed 7] [--calls 10000]

Calls of four kinds are routed by the real rule over the real catalogue, under a policy that
explores: each call's id is the seed of its draw. How good a model's answers are, the generator
knows and the report does not:

- code: the cheapest model that clears the floor is worse than its prior says; the next is better.
- tool_use: the same, but next to nothing of it was called: there is no support to say so.
- extraction: all models are as good as each other.
- chat: whatever the answers are, nothing in them can be checked.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shared.catalog import load_catalog
from shared.domain.candidate import Catalog
from shared.domain.comparison import Chooser, Compared, Gathered, Recorded, compare, gather
from shared.domain.evidence import NO_EVIDENCE, Evidence
from shared.domain.learning import Terms
from shared.domain.learning_report import as_text
from shared.domain.routing import Decision, decide
from shared.domain.routing_policy import CallerPolicy, RequestFeatures

SEED, CALLS = 7, 10_000
SHARE = Decimal("0.10")
TERMS = Terms(min_support=50)
POLICY = CallerPolicy(version="task-floors-1", exploration_share=SHARE)
ACTIVE = frozenset(("anthropic", "openai", "google", "mistral", "xai"))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of call: how often it comes, how good answers are, and whether they are checked.

    `worst` is the chance of a good answer of the rule's own choice, `others` of all the rest.
    """

    task_type: str
    often: int
    worst: float
    others: float
    checked: bool = True


HIDDEN = (
    Kind("code", 60, worst=0.62, others=0.93),
    Kind("tool_use", 2, worst=0.62, others=0.93),
    Kind("extraction", 20, worst=0.93, others=0.93),
    Kind("chat", 18, worst=0.97, others=0.97, checked=False),
)
NOTHING_HIDDEN = tuple(
    Kind(kind.task_type, kind.often, 0.93, 0.93, kind.checked) for kind in HIDDEN
)


def a_day(
    catalog: Catalog,
    seed: int,
    calls: int,
    kinds: tuple[Kind, ...] = HIDDEN,
    policy: CallerPolicy = POLICY,
    seen: Evidence = NO_EVIDENCE,
) -> Iterator[Recorded]:
    """Recorded calls, the same for the same seed."""
    dice = random.Random(seed)
    weights = [kind.often for kind in kinds]
    for number in range(calls):
        (kind,) = dice.choices(kinds, weights)
        asked = RequestFeatures(
            task_type=kind.task_type,
            input_tokens=dice.choice((200, 1_000, 4_000)),
            reserved_output_tokens=1_024,
        )
        decision = decide(asked, catalog, policy, ACTIVE, False, f"{seed}-{number}", seen)
        yield _answered(decision, kind, dice)


def _answered(decision: Decision, kind: Kind, dice: random.Random) -> Recorded:
    """The call as it would be recorded: its id was the seed of its decision."""
    assert decision.chosen is not None
    good = dice.random() < (kind.others if decision.explored else kind.worst)
    return Recorded(
        inference_id=decision.seed,
        task_type=kind.task_type,
        band="balanced",
        chosen=decision.chosen.slug,
        model=decision.chosen.slug,
        failed_models=(),
        reward=int(good),
        checked=kind.checked,
        age_days=0,
        terms=decision.terms(),
        catalog_hash=decision.catalog.hash,
    )


def the_report(
    calls: list[Recorded], catalogs: Mapping[str, list[dict[str, Any]]], terms: Terms = TERMS
) -> tuple[Gathered, list[Compared]]:
    found = gather(calls, Chooser(catalogs), terms, seed="1")
    return found, compare(found, terms.min_support)


def main() -> None:
    parser = argparse.ArgumentParser(description="The report on a simulated day.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--calls", type=int, default=CALLS)
    told = parser.parse_args()
    catalog = load_catalog()
    day = list(a_day(catalog, told.seed, told.calls))
    found, judged = the_report(day, {catalog.hash: catalog.to_json()})
    sys.stdout.write(as_text(found, judged, TERMS.min_support))


if __name__ == "__main__":
    main()
