"""Bodies that would be answered and could not be written down."""

from typing import Any

import pytest

from shared.domain.dialects import DIALECTS
from shared.domain.inference import Dialect, InvalidRequest


@pytest.mark.parametrize(
    "hint",
    [
        {"deny": ["\u0000"]},
        {"allow": ["a" * 513]},
        {"budget_cap_usd": "1e70000000"},
        {"budget_cap_usd": "0E-1000000"},
        {"latency_cap_ms": 1e300},
        {"min_quality": "1e-70000000"},
    ],
)
@pytest.mark.parametrize("dialect", list(Dialect))
def test_what_the_books_cannot_hold_is_refused(dialect: Dialect, hint: dict[str, Any]) -> None:
    body = {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hi"}],
        "routing_hint": hint,
    }
    with pytest.raises(InvalidRequest):
        DIALECTS[dialect].parse_request(body)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_model_is_a_name_and_not_a_book(dialect: Dialect) -> None:
    for model in ("a\u0000b", "m" * 513):
        body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        with pytest.raises(InvalidRequest):
            DIALECTS[dialect].parse_request(body)
