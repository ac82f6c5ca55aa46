"""What is read of a call before it is understood."""

from typing import Any

import pytest
from fastapi import Request

from ingress.inference import read_body
from shared.errors import InvalidBody, RequestTooLarge


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


async def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    endless = [part(b"x" * 60, more=True)] * 3
    with pytest.raises(RequestTooLarge):
        await read_body(upload(*endless[:2]), 100)
    with pytest.raises(RequestTooLarge):
        await read_body(upload(content_length="101"), 100)
