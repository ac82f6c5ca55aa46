"""What a job may use: one frozen object, the only key of ours in arq's `ctx`."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from shared.config import Settings
from shared.domain.candidate import Catalog
from shared.kept import KeptCalls
from shared.killswitch import Killswitch
from shared.live_routing import LiveRouting
from shared.publisher import Publisher
from workers.ledger import Ledger
from workers.providers import Provider

# Orders to stop that are kept, for calls that this process may only claim later.
ORDERS_KEPT = 10_000


class Cancellations:
    """Orders to stop, given for clients that left, and the calls here that they may be about.

    An order can come before its call is asked of a provider: while it waits in the queue or for
    its hold. So every process keeps the newest orders, whether or not it knows the call.
    """

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[object]] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def watch(self, inference_id: str) -> Iterator[None]:
        """While the block runs, `cancel(inference_id)` cancels the current task.

        Raises `CancelledError` if the order came earlier: the block is not begun at all.
        """
        if inference_id in self._cancelled:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._running[inference_id] = task
        try:
            yield
        finally:
            del self._running[inference_id]

    def cancel(self, inference_id: str) -> bool:
        """Stop one inference once; False if it does not run here or was stopped already."""
        if inference_id in self._cancelled:
            return False
        self._cancelled[inference_id] = None
        if len(self._cancelled) > ORDERS_KEPT:
            self._cancelled.popitem(last=False)
        task = self._running.get(inference_id)
        if task is None:
            return False
        task.cancel()
        return True

    def forget(self, inference_id: str) -> None:
        """The call begins once more: an order that was given before is about it no longer."""
        self._cancelled.pop(inference_id, None)

    def was_cancelled(self, inference_id: str) -> bool:
        """Whether a cancellation came from the client, not from a shutdown or a lost lease."""
        return inference_id in self._cancelled


@dataclass(frozen=True, slots=True)
class Deps:
    """`monotonic` gives seconds that only ever grow; `providers` is by provider slug."""

    settings: Settings
    ledger: Ledger
    kept: KeptCalls
    publisher: Publisher
    providers: Mapping[str, Provider]
    routing: LiveRouting
    cancellations: Cancellations
    killswitch: Killswitch
    monotonic: Callable[[], float]

    @property
    def catalog(self) -> Catalog:
        """As it is now."""
        return self.routing.catalog.current
