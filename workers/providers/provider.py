"""The seam between a worker and whoever answers."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shared.domain.inference import Dialect, InferenceRequest, StreamEvent


@dataclass(frozen=True, slots=True)
class ProviderCall:
    """One question to one provider.

    `model` is the provider's own id, `slug` ours. `max_output_tokens` is the limit to ask for
    where the wire demands one and the client named none. `forward` asks for the provider's
    own frames (`Forwarded`), and is only set for a provider of the client's dialect.
    `headers` are client headers to pass on; `seed` is the inference id. `deadline_s` is what is
    left of the call's time, None for all of it.
    """

    request: InferenceRequest
    model: str
    slug: str
    max_output_tokens: int
    forward: bool
    seed: str
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float | None = None


class Provider(Protocol):
    """Answers calls as a stream of events that ends with `Completed` or `Failed`.

    No fault of a provider is raised. `Started` comes with the first word, never before it: until
    then nothing has been told and another model may still be asked. Closing the generator ends
    the call at the provider.
    `dialect` is the wire that is spoken, None for a provider without a wire.
    """

    @property
    def dialect(self) -> Dialect | None: ...

    @property
    def simulated(self) -> bool: ...

    def stream(self, call: ProviderCall) -> AsyncGenerator[StreamEvent, None]: ...
