"""The OpenAI chat wire, as a whole family of providers speaks it.

Source: https://platform.openai.com/docs/api-reference/chat-streaming. A chunk is plain if its
bytes prove that it has no finish reason, usage, refusal, tool call or error; those are parsed,
as is every chunk of a provider that writes its JSON otherwise. No text of a model can pass
for the proof: within a string its quotes are escaped.
"""

from collections.abc import Mapping
from typing import Any

from shared.config import ProviderConfig, Settings
from shared.domain.inference import Dialect
from workers.providers.http import Link
from workers.providers.reading import Forms, is_done
from workers.providers.transport import Transport
from workers.providers.wire import WireProvider

_UNFINISHED = b'"finish_reason":null'
_DELTA = b'"delta":{'
_LOGPROBS = b',"logprobs":'
_AROUND_DELTA = len('"content":""},')


def provider(config: ProviderConfig, settings: Settings, http: Transport) -> WireProvider:
    """A provider that speaks this wire at `config.base_url`."""
    headers = {}
    if config.api_key is not None:
        headers["authorization"] = f"Bearer {config.api_key.get_secret_value()}"
    link = Link(config.slug, http, settings)
    return WireProvider(Dialect.OPENAI, FORMS, f"{config.base_url}/chat/completions", headers, link)


def _is_plain(frame: bytes) -> bool:
    return (
        frame.startswith(b"data: {")
        and _UNFINISHED in frame
        and b'"error"' not in frame
        and b'"usage":{' not in frame
        and b'"tool_calls":[' not in frame
        and b'"refusal":"' not in frame
    )


def _is_word(frame: bytes) -> bool:
    return True


def _size(frame: bytes) -> int:
    start, end = frame.find(_DELTA), frame.rfind(_UNFINISHED)
    logprobs = frame.find(_LOGPROBS, start)
    if 0 <= logprobs < end:
        end = logprobs + 1
    if end < start:
        end = len(frame)
    return max(0, end - start - len(_DELTA) - _AROUND_DELTA)


def _begins_tail(data: Mapping[str, Any]) -> bool:
    choices = data.get("choices")
    return is_done(data) or any(choice.get("finish_reason") for choice in choices or ())


def _is_usage(data: Mapping[str, Any]) -> bool:
    return bool(data.get("usage")) and not data.get("choices")


FORMS = Forms(
    _is_plain, _is_word, _size, _begins_tail, is_done, _is_usage, closing_frame=b"data: [DONE]"
)
