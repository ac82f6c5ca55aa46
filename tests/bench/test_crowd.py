"""What the clients of a crowd make of an answer: that a hole or a second end would be noticed."""

import pytest

from tests.bench.crowd_clients import DIALECTS, judge

ERRORS = {
    "anthropic": b'event: error\ndata: {"type": "error", "error": {"type": "api_error"}}\n\n',
    "openai": b'data: {"error": {"code": "provider_error"}}\n\ndata: [DONE]\n\n',
    "native": b'event: error\ndata: {"error": "provider_error"}\n\n',
}
EVERY_DIALECT = pytest.mark.parametrize("dialect", list(DIALECTS))


def words(*numbers: int) -> bytes:
    return b"".join(b'data: {"text": "word%d "}\nid: 1\n\n' % number for number in numbers)


def end(dialect: str) -> bytes:
    return DIALECTS[dialect][1] + b"\n\n"


@EVERY_DIALECT
def test_what_may_be(dialect: str) -> None:
    complete = judge(dialect, 200, words(0, 1, 2) + end(dialect), 3, whole=True)
    assert (complete.kind, complete.words) == ("complete", 3)
    error = judge(dialect, 200, words(0, 1) + ERRORS[dialect], 3, whole=True)
    assert (error.kind, error.words) == ("error", 2)
    refused = ERRORS[dialect].partition(b"data: ")[2].partition(b"\n")[0]
    assert judge(dialect, 503, refused, 3, whole=True).kind == "error"


@EVERY_DIALECT
def test_what_may_not_be(dialect: str) -> None:
    finish, error = end(dialect), ERRORS[dialect]
    odd = {
        "a hole": words(0, 2) + finish,
        "a repetition": words(0, 1, 1, 2) + finish,
        "a splice": words(0, 1, 0, 1, 2) + finish,
        "too short": words(0, 1) + finish,
        "no end": words(0, 1, 2),
        "two ends": words(0, 1, 2) + finish + finish,
        "an end and an error": words(0, 1, 2) + finish + error,
        "two errors": words(0, 1) + error + error,
        "words after an error": words(0, 1) + error + words(2),
    }
    kinds = {what: judge(dialect, 200, said, 3, whole=True).kind for what, said in odd.items()}
    assert kinds == dict.fromkeys(odd, "odd")
    assert judge(dialect, 200, words(0, 1, 2) + finish, 3, whole=False).kind == "odd"
    assert judge(dialect, 502, b"<html>Bad gateway</html>", 3, whole=True).kind == "odd"
