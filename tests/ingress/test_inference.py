"""What is read of a call before it is understood."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import Request

from ingress.inference import read_body
from shared.errors import InvalidBody, RequestTooLarge
from tests.ingress.conftest import SignUp


def upload(*messages: dict[str, Any], **headers: str) -> Request:
    """A POST whose body comes in as these ASGI messages."""
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_parts_is_joined() -> None:
    request = upload(part(b'{"a":', more=True), part(b"1}", more=False))
    assert await read_body(request, 100) == b'{"a":1}'


async def test_a_client_that_leaves_while_it_sends_is_no_fault_of_ours() -> None:
    request = upload(part(b'{"a":', more=True), {"type": "http.disconnect"})
    with pytest.raises(InvalidBody):
        await read_body(request, 100)


async def test_no_stranger_fills_the_memory_with_a_body(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 65_536
            yield b"[" * 65_536

    for path in ("/v1/agents/signup", "/v1/agents/cards/verify", "/v1/keys", "/v1/wallets/topup"):
        refused = await client.post(
            path, content=endless(), headers={"content-type": "application/json"}
        )
        assert (refused.status_code, refused.json()["code"]) == (413, "request_too_large")
        assert sent < 1024 * 1024
        sent = 0


async def test_what_is_counted_may_be_as_large_as_what_is_asked(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    said = [{"role": "user", "content": "word " * 200_000}]
    counted = await client.post(
        "/v1/messages/count_tokens",
        json={"model": "claude-sonnet-4-6", "messages": said},
        headers=new["auth"],
    )
    assert counted.status_code == 200, counted.text
    assert counted.json()["input_tokens"] > 200_000


async def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    endless = [part(b"x" * 60, more=True)] * 3
    with pytest.raises(RequestTooLarge):
        await read_body(upload(*endless[:2]), 100)
    with pytest.raises(RequestTooLarge):
        await read_body(upload(content_length="101"), 100)
