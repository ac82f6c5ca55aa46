"""`fleet status|workers|drain|resume|jobs` by hand: what is printed, asked, refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest_asyncio
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from shared.fleet import DRAIN_KEY
from shared.ids import mint_id
from shared.queue import InferenceQueue
from tests.workers.running import Running, envelope, until
from workers.cli import main
from workers.development import write_env


async def fleet(*words: str, redis_url: str, typed: str = "") -> Result:
    shown = {"NO_COLOR": "1", "COLUMNS": "200", "REDIS_URL": redis_url}
    return await asyncio.to_thread(CliRunner().invoke, main, words, input=typed, env=shown)


async def answer(*words: str, redis_url: str) -> Any:
    done = await fleet(*words, "--json", redis_url=redis_url)
    assert done.exit_code == 0, done.output
    return orjson.loads(done.stdout)


@pytest_asyncio.fixture(loop_scope="session")
async def running(redis_url: str) -> AsyncIterator[Running]:
    async def job(ctx: dict[str, Any], inference_id: str) -> None:
        await asyncio.Event().wait()

    worker = Running(redis_url, job, kind="inference", max_jobs=1)
    await until(lambda: len(worker.worker._background) == 4)
    yield worker
    await worker.stop()


async def test_status_and_workers_show_what_is(
    redis: Redis, redis_url: str, running: Running
) -> None:
    for _ in range(3):
        await InferenceQueue(redis).enqueue(envelope())
    await until(lambda: running.worker.job_counter == 1)
    status = await answer("status", redis_url=redis_url)
    assert (status["ready"], status["leased"], status["depth"]["interactive"]) == (2, 1, 2)
    assert [worker["id"] for worker in status["workers"]] == [running.worker.worker_id]
    async with asyncio.timeout(10):
        while not (worker := (await answer("workers", redis_url=redis_url))[0])["jobs"]:
            pass
    assert (worker["state"], worker["jobs"], worker["max_jobs"]) == ("running", 1, 1)
    assert "picked_up_ms" not in worker
    page = await fleet("status", redis_url=redis_url)
    assert page.exit_code == 0
    for word in ("interactive", "background", "replay", "in work 1", running.worker.worker_id):
        assert word in page.stdout
    assert "running" in (await fleet("workers", redis_url=redis_url)).stdout


async def test_drain_asks_and_resume_takes_it_back(
    redis: Redis, redis_url: str, running: Running
) -> None:
    refused = await fleet("drain", "all", redis_url=redis_url, typed="n\n")
    assert refused.exit_code == 1
    assert not await redis.exists(DRAIN_KEY)

    drained = await fleet("drain", "all", "--wait", "--yes", redis_url=redis_url)
    assert (drained.exit_code, "drained" in drained.stdout) == (0, True), drained.output
    assert running.worker.state == "drained"
    assert "told to drain" in (await fleet("status", redis_url=redis_url)).stdout

    told = await answer("resume", redis_url=redis_url)
    assert told == {"resumed": [running.worker.worker_id]}
    await until(lambda: running.worker.state == "running")


async def test_a_drain_that_takes_too_long_is_said(
    redis: Redis, redis_url: str, running: Running
) -> None:
    await InferenceQueue(redis).enqueue(envelope())
    await until(lambda: running.worker.job_counter == 1)
    words = ("drain", running.worker.worker_id, "--wait", "--timeout", "0.3", "--yes", "--json")
    late = await fleet(*words, redis_url=redis_url)
    assert late.exit_code == 1
    assert orjson.loads(late.stdout) == {"draining": [running.worker.worker_id], "idle": False}
    assert "Still at work" in late.stderr


async def test_a_job_is_shown_and_never_what_it_carries(
    redis: Redis, redis_url: str, running: Running
) -> None:
    leased, waiting = envelope(b'{"messages": "secret words"}'), envelope(b"secret words")
    queue = InferenceQueue(redis)
    await queue.enqueue(leased)
    await until(lambda: running.worker.job_counter == 1)
    await queue.enqueue(waiting)
    shown = await answer("jobs", "show", str(leased.inference_id), redis_url=redis_url)
    assert (shown["state"], shown["worker"]) == ("leased", running.worker.worker_id)
    page = await fleet("jobs", "show", str(waiting.inference_id), redis_url=redis_url)
    assert "waits in lane 0:t at place 1" in page.stdout
    assert "secret" not in page.output + str(shown)
    unknown = await fleet("jobs", "show", str(mint_id()), redis_url=redis_url)
    assert (unknown.exit_code, "not in the queue" in unknown.stdout) == (1, True)
    assert (await fleet("jobs", "show", "no-id", redis_url=redis_url)).exit_code == 2


async def test_what_cannot_be_done_is_explained(redis_url: str, tmp_path: Path) -> None:
    nobody = await fleet("drain", "nobody", "--yes", redis_url=redis_url)
    assert (nobody.exit_code, "No worker is called 'nobody'" in nobody.stderr) == (1, True)
    away = await fleet("status", redis_url=f"unix://{tmp_path}/no.sock")
    assert (away.exit_code != 0, "REDIS_URL" in away.stderr) == (True, True)
    wrong = await fleet("workers", redis_url="nonsense")
    assert (wrong.exit_code != 0, "REDIS_URL" in wrong.stderr) == (True, True)
    assert "Traceback" not in away.output + wrong.output


async def test_without_an_address_the_fleet_of_this_machine_is_meant(
    redis_url: str, running: Running, tmp_path: Path
) -> None:
    async def workers() -> Result:
        told = {"REDIS_URL": "", "FLEET_HOME": str(tmp_path), "NO_COLOR": "1"}
        return await asyncio.to_thread(CliRunner().invoke, main, ["workers", "--json"], env=told)

    unknown = await workers()
    assert (unknown.exit_code, "No fleet is known here" in unknown.stderr) == (1, True)
    write_env(tmp_path / "running.env", {"REDIS_URL": redis_url})
    assert len(orjson.loads((await workers()).stdout)) == 1


async def test_an_id_is_never_broken_or_coloured(redis: Redis, redis_url: str) -> None:
    sent = envelope()
    await InferenceQueue(redis).enqueue(sent)
    narrow = {"REDIS_URL": redis_url, "COLUMNS": "30", "FORCE_COLOR": "1"}
    words = ("jobs", "show", str(sent.inference_id))
    done = await asyncio.to_thread(CliRunner().invoke, main, words, env=narrow)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{sent.inference_id} waits in lane 0:t at place 1")
