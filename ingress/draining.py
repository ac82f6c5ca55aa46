"""An ingress that is being stopped: new calls are sent elsewhere, those under way end in time.

From SIGTERM on new calls are refused and `/ready` fails; for `DRAIN_NOTICE_SECONDS` connections are
still taken, so that a client hears why. Answers have `DRAIN_GRACE_SECONDS`; those that are still
open then get one last word each before the sockets are closed.
"""

import asyncio
import logging
from socket import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from ingress.deps import Deps
from ingress.reply import Reply
from shared.config import Settings
from shared.domain.inference import Failure
from shared.errors import Draining

log = logging.getLogger(__name__)

LOOKS_EVERY_S = 0.05
# what clients get to take their last word in, and uvicorn to close what is still open then
LAST_WORDS_S = 2.0
CLOSING_S = 3


class DrainingServer(uvicorn.Server):
    """uvicorn, but an answer that outlasts the grace time ends with a word of ours, not bare."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._grace_s = settings.drain_grace_s
        self._notice_s = min(settings.drain_notice_s, settings.drain_grace_s)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Let what runs end, within the grace time; then tell who is left, and close."""
        deps: Deps = self._app.state.deps
        deps.drain.begin()
        log.info("draining", extra={"requests": len(self.server_state.tasks)})
        await self._until_idle(self._notice_s)
        for listening in self.servers:
            listening.close()
        await self._until_idle(self._grace_s - self._notice_s)
        cut = tell_the_rest(deps)
        if cut:
            log.warning("answers_cut", extra={"answers": cut})
            await self._until_idle(LAST_WORDS_S)
            tell_the_rest(deps)  # those that had only just come in
        await super().shutdown(sockets)

    async def _until_idle(self, patience_s: float) -> None:
        """Until no request is under way, or the time is up, or whoever stops us insists."""
        ends_at = asyncio.get_running_loop().time() + patience_s
        while self.server_state.tasks and not self.force_exit:
            if asyncio.get_running_loop().time() >= ends_at:
                break
            await asyncio.sleep(LOOKS_EVERY_S)


def tell_the_rest(deps: Deps) -> int:
    """End every answer that is still open, in its own dialect. Returns how many there were."""
    open_replies = [r for r in (*deps.relay.everybody(), *deps.ends.replies()) if not r.ended]
    for reply in open_replies:
        reply.goes_on = reply.streaming and can_be_resumed(reply, deps)
        reply.end(last_word(reply, deps))
    return len(open_replies)


def can_be_resumed(reply: Reply, deps: Deps) -> bool:
    return reply.kept or deps.settings.replay_seconds > 0


def last_word(reply: Reply, deps: Deps) -> Failure:
    """What a client is told whose answer is cut off here."""
    path = f"/v1/inferences/{reply.id}/events"
    where: dict[str, Any] = {
        "inference_id": str(reply.id),
        "events_url": f"{deps.settings.base_url}{path}",
    }
    if reply.goes_on:
        told = Draining(
            "This instance of the gateway is being stopped. The call itself goes on: read on at "
            f"GET {path}, with Last-Event-ID set to the id of the last event that you have.",
            **where,
        )
    elif reply.kept:
        told = Draining(
            "This instance of the gateway is being stopped. The call itself goes on: repeat the "
            f"request with its Idempotency-Key, or read GET {path}.",
            **where,
        )
    else:
        told = Draining(
            "This instance of the gateway is being stopped before the answer was whole; what was "
            "used is settled. Send the request again.",
            inference_id=str(reply.id),
        )
    return told.failure()
