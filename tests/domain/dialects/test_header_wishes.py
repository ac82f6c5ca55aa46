"""Wishes that headers say: where the body does not, and in the same words."""

from typing import Any

import pytest

from shared.domain.dialects import DIALECTS
from shared.domain.dialects.wishes import HINT_HEADERS, hear_headers
from shared.domain.inference import Dialect, InferenceRequest, InvalidRequest

SAID = {
    "x-ainfera-priority": "quality",
    "x-ainfera-data-class": "internal",
    "x-ainfera-region": "eu-west-1",
}


def request(dialect: Dialect = Dialect.NATIVE, **hint: Any) -> InferenceRequest:
    body = {
        "model": "ainfera-inference",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "Hi."}],
        "routing_hint": hint,
    }
    return DIALECTS[dialect].parse_request(body)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_headers_say_what_the_body_does_not(dialect: Dialect) -> None:
    heard = hear_headers(request(dialect, min_quality=0.7), SAID).hint
    assert heard.routing_preference == "quality"
    assert (heard.data_class, heard.region) == ("internal", "eu-west-1")
    assert heard.min_quality is not None  # the rest of the hint stays


def test_the_body_wins() -> None:
    said = request(routing_preference="cost", data_class="restricted", region="us")
    assert hear_headers(said, SAID).hint == said.hint


def test_without_such_headers_it_is_the_same_request() -> None:
    plain = request()
    assert hear_headers(plain, {"traceparent": "x", "anthropic-version": "y"}) is plain


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-ainfera-data-class", "Public"),
        ("x-ainfera-data-class", ""),
        ("x-ainfera-region", "EU"),
        ("x-ainfera-region", "eu "),
        ("x-ainfera-region", "-eu"),
        ("x-ainfera-region", "e" * 65),
    ],
)
def test_an_unknown_word_is_refused_by_the_headers_name(header: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        hear_headers(request(), {header: value})
    assert refused.value.param == header
    # also where the body says it: a word that nobody could mean is a mistake wherever it stands
    with pytest.raises(InvalidRequest):
        hear_headers(request(data_class="public", region="eu"), {header: value})


def test_an_unknown_preference_is_not_refused() -> None:
    """It means `balanced`, in a header as in a body."""
    heard = hear_headers(request(), {"x-ainfera-priority": "fast"})
    assert heard.hint.routing_preference == "fast"


def test_the_headers_are_named_after_their_wishes() -> None:
    assert set(HINT_HEADERS.values()) == SAID.keys()
