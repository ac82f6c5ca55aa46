"""Failures as each vendor's SDK understands them, before and within a stream."""

import json
from typing import Any

import ainfera.exceptions
import anthropic as anthropic_package
import openai as openai_package
import pytest
from ainfera._internal import http as ainfera_http

from shared.domain.dialects import DIALECTS, anthropic, native, openai
from shared.domain.inference import (
    DONE_FRAME,
    Dialect,
    Failed,
    Failure,
    Started,
    StreamEvent,
    TextDelta,
)
from shared.errors import (
    AinferaError,
    InsufficientFunds,
    InternalError,
    ModelUnavailable,
    Overloaded,
    RateLimited,
    SpendPolicyExceeded,
)
from tests.domain.dialects.answers import rendered
from tests.domain.dialects.vendors import (
    CALL,
    anthropic_sdk,
    anthropic_server,
    openai_chunks,
    openai_sdk,
    openai_server,
    read_with_anthropic,
)


def leaves(kind: type[AinferaError] = AinferaError) -> list[type[AinferaError]]:
    below = kind.__subclasses__()
    return [leaf for sub in below for leaf in leaves(sub)] if below else [kind]


ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    410: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
ANTHROPIC_RAISES: dict[int, type[Exception]] = {
    400: anthropic_package.BadRequestError,
    401: anthropic_package.AuthenticationError,
    403: anthropic_package.PermissionDeniedError,
    404: anthropic_package.NotFoundError,
    409: anthropic_package.ConflictError,
    422: anthropic_package.UnprocessableEntityError,
    429: anthropic_package.RateLimitError,
    500: anthropic_package.InternalServerError,
}
OPENAI_RAISES: dict[int, type[Exception]] = {
    400: openai_package.BadRequestError,
    401: openai_package.AuthenticationError,
    403: openai_package.PermissionDeniedError,
    404: openai_package.NotFoundError,
    409: openai_package.ConflictError,
    422: openai_package.UnprocessableEntityError,
    429: openai_package.RateLimitError,
    500: openai_package.InternalServerError,
}


@pytest.mark.parametrize("kind", leaves())
def test_every_error_in_the_anthropic_shape(kind: type[AinferaError]) -> None:
    failure = kind("what went wrong").failure()
    body = anthropic.render_failure(failure, "inf-1")
    assert (body["type"], body["request_id"]) == ("error", "inf-1")
    assert body["error"] == {"type": ANTHROPIC_TYPES[kind.status], "message": "what went wrong"}
    assert body["ainfera"]["code"] == kind.code
    status = anthropic.http_status(failure)
    assert status == (529 if kind.status == 503 else kind.status)
    anthropic_server.answers(json.dumps(body).encode(), status)
    wanted = ANTHROPIC_RAISES.get(status, anthropic_package.APIStatusError)
    with pytest.raises(wanted, match="what went wrong") as caught:
        anthropic_sdk.messages.create(
            model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]
        )
    assert isinstance(caught.value, anthropic_package.APIStatusError)
    assert caught.value.status_code == status


@pytest.mark.parametrize("kind", leaves())
def test_every_error_in_the_openai_shape(kind: type[AinferaError]) -> None:
    failure = kind("what went wrong", param="messages[0]").failure()
    body = openai.render_failure(failure, "inf-1")
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (kind.code, "messages[0]")
    assert body["ainfera"]["inference_id"] == "inf-1"
    assert openai.http_status(failure) == kind.status
    openai_server.answers(json.dumps(body).encode(), kind.status)
    wanted = OPENAI_RAISES.get(kind.status, openai_package.APIStatusError)
    with pytest.raises(wanted, match="what went wrong") as caught:
        openai_sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert isinstance(caught.value, openai_package.APIStatusError)
    assert (caught.value.status_code, caught.value.code) == (kind.status, kind.code)


@pytest.mark.parametrize("kind", leaves())
def test_every_error_in_the_native_shape(kind: type[AinferaError]) -> None:
    failure = kind("what went wrong", model="gpt-5-5", provider="openai").failure()
    body = native.render_failure(failure, "inf-1")
    said = {"model": "gpt-5-5", "provider": "openai", "inference_id": "inf-1"}
    assert body == {"code": kind.code, "message": "what went wrong", "detail": said, **said}
    assert native.http_status(failure) == kind.status


def test_a_detail_never_replaces_what_the_body_says_itself() -> None:
    failure = Failure("not_found", 404, "gone", {"code": "x", "message": "y", "detail": "z"})
    body = native.render_failure(failure, None)
    assert body == {"code": "not_found", "message": "gone", "detail": {}}
    assert "inference_id" not in openai.render_failure(failure, None)["ainfera"]


class _Answer:
    """As much of a response as the package's error mapping looks at."""

    def __init__(self, failure: Failure) -> None:
        self.status_code, self.reason_phrase = native.http_status(failure), "-"
        self._body = native.render_failure(failure, "inf-1")

    def json(self) -> dict[str, Any]:
        return self._body


def test_the_ainfera_package_knows_our_errors() -> None:
    map_error: Any = ainfera_http._map_error
    unavailable = map_error(
        _Answer(ModelUnavailable("use another", model="m", provider="p").failure())
    )
    assert isinstance(unavailable, ainfera.exceptions.ModelUnavailable)
    assert (unavailable.model, unavailable.provider) == ("m", "p")
    poor = map_error(_Answer(InsufficientFunds("top up").failure()))
    assert isinstance(poor, ainfera.exceptions.WalletInsufficient)
    capped = map_error(_Answer(SpendPolicyExceeded("over the cap").failure()))
    assert isinstance(capped, ainfera.exceptions.SpendPolicyExceeded)
    assert "over the cap" in str(capped)


@pytest.mark.parametrize("kind", [Overloaded, RateLimited, InternalError])
def test_a_stream_that_breaks_raises_in_both_sdks(kind: type[AinferaError]) -> None:
    failure = kind("it broke").failure()
    events: list[StreamEvent] = [Started("up"), TextDelta("so far"), Failed(failure)]
    with pytest.raises(anthropic_package.APIStatusError, match="it broke"):
        read_with_anthropic(rendered(events, Dialect.ANTHROPIC))
    frames = rendered(events, Dialect.OPENAI)
    assert frames[-1] == DONE_FRAME
    with pytest.raises(openai_package.APIError, match="it broke"):
        openai_chunks(frames)
    name, data = rendered(events, Dialect.NATIVE)[-1]
    assert name == "error"
    assert data == native.render_failure(failure, CALL.inference_id)


def test_the_anthropic_error_frame_names_its_event() -> None:
    failure = Overloaded("busy").failure()
    state = anthropic.RenderState(CALL)
    ((name, data),) = anthropic.render_event(Failed(failure), state)
    assert name == "error"
    assert data["error"] == {"type": "overloaded_error", "message": "busy"}


def test_all_dialects_are_there() -> None:
    assert set(DIALECTS) == set(Dialect)
