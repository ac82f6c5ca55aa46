"""One inference: the request, the events that answer it, and how it can fail.

Everything here is a plain value. A dialect parses a client's body into an
`InferenceRequest`; a provider turns a request into a stream of `StreamEvent`s;
a dialect renders these back. Content blocks have the Anthropic form throughout,
because it is the richest of the dialects: `{"type": "text", "text": …}`, `image`,
`document`, `tool_use`, `tool_result`, `thinking`, `redacted_thinking`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

ROUTING_TARGET = "ainfera-inference"
ROUTING_ALIASES = frozenset({"ainfera-mithril", "ainfera-auto", "ainfera/auto"})

Block = dict[str, Any]

# One SSE frame of a client dialect: the event's name, where the dialect names events, and
# its JSON object. OpenAI's closing line is no JSON; it is this one frame.
Frame = tuple[str | None, dict[str, Any]]
DONE_FRAME: Frame = (None, {"[DONE]": True})


class Dialect(StrEnum):
    NATIVE = "native"
    ANTHROPIC = "anthropic"
    OPENAI = "openai"


class FinishReason(StrEnum):
    """Why the model stopped, in the native result's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Capability(StrEnum):
    """What a request can ask of a model beyond text."""

    TOOLS = "tools"
    VISION = "vision"
    DOCUMENTS = "documents"
    THINKING = "thinking"
    JSON_SCHEMA = "json_schema"


class InvalidRequest(ValueError):
    """A body that no provider could be asked with; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by class. The classes are disjoint: `input_tokens` holds no cached token.

    `estimated` says that the provider named no usage and the numbers are our own count.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    estimated: bool = False

    @property
    def total_input(self) -> int:
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def limited(self) -> int:
        """What a key's limit counts: all but what a provider's cache spared it."""
        return self.input_tokens + self.cache_write_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class RoutingHint:
    """The caller's wishes for a routed call; None everywhere means: the policy decides.

    `data_class` and `region` say what the call is about and where it is made: they hold for a
    pinned model too.
    `quote_id` names the quote that the call shall be served by, a pinned one too.
    """

    task_type: str | None = None
    min_quality: Decimal | None = None
    routing_preference: str | None = None
    budget_cap_usd: Decimal | None = None
    latency_cap_ms: int | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    data_class: str | None = None
    region: str | None = None
    quote_id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `system` is an instruction in mid-conversation; those before it are `system`."""

    role: Literal["user", "assistant", "system"]
    content: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is its JSON schema.

    `strict` asks the provider to hold the model to the schema; None: the client did not say.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`any` forces some tool, `tool` forces the named one."""

    mode: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One call, whatever the dialect it came in.

    `model` is the client's word with aliases already resolved to `ROUTING_TARGET`.
    `alias` is the legacy name the client used, if it was one. `body` is the client's own
    body as parsed JSON; a provider of the same dialect is sent this very body, so that
    fields we do not know survive.
    """

    dialect: Dialect
    model: str
    messages: tuple[Message, ...]
    system: tuple[Block, ...] = ()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    thinking: Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    stream: bool = False
    include_usage: bool = False
    background: bool = False
    hint: RoutingHint = RoutingHint()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    agent_id: str | None = None
    alias: str | None = None
    capabilities: frozenset[Capability] = frozenset()
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def routed(self) -> bool:
        return self.model == ROUTING_TARGET


def canonical_target(model: str) -> tuple[str, str | None]:
    """`(canonical name, legacy alias or None)` for the model a client named."""
    return (ROUTING_TARGET, model) if model in ROUTING_ALIASES else (model, None)


@dataclass(frozen=True, slots=True)
class Started:
    """The provider accepted the call. `upstream_id` is the provider's own id of its answer.

    `ignored` names the fields of the client's body that this provider's wire has no word for.
    """

    upstream_id: str
    usage: Usage = Usage()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """Reasoning as it comes. `signature` closes a block; `redacted` is a whole opaque block."""

    text: str = ""
    signature: str = ""
    redacted: str = ""


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """`index` counts the tool calls of this answer from 0, not the content blocks."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Whole SSE frames in the client's own dialect, as the provider sent them.

    Only a provider that speaks the client's dialect yields these, and only when it was told
    to; `size` is the number of characters the model wrote, at most, for metering.
    """

    frames: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The provider finished. `tail` holds the last forwarded frames, from the finish reason on.

    They are kept back because a client may take them for the end, and the end is told only
    after the settlement. `cost_usd` is filled in by the settlement.
    """

    finish_reason: FinishReason
    finish_reason_native: str
    usage: Usage
    tail: bytes = b""
    stop_sequence: str | None = None
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call went wrong, as every dialect can tell it.

    `code` is one of the contract's codes; `detail` goes to the top level of a native error.
    """

    code: str
    status: int
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    retry_after: float | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The call broke; `usage` is what had been used by then, if it is known."""

    failure: Failure
    usage: Usage | None = None


StreamEvent = (
    Started
    | TextDelta
    | ThinkingDelta
    | ToolCallStarted
    | ToolCallDelta
    | Forwarded
    | Completed
    | Failed
)


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What our own frames and bodies say of a call besides the model's words.

    `model` is the name that goes into the body: the vendor's id of the model that answers.
    `created` is seconds since the epoch. `ignored` names the fields of the client's body
    that the chosen provider has no word for.
    """

    inference_id: str
    receipt_id: str
    agent_id: str
    audit_url: str
    model: str
    provider: str
    created: int
    include_usage: bool = False
    simulated: bool = False
    ignored: tuple[str, ...] = ()

    def answered_by(self, model: str, provider: str, **known: Any) -> "CallInfo":
        """The same call, answered by another model: a fallback."""
        return replace(self, model=model, provider=provider, **known)
