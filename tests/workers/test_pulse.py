"""A worker's sign of life: there once its startup is through, and renewed as long as it turns."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from workers import pulse


def touched(path: Path, since: float) -> bool:
    return path.exists() and path.stat().st_mtime > since


async def until_touched(path: Path, since: float) -> None:
    async with asyncio.timeout(10):
        while not touched(path, since):
            await asyncio.sleep(0.005)


async def test_a_pulse_begins_with_the_end_of_the_startup_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "PULSE_S", 0.01)
    path, ctx = tmp_path / "pulse", dict[str, Any]()
    task = asyncio.create_task(pulse.keep_pulse(path, ctx))
    await asyncio.sleep(0.05)
    assert not touched(path, 0)

    ctx["deps"] = object()
    await until_touched(path, 0)
    os.utime(path, (1, 1))
    await until_touched(path, 1)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    os.utime(path, (1, 1))
    await asyncio.sleep(0.05)
    assert not touched(path, 1)
