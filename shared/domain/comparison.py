"""What recorded traffic says of a change of rule: observed qualities in place of the priors.

Traffic is split in two by a seeded hash. From one half qualities are estimated, and the rule is run
again with their lower bounds. Where it would choose another model than it did (exploration apart),
the other half says whether that would have been better. It can say so only of what happened there
(off-policy evaluation):

- where calls were drawn for exploration, each answer is weighted by the inverse of the chance that
  it had to be chosen (Horvitz and Thompson, 1952, with the weights' own sum as the divisor);
- else answers of the two models in the same cell are compared as they are. That is weaker: those
  calls may have been easier, for nobody drew which model would get them.

An answer is that of the call, fallbacks included: that is what its client gets for a choice.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from enum import StrEnum
from typing import Any, NamedTuple

from shared.domain.candidate import Candidate, Catalog
from shared.domain.learning import (
    EXACT,
    NO_EVIDENCE,
    Evidence,
    Offered,
    Tally,
    Terms,
    estimates,
    inverse_weight,
    offered,
    unit_weight,
    wilson,
)
from shared.domain.routing import replay_on

# 99.5 % of a normal distribution lie below: 99 %, as many cells are looked at at once
Z_VERDICT = Decimal("2.575829")
# As good is what is not worse by more than this share of answers.
MARGIN = Decimal("0.02")
_HASHES = 2**64


def held_out(inference_id: str, seed: str, percent: int) -> bool:
    """Whether a call is kept from the estimates, to judge them by; about `percent` of all are."""
    digest = hashlib.sha256(f"{seed}:{inference_id}".encode()).digest()
    return int.from_bytes(digest[:8]) * 100 < percent * _HASHES


@dataclass(frozen=True, slots=True)
class Recorded:
    """A routed call with its reward, and the decision as it was stored, without the catalogue.

    `chosen` is the rule's choice, `model` whose answer it was; they differ after a fallback.
    `quoted`: its client had seen the choice before it decided to make the call, so nobody knows
    what chance the model had to be asked.
    """

    inference_id: str
    task_type: str
    band: str
    chosen: str
    model: str
    failed_models: Sequence[str]
    reward: int | None
    checked: bool
    age_days: int
    terms: Mapping[str, Any]
    catalog_hash: str
    quoted: bool = False


class Choice(NamedTuple):
    """The rule's choice for a call, before exploration; projected costs in nano-USD by slug.

    Exploration draws from what is `ranked` after the first.
    """

    slug: str | None
    ranked: tuple[str, ...]
    projected: Mapping[str, int]


class Chooser:
    """Runs the rule again on recorded calls. Calls that are alike are decided once."""

    def __init__(self, catalogs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._models = catalogs
        self._catalogs: dict[str, Catalog] = {}
        self._known: dict[tuple[str, str], Choice] = {}

    def choice(self, call: Recorded, qualities: Mapping[str, Offered] | None = None) -> Choice:
        """What the rule chose for this call, or would choose with these qualities.

        Without `qualities` it is the decision as it was recorded, less the exploration: with the
        qualities that counted then, priors or observed ones. The others take their place.
        """
        policy = {**call.terms["policy"], "exploration_share": "0"}
        terms = {**call.terms, "seed": "", "policy": policy}
        if qualities is not None:
            policy["q_source"] = "empirical"
            terms["empirical"] = {**(terms.get("empirical") or {}), **qualities}
        key = (call.catalog_hash, json.dumps(terms, sort_keys=True))
        if key not in self._known:
            self._known[key] = self._decide(terms, call.catalog_hash)
        return self._known[key]

    def _decide(self, terms: Mapping[str, Any], catalog_hash: str) -> Choice:
        if catalog_hash not in self._catalogs:
            models = map(Candidate.from_json, self._models[catalog_hash])
            self._catalogs[catalog_hash] = Catalog.of(models)
        decision = replay_on(self._catalogs[catalog_hash], terms)
        return Choice(
            decision.chosen.slug if decision.chosen else None,
            tuple(o.candidate.slug for o in decision.outcomes if o.rank is not None),
            {o.candidate.slug: o.projected for o in decision.outcomes if o.projected is not None},
        )


# -- gathering ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Switch:
    """Held-out calls of one cell that would go from one model to another.

    `drawn_…` are those of calls where exploration could have drawn either model; `dearer` holds
    the projected differences of cost in nano-USD, new less old.
    """

    task_type: str
    band: str
    old: str
    new: str
    calls: int = 0
    dearer: list[int] = field(default_factory=list)
    drawn_old: Evidence = NO_EVIDENCE
    drawn_new: Evidence = NO_EVIDENCE
    plain_old: Evidence = NO_EVIDENCE


@dataclass(slots=True)
class Gathered:
    """`plain` has the held-out answers of each (task type, band, chosen model)."""

    fit: int = 0
    held: int = 0
    same: int = 0
    nothing_chosen: int = 0
    switches: dict[tuple[str, str, str, str], Switch] = field(default_factory=dict)
    plain: dict[tuple[str, str, str], Evidence] = field(default_factory=dict)
    qualities: Mapping[str, Mapping[str, Offered]] = field(default_factory=dict)


def fit_qualities(calls: Iterable[Recorded], terms: Terms) -> dict[str, dict[str, Offered]]:
    """The estimates that have support, as the rule would take them."""
    tallies = []
    for call in calls:
        place = (call.band, call.age_days, 1)
        if call.reward is not None:
            tallies.append(
                Tally(call.task_type, call.model, *place, call.reward, int(call.checked))
            )
        tallies += [Tally(call.task_type, model, *place, 0, 0) for model in call.failed_models]
    return offered([each.to_json() for each in estimates(tallies, terms)])


def gather(
    calls: Iterable[Recorded], chooser: Chooser, terms: Terms, seed: str, percent: int = 50
) -> Gathered:
    """Split the calls, estimate from the one part, and look at the other."""
    fit, held = list[Recorded](), list[Recorded]()
    for call in calls:
        (held if held_out(call.inference_id, seed, percent) else fit).append(call)
    found = Gathered(fit=len(fit), qualities=fit_qualities(fit, terms))
    for call in held:
        if call.reward is not None:
            _add(call, chooser, found)
    return found


def _add(call: Recorded, chooser: Chooser, found: Gathered) -> None:
    assert call.reward is not None
    found.held += 1
    place = (call.task_type, call.band)
    plain = found.plain.get((*place, call.chosen), NO_EVIDENCE)
    found.plain[*place, call.chosen] = plain.plus(_ONE, 1, call.reward)
    old = chooser.choice(call)
    new = chooser.choice(call, found.qualities.get(call.task_type, {}))
    if old.slug is None or new.slug is None:
        found.nothing_chosen += 1
    elif old.slug == new.slug:
        found.same += 1
    else:
        key = (*place, old.slug, new.slug)
        switch = found.switches.setdefault(key, Switch(*key))
        _switched(call, switch, old)


_ONE = unit_weight(Decimal(1))


def _switched(call: Recorded, switch: Switch, old: Choice) -> None:
    """Count a call that would go elsewhere, as drawn only where its own decision could be.

    One that was planned anew without exploring, as a cap or the wallet refused what was drawn,
    recorded a share of 0: it is neither a draw nor the lack of one.
    """
    assert call.reward is not None
    switch.calls += 1
    switch.dearer.append(old.projected[switch.new] - old.projected[switch.old])
    if call.chosen == switch.old:
        switch.plain_old = switch.plain_old.plus(_ONE, 1, call.reward)
    share = Decimal(str(call.terms["policy"].get("exploration_share") or 0))
    others = len(old.ranked) - 1
    if call.quoted or not share or not others or switch.new not in old.ranked:
        return
    if call.chosen == switch.old:
        weight = inverse_weight(EXACT.subtract(Decimal(1), share))
        switch.drawn_old = switch.drawn_old.plus(weight, 1, call.reward)
    elif call.chosen == switch.new:
        weight = inverse_weight(EXACT.divide(share, Decimal(others)))
        switch.drawn_new = switch.drawn_new.plus(weight, 1, call.reward)


# -- judging -----------------------------------------------------------------------------------


class Method(StrEnum):
    DRAWN = "drawn at random"
    MATCHED = "same cell"


class Verdict(StrEnum):
    BETTER = "supported: better"
    CHEAPER = "supported: as good and cheaper"
    TOO_FEW = "not supported: too few answers"
    WORSE = "not supported: worse"
    UNCLEAR = "not supported: no difference can be told"

    @property
    def supported(self) -> bool:
        return self in (Verdict.BETTER, Verdict.CHEAPER)


class Interval(NamedTuple):
    """An estimate with the bounds that hold it with 99 % confidence."""

    value: Decimal
    lower: Decimal
    upper: Decimal


@dataclass(frozen=True, slots=True)
class Compared:
    """One switch, judged. Rewards are shares of good answers, costs nano-USD a call."""

    switch: Switch
    method: Method
    answers_old: int
    answers_new: int
    reward_old: Decimal
    reward_new: Decimal
    reward: Interval
    cost: Interval
    verdict: Verdict


def compare(found: Gathered, min_support: int) -> list[Compared]:
    """Each switch with its verdict, those of most calls first."""
    judged = [_judge(each, found, min_support) for each in found.switches.values()]
    judged.sort(key=lambda c: (-c.switch.calls, c.switch.task_type, c.switch.band, c.switch.old))
    return judged


def _judge(switch: Switch, found: Gathered, min_support: int) -> Compared:
    method, old, new = Method.DRAWN, switch.drawn_old, switch.drawn_new
    if min(old.effective, new.effective) < min_support:
        plain = found.plain.get((switch.task_type, switch.band, switch.new), NO_EVIDENCE)
        if min(plain.effective, switch.plain_old.effective) >= min_support or not new.weight:
            method, old, new = Method.MATCHED, switch.plain_old, plain
    reward, cost = difference(old, new), mean(switch.dearer)
    return Compared(
        switch,
        method,
        int(old.effective),
        int(new.effective),
        old.share,
        new.share,
        reward,
        cost,
        _verdict(min(old.effective, new.effective) >= min_support, reward, cost),
    )


def _verdict(enough: bool, reward: Interval, cost: Interval) -> Verdict:
    if not enough:
        return Verdict.TOO_FEW
    if reward.lower > 0:
        return Verdict.BETTER
    if reward.lower > -MARGIN and cost.upper < 0:
        return Verdict.CHEAPER
    return Verdict.WORSE if reward.upper < 0 else Verdict.UNCLEAR


def difference(old: Evidence, new: Evidence) -> Interval:
    """New less old share, with bounds from those of both (R. G. Newcombe, 1998, method 10)."""
    if not old.weight or not new.weight:
        return Interval(Decimal(0), Decimal(-1), Decimal(1))
    low_old, high_old = wilson(old.share, old.effective, Z_VERDICT)
    low_new, high_new = wilson(new.share, new.effective, Z_VERDICT)
    with localcontext(EXACT):
        value = new.share - old.share
        down = ((new.share - low_new) ** 2 + (high_old - old.share) ** 2).sqrt()
        up = ((high_new - new.share) ** 2 + (old.share - low_old) ** 2).sqrt()
        return Interval(value, value - down, value + up)


def mean(values: Sequence[int]) -> Interval:
    """The mean of whole numbers with its normal bounds; of fewer than two they are itself."""
    n, total = len(values), sum(values)
    with localcontext(EXACT):
        value = Decimal(total) / max(n, 1)
        squares = n * sum(v * v for v in values) - total * total
        reach = Z_VERDICT * (Decimal(squares) / (n * n * (n - 1))).sqrt() if n > 1 else Decimal(0)
        return Interval(value, value - reach, value + reach)


@dataclass(frozen=True, slots=True)
class Overall:
    """All switches together. `reward` and `cost` are of the supported ones, by their calls."""

    switched: int
    supported: int
    too_few: int
    worse: int
    reward: Interval
    cost: Interval
    is_supported: bool


# So much of what would change may lack support where the rest has it.
TOLERATED = Decimal("0.10")


def overall(judged: Sequence[Compared]) -> Overall:
    """A change goes to all cells at once: it is supported where next to all of it is, and no
    cell is known to get worse."""
    counts = dict.fromkeys(Verdict, 0)
    for each in judged:
        counts[each.verdict] += each.switch.calls
    switched = sum(counts.values())
    good = [each for each in judged if each.verdict.supported]
    supported = sum(each.switch.calls for each in good)
    enough = switched - supported <= TOLERATED * switched
    return Overall(
        switched,
        supported,
        counts[Verdict.TOO_FEW],
        counts[Verdict.WORSE],
        _together([(each.switch.calls, each.reward) for each in good]),
        _together([(each.switch.calls, each.cost) for each in good]),
        bool(supported) and enough and not counts[Verdict.WORSE],
    )


def _together(parts: Sequence[tuple[int, Interval]]) -> Interval:
    """The weighted mean of independent estimates; the distances to their bounds add in squares."""
    total = sum(weight for weight, _ in parts) or 1
    with localcontext(EXACT):
        value = sum((w * each.value for w, each in parts), Decimal(0)) / total
        down = sum(((w * (each.value - each.lower)) ** 2 for w, each in parts), Decimal(0)).sqrt()
        up = sum(((w * (each.upper - each.value)) ** 2 for w, each in parts), Decimal(0)).sqrt()
        return Interval(value, value - down / total, value + up / total)
