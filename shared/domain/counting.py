"""Counts in sentences."""

import re


def counted(number: int, noun: str, many: str | None = None) -> str:
    """`1 call`, `2 calls`, `2 entries`; `many` is the noun for more than one, else with an s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def one_of(many: str) -> str:
    """What one of them is called: `wallet with a grant` of `wallets with a grant`."""
    return re.sub(r"s\b", "", many, count=1)


def listed(names: list[str], last: str) -> str:
    """`GET`, `GET and POST`, `a, b or c`."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
