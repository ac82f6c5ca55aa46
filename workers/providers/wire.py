"""A provider that speaks a wire: what both families have in common.

build the body -> open the stream -> cut it into frames -> forward or translate them
"""

from collections.abc import AsyncGenerator, Mapping

import httpx
import orjson

from shared.domain.dialects import WIRES
from shared.domain.inference import Dialect, Failed, Failure, InvalidRequest, StreamEvent
from workers.providers.faults import ProviderFault, provider_error, unreachable
from workers.providers.framing import Framer, FrameTooLong
from workers.providers.http import EVENT_STREAM, USER_AGENT, Link, Upstream
from workers.providers.provider import ProviderCall
from workers.providers.reading import Forms, Forwarding, Reading, Translating
from workers.providers.watch import OutOfTime, Silent, Watch

COMMON_HEADERS = {
    "accept": EVENT_STREAM,
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": USER_AGENT,
}
# W3C Trace Context: the client's trace goes on at the provider
TRACE_HEADERS = ("traceparent", "tracestate")


class WireProvider:
    """One provider of a wire family.

    `headers` are its own, the key included; a client that speaks this dialect may have a say in
    those that `passed_on` names.
    """

    simulated = False

    def __init__(
        self,
        dialect: Dialect,
        forms: Forms,
        url: str,
        headers: Mapping[str, str],
        link: Link,
        passed_on: tuple[str, ...] = (),
    ) -> None:
        self.dialect = dialect
        self._wire = WIRES[dialect]
        self._forms = forms
        self._url = httpx.URL(url)
        self._headers = httpx.Headers({**COMMON_HEADERS, **headers})
        self._passed_on = (*passed_on, *TRACE_HEADERS)
        self._link = link

    async def stream(self, call: ProviderCall) -> AsyncGenerator[StreamEvent, None]:
        """See `Provider.stream`."""
        try:
            body, ignored = self._wire.build_request(
                call.request, call.model, call.max_output_tokens
            )
        except InvalidRequest as error:
            yield Failed(Failure("invalid_request", 400, str(error), {"param": error.param}))
            return
        content = orjson.dumps(body, default=str)
        request = self._link.request(self._url, self._headers_of(call), content)
        reading = self._reading(call, ignored)
        watch = self._link.watch(call.deadline_s)
        try:
            upstream = await self._link.open(request, watch)
        except ProviderFault as fault:
            watch.close()
            yield Failed(fault.failure)
            return
        framer = Framer()
        try:
            while not reading.over:
                for event in await self._next(upstream, framer, reading, watch):
                    yield event
        finally:
            watch.close()
            if reading.complete:
                self._link.retire(upstream)
            else:
                await upstream.aclose()

    def _headers_of(self, call: ProviderCall) -> httpx.Headers:
        """Copied, not built: only what the client said is encoded anew for each call."""
        headers = self._headers.copy()
        of_its_dialect = call.request.dialect is self.dialect
        for name in self._passed_on if of_its_dialect else TRACE_HEADERS:
            if value := call.headers.get(name):
                headers[name] = value
        return headers

    def _reading(self, call: ProviderCall, ignored: tuple[str, ...]) -> Reading:
        if call.forward:
            include_usage = call.request.include_usage
            return Forwarding(self._wire, self._link.provider, ignored, self._forms, include_usage)
        return Translating(self._wire, self._link.provider, ignored)

    async def _next(
        self, upstream: Upstream, framer: Framer, reading: Reading, watch: Watch
    ) -> list[StreamEvent]:
        """The events of one read; a fault is the last of them."""
        events: list[StreamEvent] = []
        try:
            chunk = await upstream.read()
            if not chunk:
                events.extend(reading.close(framer.rest()))
                return events
            frames = framer.feed(chunk)
            if frames:
                watch.progress()
            events.extend(reading.take(frames))
        except (httpx.TransportError, OutOfTime, Silent) as error:
            events.extend(reading.broke(unreachable(self._link.provider, error).failure))
        except FrameTooLong as error:
            failure = provider_error(self._link.provider, f"{self._link.provider} sent {error}.")
            events.extend(reading.broke(failure))
        return events
