"""Orders that every process hears within a second: a key was revoked, a client left, stop."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

CONTROL_CHANNEL = "ainfera:control"
KEY_REVOKED = "key.revoked"
CANCEL = "cancel"
KILLSWITCH = "killswitch"
POLICIES = "policies"
TENANT_POLICY = "tenant.policy"
CATALOG = "catalog.changed"

log = logging.getLogger(__name__)


async def give_order(redis: Redis, kind: str, **fields: Any) -> None:
    """Tell every process; who is not listening now does not hear it."""
    await redis.publish(CONTROL_CHANNEL, orjson.dumps({"type": kind, **fields}))


class ControlListener:
    """Calls `obey(order)` for each order heard, and `missed()` when some may have been missed."""

    def __init__(
        self,
        redis: Redis,
        obey: Callable[[Mapping[str, Any]], None],
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis = redis
        self._obey = obey
        self._missed = missed
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
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(CONTROL_CHANNEL)
                    async for message in subscription.listen():
                        if message["type"] == "subscribe":
                            self._missed()  # sooner, an order before it stands goes unheard
                        elif message["type"] == "message":
                            self._hear(message["data"])
            except (RedisError, OSError) as error:
                log.warning("control_reconnects", extra={"error": repr(error)})
                await asyncio.sleep(0.2)

    def _hear(self, data: bytes) -> None:
        """Obey one order; one that is not understood, as of another version, stops no other."""
        try:
            self._obey(orjson.loads(data))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            log.warning("order_not_understood", extra={"error": type(error).__name__})
