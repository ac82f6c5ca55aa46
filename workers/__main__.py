"""`python -m workers inference|books`: one worker process, as the Procfile runs it."""

import asyncio
import sys

import uvloop

from shared.config import SettingsError, read_settings
from shared.log import configure_logging
from workers.settings import WORKERS


def main() -> int:
    kind = sys.argv[1] if len(sys.argv) == 2 else ""
    if kind not in WORKERS:
        sys.stderr.write(f"usage: python -m workers {'|'.join(WORKERS)}\n")
        return 2
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logging(kind, settings.log_level)
    asyncio.set_event_loop(uvloop.new_event_loop())
    WORKERS[kind](settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
