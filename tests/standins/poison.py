"""An inference worker of the fleet that some calls kill: `python -m tests.standins.poison`.

A body that holds one of the words makes the process exit without a word, as a crash of the
interpreter would, or raises what nobody expects. With `ANTIDOTE` set, the worker is the one that
was released after the fault was found.
"""

import os
from collections.abc import AsyncGenerator
from typing import Any

from shared.config import read_settings
from shared.domain.inference import StreamEvent
from shared.log import configure_logging
from workers import inference, routing
from workers.providers import ProviderCall
from workers.providers.simulated import SimulatedProvider
from workers.settings import inference_worker

KILLS_BEFORE_THE_HOLD = "nightshade"
KILLS_WHILE_ASKED = "hemlock"
IS_A_BUG = "toadstool"

KILLED = 86

_stream = SimulatedProvider.stream
_plan_call = routing.plan_call


async def stream(provider: Any, call: ProviderCall) -> AsyncGenerator[StreamEvent, None]:
    if KILLS_WHILE_ASKED in str(call.request.messages):
        os._exit(KILLED)
    async for event in _stream(provider, call):
        yield event


def plan_call(call: Any, deps: Any) -> Any:
    if KILLS_BEFORE_THE_HOLD.encode() in call.envelope.body:
        os._exit(KILLED)
    if IS_A_BUG.encode() in call.envelope.body:
        raise KeyError(call.envelope.body.decode())
    return _plan_call(call, deps)


def main() -> None:
    settings = read_settings()
    configure_logging("inference", settings.log_level)
    if "ANTIDOTE" not in os.environ:
        setattr(SimulatedProvider, "stream", stream)  # noqa: B010 - of a class, on purpose
        setattr(inference, "plan_call", plan_call)  # noqa: B010
    inference_worker(settings).run()


if __name__ == "__main__":
    main()
