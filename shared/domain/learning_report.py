"""The report on a change of rule: plain words first, the table below; and the same as JSON."""

from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from shared.domain.comparison import (
    Compared,
    Gathered,
    Interval,
    Method,
    Overall,
    Verdict,
    overall,
)

NANO_PER_USD_1000 = Decimal(1_000_000)  # nano-USD a call -> USD a thousand calls
_SHARE, _MONEY = Decimal("0.001"), Decimal("0.0001")
NOTHING = "-"
HEADINGS = (
    *("task type", "band", "from", "to", "calls", "answers", "good before", "good after"),
    *("difference (99 %)", "USD a 1,000 calls (99 %)", "compared by", "verdict"),
)


def as_text(found: Gathered, judged: Sequence[Compared], min_support: int) -> str:
    """The whole report in Markdown."""
    together = overall(judged)
    lines = [*_verdict(found, judged, together, min_support), ""]
    for each in judged:
        lines += [_sentence(each, min_support), ""]
    if judged:
        lines += [*_table(judged), ""]
    lines += [*_method(found, judged), ""]
    return "\n".join(lines)


def as_json(found: Gathered, judged: Sequence[Compared], min_support: int) -> dict[str, Any]:
    """Shares and dollars as decimal text, intervals as `[value, lower, upper]`."""
    together = overall(judged)
    return {
        "supported": together.is_supported,
        "verdict": " ".join(_verdict(found, judged, together, min_support)).replace("**", ""),
        "calls": {
            "fit": found.fit,
            "held_out": found.held,
            "same_choice": found.same,
            "switched": together.switched,
            "switched_with_support": together.supported,
        },
        "min_support": min_support,
        "reward": _shares(together.reward),
        "cost_usd_per_1000": _dollars(together.cost),
        "qualities": found.qualities,
        "cells": [
            {
                "task_type": each.switch.task_type,
                "band": each.switch.band,
                "from": each.switch.old,
                "to": each.switch.new,
                "calls": each.switch.calls,
                "method": each.method,
                "answers": [each.answers_old, each.answers_new],
                "good": [str(_share(each.reward_old)), str(_share(each.reward_new))],
                "reward": _shares(each.reward),
                "cost_usd_per_1000": _dollars(each.cost),
                "verdict": each.verdict,
                "supported": each.verdict.supported,
            }
            for each in judged
        ],
    }


def _verdict(
    found: Gathered, judged: Sequence[Compared], together: Overall, min_support: int
) -> Iterator[str]:
    if not found.held:
        yield "**Not supported: too few.** There is no call with a known result to judge by."
        yield "Answers with code, JSON or tools, and errors, are judged as they come."
        return
    if not any(found.qualities.values()):
        yield (
            "**Not supported: too few.** No model has enough answers that could be checked"
            f" ({min_support} of one task type) for its quality to be estimated. The rule stays"
            " with its priors."
        )
        return
    if not judged:
        yield (
            "**Nothing would change.** The rule chooses the same models with the observed"
            f" qualities as it did, in all {found.held:,} calls that were looked at."
        )
        return
    told = f"Of {found.held:,} calls, {together.switched:,} would go to another model"
    told += f"; for {together.supported:,} of them the records say that this is an improvement."
    if together.is_supported:
        yield f"**Supported.** {told} {_gain(together)}"
    else:
        why = [
            f"{calls:,} of the calls that would change {what}"
            for calls, what in (
                (together.too_few, "have too few answers to compare"),
                (together.worse, "would get worse answers"),
            )
            if calls
        ]
        reason = "; ".join(why) or "most changes make no difference that can be told"
        yield f"**Not supported: {reason}.** {told}"


def _gain(together: Overall) -> str:
    reward, cost = together.reward, together.cost
    more_or_less = "more" if cost.value >= 0 else "less"
    return (
        f"There, {_points(reward.value)} more of a hundred answers would be good"
        f" (between {_points(reward.lower)} and {_points(reward.upper)}), and a thousand calls"
        f" would cost {abs(_usd(cost.value)):f} USD {more_or_less}."
    )


def _sentence(each: Compared, min_support: int) -> str:
    switch = each.switch
    where = f"- {switch.task_type} ({switch.band}), {switch.old} to {switch.new}:"
    if each.verdict is Verdict.TOO_FEW:
        return (
            f"{where} not supported: too few answers. There are {each.answers_old:,} of"
            f" {switch.old} and {each.answers_new:,} of {switch.new}; {min_support:,} of each are"
            " needed."
        )
    good = f"{_points(each.reward_old)} of a hundred answers were good with {switch.old}"
    good += f", {_points(each.reward_new)} with {switch.new}"
    return f"{where} {each.verdict}. {good}."


def _table(judged: Sequence[Compared]) -> Iterator[str]:
    yield "| " + " | ".join(HEADINGS) + " |"
    yield "| " + " | ".join("---" for _ in HEADINGS) + " |"
    for each in judged:
        switch, known = each.switch, each.answers_old and each.answers_new
        cells = (
            *(switch.task_type, switch.band, switch.old, switch.new, f"{switch.calls:,}"),
            f"{each.answers_old:,} / {each.answers_new:,}",
            str(_share(each.reward_old)) if each.answers_old else NOTHING,
            str(_share(each.reward_new)) if each.answers_new else NOTHING,
            _signed([_share(part) for part in each.reward]) if known else NOTHING,
            _signed([_usd(part) for part in each.cost]),
            *(each.method, each.verdict),
        )
        yield "| " + " | ".join(cells) + " |"


def _method(found: Gathered, judged: Sequence[Compared]) -> Iterator[str]:
    yield (
        f"How this was found: {found.fit:,} calls were used to estimate qualities, {found.held:,}"
        " others to judge by; which is which a seeded hash says. A good answer ended by itself"
        " and failed no check that needs no judge. The new choice takes the lower bound of what"
        " was observed in place of the quality that counted, where there is enough of it. `answers`"
        " counts those of both models, weighted ones as so many equal ones."
    )
    methods = {each.method for each in judged}
    if Method.DRAWN in methods:
        yield (
            f"\n`{Method.DRAWN}`: calls were drawn for exploration, so the two models had calls of"
            " one kind; answers are weighted by the inverse of their chance."
        )
    if Method.MATCHED in methods:
        yield (
            f"\n`{Method.MATCHED}`: nobody drew which calls each model got; only their cell was"
            " the same. Other differences between the calls may be taken for the models'."
        )


def _share(value: Decimal) -> Decimal:
    return value.quantize(_SHARE, ROUND_HALF_UP)


def _points(value: Decimal) -> str:
    return f"{(value * 100).quantize(Decimal('0.1'), ROUND_HALF_UP):f}"


def _usd(nano: Decimal) -> Decimal:
    return (nano / NANO_PER_USD_1000).quantize(_MONEY, ROUND_HALF_UP)


def _signed(parts: Sequence[Decimal]) -> str:
    value, lower, upper = (f"{part:+f}" for part in parts)
    return f"{value} ({lower} to {upper})"


def _shares(interval: Interval) -> list[str]:
    return [str(_share(part)) for part in interval]


def _dollars(interval: Interval) -> list[str]:
    return [f"{_usd(part):f}" for part in interval]
