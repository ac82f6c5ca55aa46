"""Orders over the control channel: one that is not understood takes no listener with it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.control import CONTROL_CHANNEL, ControlListener, give_order


async def test_what_is_not_understood_is_passed_over(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    obeyed: asyncio.Queue[str] = asyncio.Queue()

    def obey(order: Mapping[str, Any]) -> None:
        if order["type"] == "stop":
            obeyed.put_nowait({order["scope"]}.pop())

    subscribed = asyncio.Event()
    async with Redis.from_url(redis_url) as redis:
        listener = ControlListener(redis, obey, subscribed.set)
        await listener.start()
        async with asyncio.timeout(10):
            await subscribed.wait()
            for said in (
                b"{",
                b"[]",
                b"7",
                b"{}",
                b'{"type":"stop"}',
                b'{"type":"stop","scope":[]}',
            ):
                assert await redis.publish(CONTROL_CHANNEL, said) >= 1  # others listen too
            await give_order(redis, "stop", scope="all")
            assert await obeyed.get() == "all"
        await listener.aclose()
    warned = [r for r in caplog.records if r.getMessage() == "order_not_understood"]
    assert len(warned) == 6
