"""What a job may use: one frozen object, the only key of ours in arq's `ctx`."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from shared.config import Settings
from shared.domain.candidate import Catalog
from shared.stream import Publisher
from workers.ledger import Ledger
from workers.providers import Provider


class Cancellations:
    """The running inferences of this process, so that a client that left can stop its own."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[object]] = {}
        self._cancelled: set[str] = set()

    @contextmanager
    def watch(self, inference_id: str) -> Iterator[None]:
        """While the block runs, `cancel(inference_id)` cancels the current task."""
        task = asyncio.current_task()
        assert task is not None
        self._running[inference_id] = task
        try:
            yield
        finally:
            del self._running[inference_id]
            self._cancelled.discard(inference_id)

    def cancel(self, inference_id: str) -> bool:
        """Stop one inference once; False if it does not run here or was stopped already."""
        task = self._running.get(inference_id)
        if task is None or inference_id in self._cancelled:
            return False
        self._cancelled.add(inference_id)
        task.cancel()
        return True

    def was_cancelled(self, inference_id: str) -> bool:
        """Whether a cancellation came from the client, not from a shutdown or a lost lease."""
        return inference_id in self._cancelled


@dataclass(frozen=True, slots=True)
class Deps:
    """`clock` gives seconds since the epoch; `providers` is by provider slug."""

    settings: Settings
    ledger: Ledger
    publisher: Publisher
    providers: Mapping[str, Provider]
    catalog: Catalog
    cancellations: Cancellations
    clock: Callable[[], float]
    monotonic: Callable[[], float]
