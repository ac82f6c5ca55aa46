"""`python -m workers inference|books`: one worker process, as the Procfile runs it."""

import asyncio
import sys

import uvloop

from shared.config import StartError, read_settings
from shared.descriptors import raise_descriptor_limit
from shared.log import configure_logging
from shared.preflight import check_stores, refusal
from workers.pulse import keep_pulse
from workers.settings import WORKERS


def main() -> int:
    kind = sys.argv[1] if len(sys.argv) == 2 else ""
    if kind not in WORKERS:
        sys.stderr.write(f"usage: python -m workers {'|'.join(WORKERS)}\n")
        return 2
    try:
        settings = read_settings()
        asyncio.run(check_stores(settings))
    except StartError as error:
        return refusal(error)
    configure_logging(kind, settings.log_level)
    raise_descriptor_limit()
    asyncio.set_event_loop(uvloop.new_event_loop())
    worker = WORKERS[kind](settings)
    if settings.pulse_file is not None:
        pulse = worker.loop.create_task(keep_pulse(settings.pulse_file, worker.ctx), name="pulse")
        worker.run()
        pulse.cancel()
    else:
        worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
