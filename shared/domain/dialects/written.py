"""How much the model wrote in frames that a client was told, for metering them afterwards."""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.domain.dialects import WIRES
from shared.domain.inference import (
    DONE_FRAME,
    Dialect,
    Frame,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)


def written_in_frames(dialect: Dialect, frames: Iterable[Frame]) -> int:
    """Characters the model wrote, in frames of a client's dialect, ours or a provider's."""
    if dialect is Dialect.NATIVE:
        return sum(_native(data) for _, data in frames)
    wire = WIRES[dialect]
    state = wire.ParseState()
    written = 0
    for name, data in frames:
        if (name, data) == DONE_FRAME:
            continue
        for event in wire.parse_event(name, data, state):
            match event:
                case TextDelta(text=text) | ThinkingDelta(text=text):
                    written += len(text)
                case ToolCallDelta(arguments=arguments):
                    written += len(arguments)
    return written


def _native(data: Mapping[str, Any]) -> int:
    return sum(len(data.get(key) or "") for key in ("text", "thinking", "arguments_delta"))
