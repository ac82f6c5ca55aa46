"""Bodies of our own routes: what is mistyped is refused in plain words, never dropped."""

from typing import Any

import httpx
import pytest

from tests.ingress.conftest import SignUp

NOWHERE = "00000000-0000-4000-8000-000000000000"
MISTYPED = [
    ("POST", "/v1/keys", {"scopes": ["call"], "limits": {"rpm": 3}}, "limits.rpm"),
    ("POST", "/v1/keys", {"scopes": ["call"], "expires": "2030-01-01T00:00:00Z"}, "expires"),
    ("POST", "/v1/keys", {"scope": ["call"]}, "scope"),
    ("POST", f"/v1/keys/{NOWHERE}/rotate", {"overlap": 0}, "overlap"),
    ("POST", "/v1/agents/signup", {"agent_handle": "a", "daily_cap": 1}, "daily_cap"),
    ("POST", "/v1/agents/register", {"tenant_id": NOWHERE, "name": "a", "cap": 1}, "cap"),
    (
        "PATCH",
        f"/v1/agents/{NOWHERE}/spend-policy",
        {"daily_cap_usd": 1, "per_call_cap": 1},
        "per_call_cap",
    ),
    ("POST", "/v1/agents/cards/verify", {"jws": "a.b.c", "kid": "k"}, "kid"),
    ("POST", "/v1/wallets/topup", {"agent_id": NOWHERE, "amount_usd": 1, "usd": 1}, "usd"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), MISTYPED)
async def test_a_field_that_nobody_knows_is_named(
    client: httpx.AsyncClient, sign_up: SignUp, method: str, path: str, body: Any, field: str
) -> None:
    auth = (await sign_up())["auth"]
    answer = await client.request(method, path, json=body, headers=auth)
    assert answer.status_code == 400, answer.text
    said = answer.json()
    assert said["message"] == f"{field}: There is no such field."
    assert (said["code"], said["detail"]["param"]) == ("invalid_request", field)


PLAIN = [
    ({}, "scopes: is needed."),
    ({"scopes": []}, "scopes: must hold at least 1 item."),
    ({"scopes": ["call", "all"]}, "scopes.1: must be one of call, read, admin."),
    ({"scopes": "call"}, "scopes: must be a list."),
    ({"scopes": ["call"], "label": 7}, "label: must be a string."),
    ({"scopes": ["call"], "label": "x" * 129}, "label: must have at most 128 characters."),
    ({"scopes": ["call"], "limits": 3}, "limits: must be an object."),
    (
        {"scopes": ["call"], "limits": {"requests_per_minute": 0}},
        "limits.requests_per_minute: must be at least 1.",
    ),
    (
        {"scopes": ["call"], "limits": {"requests_per_minute": "many"}},
        "limits.requests_per_minute: must be a whole number.",
    ),
    (
        {"scopes": ["call"], "expires_at": "2030-01-01T00:00:00"},
        "expires_at: must say its time zone, as in 2030-01-01T00:00:00Z.",
    ),
    ({"scopes": ["call"], "expires_at": "soon"}, "expires_at: must be a moment in ISO 8601."),
]


@pytest.mark.parametrize(("body", "message"), PLAIN)
async def test_a_fault_is_told_in_plain_words(
    client: httpx.AsyncClient, sign_up: SignUp, body: Any, message: str
) -> None:
    answer = await client.post("/v1/keys", json=body, headers=(await sign_up())["auth"])
    assert (answer.status_code, answer.json()["message"]) == (400, message)


async def test_what_is_no_json_is_said_to_be_none(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    headers = {**(await sign_up())["auth"], "content-type": "application/json"}
    answer = await client.post("/v1/keys", content=b'{"scopes": ', headers=headers)
    assert (answer.status_code, answer.json()["message"]) == (400, "body: is not JSON.")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_path_is_answered_with_another_one(
    client: httpx.AsyncClient, sign_up: SignUp, method: str
) -> None:
    answer = await client.request(method, "/v1/keys/", headers=(await sign_up())["auth"])
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/keys", "GET, POST"),
        ("GET", "/v1/agents/signup/", None),
        ("PUT", f"/v1/agents/{NOWHERE}/card", "GET, POST"),
        ("GET", "/v1/messages", "POST"),
        ("GET", f"/v1/keys/{NOWHERE}", "DELETE"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allowed: str | None
) -> None:
    answer = await client.request(method, path)
    assert answer.headers.get("allow") == allowed
    if allowed is None:
        assert answer.status_code == 404
        return
    assert answer.status_code == 405
    error = answer.json().get("error") or answer.json()
    assert error["message"] == f"This path takes {allowed.replace(', ', ' and ')}, not {method}."
