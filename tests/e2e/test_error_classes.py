"""Each refusal is the exception that the unmodified SDK has for it, in the vendor's own shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import anthropic
import openai
import pytest

from tests.e2e.conftest import ONLY_WORDS, Signup
from tests.e2e.stack import Stack
from tests.e2e.test_anthropic_sdk import WEATHER, asking

HELLO = asking("Say hello.")
DEAR: Any = {"model": "claude-opus-4-7", "max_tokens": 80_000}


@dataclass(frozen=True)
class Wrong:
    """A call that must be refused: how it is made wrong, and what both SDKs must make of it."""

    name: str
    status: int
    code: str
    claude: type[anthropic.APIStatusError]
    claude_type: str
    gpt: type[openai.APIStatusError]
    wish: dict[str, Any]
    signup: dict[str, Any]
    key: str | None = None
    about: str = ""


CHEAP: Any = {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": HELLO}
WRONG = [
    Wrong(
        "unknown key",
        401,
        "invalid_api_key",
        anthropic.AuthenticationError,
        "authentication_error",
        openai.AuthenticationError,
        CHEAP,
        {},
        key="ainfera_" + "x" * 43,
    ),
    Wrong(
        "somebody else's agent",
        404,
        "not_found",
        anthropic.NotFoundError,
        "not_found_error",
        openai.NotFoundError,
        {**CHEAP, "extra_headers": {"X-Ainfera-Agent-Id": str(uuid4())}},
        {},
    ),
    Wrong(
        "no messages",
        400,
        "invalid_request",
        anthropic.BadRequestError,
        "invalid_request_error",
        openai.BadRequestError,
        {**CHEAP, "messages": []},
        {},
        about="messages",
    ),
    Wrong(
        "a field of the wrong type",
        400,
        "invalid_request",
        anthropic.BadRequestError,
        "invalid_request_error",
        openai.BadRequestError,
        {**CHEAP, "extra_body": {"temperature": "hot"}},
        {},
        about="temperature",
    ),
    Wrong(
        "more than the wallet holds",
        402,
        "insufficient_funds",
        anthropic.APIStatusError,
        "billing_error",
        openai.APIStatusError,
        {**DEAR, "messages": HELLO},
        {},
    ),
    Wrong(
        "more than a cap allows",
        403,
        "spend_policy_exceeded",
        anthropic.PermissionDeniedError,
        "permission_error",
        openai.PermissionDeniedError,
        {**DEAR, "messages": HELLO},
        {"per_call_cap_usd": "0.01"},
    ),
    Wrong(
        "a model that is in no catalogue",
        422,
        "model_unavailable",
        anthropic.UnprocessableEntityError,
        "invalid_request_error",
        openai.UnprocessableEntityError,
        {**CHEAP, "model": "gpt-nonesuch"},
        {},
        about="gpt-nonesuch",
    ),
    Wrong(
        "a floor that no model clears",
        422,
        "no_candidate_clears_floor",
        anthropic.UnprocessableEntityError,
        "invalid_request_error",
        openai.UnprocessableEntityError,
        {
            **CHEAP,
            "model": "ainfera-inference",
            "extra_body": {"routing_hint": {"min_quality": 0.99}},
        },
        {},
    ),
    Wrong(
        "a body over the limit",
        413,
        "request_too_large",
        anthropic.RequestTooLargeError,
        "request_too_large",
        openai.APIStatusError,
        {**CHEAP, "messages": asking("x" * (1024 * 1024))},
        {},
    ),
]
EACH = pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
# refused by a worker, and so with an id under which the refusal can be read
WITH_AN_ID = {402, 403, 422}


def key_of(wrong: Wrong, signup: Signup) -> str:
    key: str = wrong.key or signup("refused", **wrong.signup).api_key
    return key


@EACH
@pytest.mark.parametrize("streamed", [False, True])
def test_anthropic(
    any_claude: anthropic.Anthropic, signup: Signup, wrong: Wrong, streamed: bool
) -> None:
    client = any_claude.with_options(api_key=key_of(wrong, signup))
    with pytest.raises(wrong.claude) as refused:
        client.messages.create(**wrong.wish, stream=streamed)

    error = refused.value
    assert error.status_code == wrong.status
    body: Any = error.body
    assert body["type"] == "error"
    assert body["error"]["type"] == wrong.claude_type
    assert wrong.about in body["error"]["message"]
    assert body["ainfera"]["code"] == wrong.code
    check_headers(error.response.headers, wrong.status, body["request_id"])


@EACH
@pytest.mark.parametrize("streamed", [False, True])
def test_openai(any_gpt: openai.OpenAI, signup: Signup, wrong: Wrong, streamed: bool) -> None:
    client = any_gpt.with_options(api_key=key_of(wrong, signup))
    with pytest.raises(wrong.gpt) as refused:
        client.chat.completions.create(**wrong.wish, stream=streamed)

    error = refused.value
    assert error.status_code == wrong.status
    assert error.code == wrong.code
    assert error.type
    assert wrong.about in error.message
    body = error.response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    check_headers(error.response.headers, wrong.status, body["ainfera"].get("inference_id"))


def check_headers(headers: Mapping[str, str], status: int, inference_id: str | None) -> None:
    assert headers["content-type"] == "application/json"
    assert headers.get("x-ainfera-inference-id") == inference_id
    if status in WITH_AN_ID:
        assert inference_id
        assert UUID(inference_id)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "nonsense"}, {"authorization": "Bearer x"}])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1/inference"])
def test_every_bad_key_gets_the_same_answer(
    stack: Stack, path: str, headers: dict[str, str]
) -> None:
    """No key, a malformed one and an unknown one cannot be told apart."""
    unknown = {"authorization": f"Bearer ainfera_{'y' * 43}"}
    answers = [
        stack.request("POST", path, json={"model": "m"}, headers=h) for h in (headers, unknown)
    ]
    assert [a.status_code for a in answers] == [401, 401]
    assert answers[0].content == answers[1].content


def test_a_native_422_names_model_and_provider_at_the_top(stack: Stack, signup: Signup) -> None:
    key = signup("native").api_key
    answer = stack.request(
        "POST",
        "/v1/inference",
        json={"model": "grok-4", "messages": HELLO},
        headers={"authorization": f"Bearer {key}"},
    )
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "model_unavailable")
    assert (body["model"], body["provider"]) == ("grok-4", "xai")
    assert body["message"]
    assert body["detail"]["hint"]


def test_tools_for_a_model_without_them_are_never_dropped(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.UnprocessableEntityError) as refused:
        claude.messages.create(**{**CHEAP, "model": ONLY_WORDS}, tools=[WEATHER])
    body: Any = refused.value.body
    assert body["ainfera"]["code"] == "tools_not_supported_by_backend"
    assert ONLY_WORDS in body["error"]["message"]
