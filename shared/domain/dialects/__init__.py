"""The three dialects clients speak, and the two wires providers speak.

    DIALECTS[request.dialect].render_event(event, state)    # what a client is told
    WIRES[Dialect.OPENAI].build_request(request, model, 1024)  # what a provider is asked

A dialect is a module of pure functions; `ClientDialect` and `ProviderWire` say which.
"""

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Protocol

from shared.domain.dialects import anthropic, native, openai
from shared.domain.inference import (
    CallInfo,
    Dialect,
    Failure,
    Frame,
    InferenceRequest,
    StreamEvent,
    Usage,
)


class ClientDialect(Protocol):
    """What is said to a client. `RenderState` is kept for the length of one answer."""

    @property
    def RenderState(self) -> Callable[[CallInfo], Any]: ...  # noqa: N802

    def parse_request(self, body: Mapping[str, Any]) -> InferenceRequest: ...

    def render_event(self, event: StreamEvent, state: Any) -> list[Frame]: ...

    def fold(
        self,
        frames: Iterable[Frame],
        call: CallInfo,
        cost_usd: Decimal | None,
        usage: Usage | None,
    ) -> dict[str, Any]: ...

    def render_failure(self, failure: Failure, inference_id: str | None) -> dict[str, Any]: ...

    def http_status(self, failure: Failure) -> int: ...


class ProviderWire(Protocol):
    """What is said to a provider. `ParseState` is kept for the length of one answer."""

    @property
    def ParseState(self) -> Callable[[], Any]: ...  # noqa: N802

    def build_request(
        self,
        request: InferenceRequest,
        provider_model: str,
        max_tokens_default: int,
    ) -> tuple[dict[str, Any], tuple[str, ...]]: ...

    def parse_event(
        self,
        name: str | None,
        data: Mapping[str, Any],
        state: Any,
    ) -> list[StreamEvent]: ...

    def end_of_stream(self, state: Any) -> list[StreamEvent]: ...


DIALECTS: dict[Dialect, ClientDialect] = {
    Dialect.NATIVE: native,
    Dialect.ANTHROPIC: anthropic,
    Dialect.OPENAI: openai,
}
WIRES: dict[Dialect, ProviderWire] = {Dialect.ANTHROPIC: anthropic, Dialect.OPENAI: openai}
