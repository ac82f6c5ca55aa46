"""The Anthropic Messages wire. Source: https://docs.anthropic.com/en/api/messages-streaming

What a frame is stands in its `event:` line. No text of a model can pass for one: within a
frame its line ends are escaped.
"""

from collections.abc import Mapping
from typing import Any

from shared.config import ProviderConfig, Settings
from shared.domain.inference import Dialect
from workers.providers.http import Link
from workers.providers.reading import Forms
from workers.providers.transport import Transport
from workers.providers.wire import WireProvider

DEFAULT_VERSION = "2023-06-01"
PASSED_ON = ("anthropic-version", "anthropic-beta")

_PLAIN = (b"event: content_block_", b"event: ping")
_WORDS = (b"event: content_block_delta", b"event: content_block_stop")
_DELTA = b'"delta":'
# the shortest frame around a model's words; all others leave fewer characters for them
_AROUND_DELTA = len('"delta":{"type":"text_delta","text":""}}')
_AROUND_BLOCK = len(
    "event: content_block_start\ndata: "
    '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}'
)
_START = b"event: content_block_start"


def provider(config: ProviderConfig, settings: Settings, http: Transport) -> WireProvider:
    """A provider that speaks this wire at `config.base_url`."""
    headers = {"anthropic-version": DEFAULT_VERSION}
    if config.api_key is not None:
        headers["x-api-key"] = config.api_key.get_secret_value()
    link = Link(config.slug, http, settings)
    url = f"{config.base_url}/v1/messages"
    return WireProvider(Dialect.ANTHROPIC, FORMS, url, headers, link, PASSED_ON)


def _is_plain(frame: bytes) -> bool:
    return frame.startswith(_PLAIN)


def _is_word(frame: bytes) -> bool:
    return frame.startswith(_WORDS)


def _size(frame: bytes) -> int:
    at = frame.find(_DELTA)
    if at >= 0:
        return max(0, len(frame) - at - _AROUND_DELTA)
    return max(0, len(frame) - _AROUND_BLOCK) if frame.startswith(_START) else 0


def _begins_tail(data: Mapping[str, Any]) -> bool:
    return data.get("type") in ("message_delta", "message_stop")


def _is_last(data: Mapping[str, Any]) -> bool:
    return data.get("type") == "message_stop"


def _is_usage(data: Mapping[str, Any]) -> bool:
    """Usage stands in the frame of the finish reason, which every client is sent."""
    return False


FORMS = Forms(_is_plain, _is_word, _size, _begins_tail, _is_last, _is_usage)
