"""A worker's sign of life for whoever runs it: a file that is touched while its loop turns.

It says that this process is up and not stuck, and nothing about Valkey or Postgres: a worker
whose store is away still carries streams, and starting it again would only cut them.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PULSE_S = 5.0


async def keep_pulse(path: Path, ctx: Mapping[str, Any]) -> None:
    """Touch the file every `PULSE_S` once the worker's startup has filled `ctx`; for ever."""
    while True:
        if "deps" in ctx:
            _beat(path)
        await asyncio.sleep(PULSE_S)


def _beat(path: Path) -> None:
    path.touch()
