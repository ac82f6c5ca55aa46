"""Orders that every ingress hears within a second: a key was revoked."""

import asyncio
import logging
from contextlib import suppress

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from ingress.auth import KeyCache
from shared.queue import CONTROL_CHANNEL

log = logging.getLogger(__name__)


class ControlListener:
    """Listens on the control channel for as long as the process lives."""

    def __init__(self, redis: Redis, keyring: KeyCache) -> None:
        self._redis = redis
        self._keyring = keyring
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen(), name="control")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(CONTROL_CHANNEL)
                    # what was said while we were not listening is not known: trust nothing kept
                    self._keyring.forget_all()
                    async for message in subscription.listen():
                        self._obey(message["data"])
            except (RedisError, OSError) as error:
                log.warning("control_reconnects", extra={"error": repr(error)})
                await asyncio.sleep(0.2)

    def _obey(self, data: bytes) -> None:
        try:
            order = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if order.get("type") == "key.revoked":
            self._keyring.forget(order["key_hash"])
