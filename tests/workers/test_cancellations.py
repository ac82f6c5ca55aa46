"""Orders to stop: which calls they are about."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shared.queue import Envelope
from tests.workers.running import envelope
from workers import inference
from workers.deps import Cancellations


async def begin(
    sent: Envelope, orders: Cancellations, patch: pytest.MonkeyPatch, **claim: Any
) -> bool:
    """Whether a call that is claimed with this envelope is cancelled when it is attempted."""
    found = []

    async def attempt_once(*_: Any) -> None:
        found.append(orders.was_cancelled(str(sent.inference_id)))

    patch.setattr(inference, "attempt_once", attempt_once)
    ctx = {"deps": SimpleNamespace(cancellations=orders), "payload": sent.pack(), "job_try": 5}
    await inference.run_inference({**ctx, **claim}, str(sent.inference_id))
    return bool(found[0])


@pytest.mark.parametrize(
    ("tried", "claim", "cancelled"),
    [
        (0, {"job_try": 2}, True),  # another attempt at the same call
        (4, {}, False),  # replayed since
        (4, {"job_try": 6}, False),  # whose first attempt another worker had
        (4, {"stop": True}, True),  # and stopped again
    ],
)
async def test_an_order_to_stop_is_not_about_a_replay_that_came_later(
    tried: int, claim: dict[str, Any], cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, orders = replace(envelope(), tried=tried), Cancellations()
    orders.cancel(str(sent.inference_id))
    assert await begin(sent, orders, monkeypatch, **claim) is cancelled


async def test_a_replay_can_be_stopped_as_its_call_was() -> None:
    orders = Cancellations()
    orders.cancel("one")
    orders.forget("one")

    async def run() -> None:
        with orders.watch("one"):
            assert orders.cancel("one"), "it runs, and is stopped"
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run())
