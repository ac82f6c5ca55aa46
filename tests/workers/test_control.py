"""Orders that every process hears: one that is not understood does not deafen it for the next."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

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


class SlowToHear(PubSub):
    """A subscription of which no answer is read before `answered`."""

    answered = asyncio.Event()
    asked = asyncio.Event()

    async def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        await self.answered.wait()
        return await super().parse_response(*args, **kwargs)


async def test_what_may_have_been_missed_is_read_once_the_subscription_stands(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read before that is as old as what was known, should an order come in between."""
    missed: list[bool] = []
    async with Redis.from_url(redis_url) as redis:
        pool = redis.connection_pool
        monkeypatch.setattr(redis, "pubsub", lambda **told: SlowToHear(pool, **told))
        listener = ControlListener(redis, lambda _: None, missed=lambda: missed.append(True))
        await listener.start()
        async with asyncio.timeout(10):
            await SlowToHear.asked.wait()
        assert missed == []
        SlowToHear.answered.set()
        await until(lambda: missed == [True])
        await listener.aclose()


async def test_a_subscription_that_was_lost_has_missed_something(redis_url: str) -> None:
    missed: list[bool] = []
    async with Redis.from_url(redis_url, client_name="listens") as redis:
        listener = ControlListener(redis, lambda _: None, missed=lambda: missed.append(True))
        await listener.start()
        await until(lambda: missed == [True])
        clients: Any = redis
        (lost,) = [
            each for each in await clients.client_list(_type="pubsub") if each["name"] == "listens"
        ]
        await clients.client_kill_filter(_id=lost["id"])
        await until(lambda: missed == [True, True])
        await listener.aclose()
