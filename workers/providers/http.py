"""How a provider is reached: one pool of connections, retries before the first byte, deadlines.

httpx gives the words (requests, responses, errors), `transport` does the work: a client with
cookies, redirects and proxies costs more CPU than everything else a worker does for a call.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.stop import stop_base

from shared.config import VERSION, Settings
from shared.metrics import PROVIDER_CALLS
from workers.providers.answer import Answer
from workers.providers.faults import ProviderFault, no_stream, refused, unreachable
from workers.providers.transport import Transport
from workers.providers.watch import OutOfTime, Silent, Watch

log = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
USER_AGENT = f"ainfera-gateway/{VERSION}"
# How long a server may take to close a finished answer before its connection is given up.
DRAIN_S = 2.0
# A provider that asks for more patience than this is not asked again; another may be.
LONGEST_RETRY_WAIT_S = 5.0
MAX_ERROR_BYTES = 64 * 1024
# the outcome of a provider call that was made again at once
RETRIED = "retried"


def open_transport() -> Transport:
    """The one transport of a process; no proxy and no certificates from the environment."""
    tls = httpx.create_ssl_context(trust_env=False)
    tls.set_alpn_protocols(["http/1.1"])
    return Transport(tls)


class Upstream:
    """An answer of a provider as it comes in; `read` gives bytes, and none at its end."""

    def __init__(self, response: httpx.Response, watch: Watch) -> None:
        assert isinstance(response.stream, Answer)
        self.status = response.status_code
        self.headers = response.headers
        self._answer = response.stream
        self._watch = watch

    @property
    def streams(self) -> bool:
        """Whether it is an event stream; a server that does not say is believed to be one."""
        said: str = self.headers.get("content-type", EVENT_STREAM)
        return said.startswith(EVENT_STREAM)

    def read(self) -> Awaitable[bytes]:
        """The next bytes. Raises `OutOfTime`, `Silent` or `httpx.TransportError`."""
        return self._watch.wait(self._answer.read())

    async def read_error(self) -> bytes:
        """The body of a refusal, as far as it is worth reading."""
        body = b""
        while len(body) < MAX_ERROR_BYTES and (chunk := await self.read()):
            body += chunk
        return body

    async def drain(self) -> None:
        """Read to the end, so that the connection can serve the next call."""
        while await self._answer.read():
            pass

    @property
    def whole(self) -> bool:
        """Whether the answer's last byte has come, so that its connection is free already."""
        return self._answer.whole

    async def aclose(self) -> None:
        await self._answer.aclose()


class PastDeadline(stop_base):
    """Stops where the call's deadline comes before the next attempt."""

    def __call__(self, state: RetryCallState) -> bool:
        watch: Watch = state.args[1]
        return state.upcoming_sleep >= watch.remaining_s()


class Link:
    """Opens streams of one provider over the process's pool."""

    def __init__(self, provider: str, http: Transport, settings: Settings) -> None:
        self.provider = provider
        self._http = http
        self._settings = settings
        self._extensions = {"timeout": {"connect": settings.connect_timeout_s}}
        self._draining: set[asyncio.Task[None]] = set()
        self._retrying = AsyncRetrying(
            retry=retry_if_exception(_worth_retrying),
            stop=stop_after_attempt(max(settings.provider_attempts - 1, 1)) | PastDeadline(),
            wait=_retry_wait,
            before_sleep=self._tell_retry,
            reraise=True,
        )

    def watch(self, deadline_s: float | None) -> Watch:
        total_s = self._settings.call_deadline_s
        return Watch(
            total_s if deadline_s is None else min(deadline_s, total_s),
            self._settings.idle_deadline_s,
        )

    def request(self, url: httpx.URL, headers: httpx.Headers, body: bytes) -> httpx.Request:
        """To be opened once or more; with a stream httpx adds no headers of its own."""
        stream = httpx.ByteStream(body)
        return httpx.Request(
            "POST", url, headers=headers, stream=stream, extensions=self._extensions
        )

    async def open(self, request: httpx.Request, watch: Watch) -> Upstream:
        """A stream whose headers are in and good. Raises `ProviderFault`.

        The first attempt is made without tenacity, whose bookkeeping only a second is worth.
        """
        try:
            return await self._attempt(request, watch)
        except ProviderFault as fault:
            if self._settings.provider_attempts == 1 or not _worth_retrying(fault):
                raise
            pause_s = _pause(fault)
            if pause_s >= watch.remaining_s():
                raise
            self._note_retry(fault, 1)
            await asyncio.sleep(pause_s)
        return await self._retrying(self._attempt, request, watch)

    async def _attempt(self, request: httpx.Request, watch: Watch) -> Upstream:
        watch.progress()
        try:
            response = await watch.wait(self._http.handle_async_request(request))
            upstream = Upstream(response, watch)
            if upstream.status == httpx.codes.OK and upstream.streams:
                watch.progress()
                return upstream
            try:
                body = await upstream.read_error()
            finally:
                await upstream.aclose()
        except (httpx.TransportError, OutOfTime, Silent) as error:
            raise unreachable(self.provider, error) from error
        if upstream.status == httpx.codes.OK:
            raise no_stream(self.provider, body)
        raise refused(self.provider, upstream.status, upstream.headers, body)

    def retire(self, upstream: Upstream) -> None:
        """Let go of an answer that was read to its last frame, without waiting for it.

        The bytes that end the response are often a packet behind, and a connection closed
        before they came would have to be opened anew for the next call.
        """
        if upstream.whole:
            return
        task = asyncio.create_task(self._drain(upstream), name="drain")
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _drain(self, upstream: Upstream) -> None:
        try:
            async with asyncio.timeout(DRAIN_S):
                await upstream.drain()
        except (httpx.TransportError, TimeoutError) as error:
            log.debug("provider_drain", extra={"provider": self.provider, "error": repr(error)})
        finally:
            await upstream.aclose()

    def _tell_retry(self, state: RetryCallState) -> None:
        fault = state.outcome.exception() if state.outcome else None
        if isinstance(fault, ProviderFault):
            self._note_retry(fault, state.attempt_number + 1)

    def _note_retry(self, fault: ProviderFault, attempt: int) -> None:
        """This attempt was in vain and another follows; the last one is its caller's to count."""
        PROVIDER_CALLS.labels(provider=self.provider, outcome=RETRIED).inc()
        about = {
            "provider": self.provider,
            "attempt": attempt,
            "upstream_status": fault.failure.detail.get("upstream_status"),
        }
        log.warning("provider_retry", extra=about)


def _worth_retrying(error: BaseException) -> bool:
    return (
        isinstance(error, ProviderFault)
        and error.again
        and (error.failure.retry_after or 0.0) <= LONGEST_RETRY_WAIT_S
    )


def _retry_wait(state: RetryCallState) -> float:
    fault = state.outcome.exception() if state.outcome else None
    return _pause(fault) * state.attempt_number


def _pause(fault: BaseException | None) -> float:
    """Seconds until the next attempt: what the provider asked for, else a fraction of one."""
    asked = fault.failure.retry_after if isinstance(fault, ProviderFault) else None
    return asked if asked is not None else random.uniform(0.1, 0.4)
