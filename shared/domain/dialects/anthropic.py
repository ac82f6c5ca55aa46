"""The Anthropic Messages dialect, both sides of it."""

from shared.domain.dialects.anthropic_errors import http_status, render_failure
from shared.domain.dialects.anthropic_events import ParseState, end_of_stream, parse_event
from shared.domain.dialects.anthropic_provider import build_request
from shared.domain.dialects.anthropic_request import parse_request
from shared.domain.dialects.anthropic_stream import RenderState, fold, render_event

__all__ = [
    "ParseState",
    "RenderState",
    "build_request",
    "end_of_stream",
    "fold",
    "http_status",
    "parse_event",
    "parse_request",
    "render_event",
    "render_failure",
]
