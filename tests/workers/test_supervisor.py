"""Processes that end by themselves: started again, until it is clear that it is of no use."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from workers.procfile import Running, start_processes, stop_processes
from workers.supervisor import MOST_DEATHS, GaveUp, Supervisor

Look = Callable[[], bool]


@asynccontextmanager
async def supervised(
    folder: Path, commands: dict[str, str], **changes: float
) -> AsyncIterator[tuple[Supervisor, list[Running], list[str]]]:
    told: list[str] = []
    running = await start_processes(commands, {}, dict(os.environ), folder)
    supervisor = Supervisor(running, told.append, first_pause_s=0.01, **changes)
    try:
        yield supervisor, running, told
    finally:
        await stop_processes(running, [], 0)


def starts(path: Path) -> int:
    return path.read_text().count("started") if path.exists() else 0


async def until(look: Look, watching: asyncio.Task[None]) -> None:
    """Wait for a thing to be true while the supervisor goes on; then end it."""
    async with asyncio.timeout(30):
        while not look():
            assert not watching.done(), watching.exception()
            await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_what_crashed_is_started_again_and_the_rest_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    crash = f"sh -c 'echo started >> {log}; test $(wc -l < {log}) -ge 3 && exec sleep 60; exit 3'"
    commands = {"crashing": crash, "steady": "sleep 60"}
    async with supervised(tmp_path, commands) as (supervisor, running, told):
        steady = running[1].process.pid
        await until(lambda: starts(log) == 3, asyncio.create_task(supervisor.watch()))
        assert [entry.process.returncode for entry in running] == [None, None]
        assert running[1].process.pid == steady
    assert told == [
        "crashing.1 ended with code 3; starting it again in 0.01 s",
        "crashing.1 ended with code 3; starting it again in 0.02 s",
    ]
    assert all(entry.process.returncode is not None for entry in running)


async def test_what_dies_at_once_again_and_again_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {"broken": f"sh -c 'echo started >> {log}; exit 1'", "steady": "sleep 60"}
    async with supervised(tmp_path, commands) as (supervisor, running, told):
        with pytest.raises(GaveUp, match=r"broken\.1 ended with code 1.*5 times in a row"):
            await supervisor.watch()
        assert running[1].process.returncode is None
    assert starts(log) == MOST_DEATHS
    assert len(told) == MOST_DEATHS - 1


async def test_what_lived_for_a_while_has_all_its_lives_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {"mortal": f"sh -c 'echo started >> {log}; exit 0'"}
    async with supervised(tmp_path, commands, at_once_s=0) as (supervisor, _, told):
        watching = asyncio.create_task(supervisor.watch())
        await until(lambda: starts(log) > MOST_DEATHS + 2, watching)
    assert set(told) == {"mortal.1 ended with code 0; starting it again in 0.01 s"}


async def test_wrong_settings_do_not_get_better_by_trying_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {"unset": f"sh -c 'echo started >> {log}; exit 2'"}
    async with supervised(tmp_path, commands) as (supervisor, _, told):
        with pytest.raises(GaveUp, match=r"unset\.1 cannot use its settings"):
            await supervisor.watch()
    assert (starts(log), told) == (1, [])
