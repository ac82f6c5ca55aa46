"""What a worker gives back because it is stopped is no sign that the call kills workers."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from shared.queue import InferenceQueue
from tests.workers.running import Job, Running, envelope, until
from workers import inference
from workers.dead_letters import WORKERS_LOST, Cause, Remains
from workers.settings import NEVER_TOO_OFTEN


class Story:
    """`run_inference` as far as it decides who is tried again; an attempt lasts until it is cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts: list[int] = []
        self.buried: list[list[dict[str, Any]]] = []
        monkeypatch.setattr(inference, "attempt_once", self._attempt)
        monkeypatch.setattr(inference, "bury", self._bury)
        monkeypatch.setattr(Remains, "tell", lambda *_: None)

    @property
    def job(self) -> Job:
        async def job(ctx: dict[str, Any], inference_id: str) -> None:
            await inference.run_inference({**ctx, "deps": None}, inference_id)

        return job

    async def _attempt(self, remains: Remains, *_: Any) -> None:
        self.attempts.append(remains.attempt)
        await asyncio.Event().wait()

    async def _bury(self, remains: Remains, cause: Cause, *_: Any) -> None:
        self.buried.append(remains.failures(cause))


async def a_run(story: Story, redis_url: str, *, ends: str) -> None:
    """One more worker takes the job up, and is stopped or killed in the middle of it."""
    begun = len(story.attempts)
    worker = Running(redis_url, story.job, lease_s=0.3, max_tries=NEVER_TOO_OFTEN)
    await until(lambda: len(story.attempts) > begun)
    await (worker.stop() if ends == "stopped" else worker.crash())


async def test_three_drains_in_a_row_bury_nothing(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(monkeypatch)
    await InferenceQueue(redis).enqueue(envelope())
    for _ in range(5):
        await a_run(story, redis_url, ends="stopped")
    assert (story.attempts, story.buried) == ([1, 2, 3, 4, 5], [])


async def test_three_kills_bury_it_however_often_it_was_handed_back(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(monkeypatch)
    await InferenceQueue(redis).enqueue(envelope())
    for ends in ("killed", "stopped", "killed", "stopped", "killed"):
        await a_run(story, redis_url, ends=ends)
    last = Running(redis_url, story.job, lease_s=0.3, max_tries=NEVER_TOO_OFTEN)
    await until(lambda: story.buried != [])
    await last.stop()
    assert story.attempts == [1, 2, 3, 4, 5]
    assert story.buried == [[{"attempt": n, "code": "worker_lost"} for n in (1, 3, 5)]]


async def test_a_job_that_cancels_itself_is_not_handed_back(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a worker that is being stopped gives back in good order."""
    story = Story(monkeypatch)

    async def cancels(remains: Remains, *_: Any) -> None:
        story.attempts.append(remains.attempt)
        raise asyncio.CancelledError

    monkeypatch.setattr(inference, "attempt_once", cancels)
    await InferenceQueue(redis).enqueue(envelope())
    worker = Running(redis_url, story.job, max_tries=NEVER_TOO_OFTEN)
    await until(lambda: story.buried != [])
    await worker.stop()
    assert story.attempts == [1, 2, 3]


def test_a_replay_counts_from_its_own_beginning() -> None:
    tried = Remains(UUID(int=1), 6, b"", _tried(3), handed_back=frozenset({4}))
    assert tried.lost == [5]
    assert [f["attempt"] for f in tried.failures(WORKERS_LOST)] == [5]


def _tried(times: int) -> Any:
    sent = envelope()
    object.__setattr__(sent, "tried", times)
    return sent
