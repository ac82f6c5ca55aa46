"""Orders that every process hears: one that is not understood does not deafen it for the next."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from shared.control import CONTROL_CHANNEL, ControlListener, give_order
from tests.workers.running import until

MALFORMED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b'"cancel"',
    b"{}",
    b'{"type": 1}',
    b'{"type": "cancel"}',
]


@pytest.mark.parametrize("malformed", MALFORMED)
async def test_an_order_that_is_none_does_not_end_the_listening(
    redis: Redis, malformed: bytes
) -> None:
    heard: list[str] = []
    listening: list[bool] = []

    def obey(order: Mapping[str, Any]) -> None:
        """As the processes do."""
        if order["type"] == "cancel":
            heard.append(order["inference_id"].upper())

    listener = ControlListener(redis, obey, missed=lambda: listening.append(True))
    await listener.start()
    await until(lambda: listening == [True])
    await redis.publish(CONTROL_CHANNEL, malformed)
    await redis.publish(CONTROL_CHANNEL, orjson.dumps({"type": "cancel", "inference_id": None}))
    await give_order(redis, "cancel", inference_id="a")
    await until(lambda: heard == ["A"])
    assert listening == [True], "it neither missed anything nor subscribed again"
    await listener.aclose()
