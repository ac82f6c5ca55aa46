"""What a client said that another vendor's wire has no word for."""

from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.dialects.fields import fault
from shared.domain.dialects.wishes import OWN_FIELDS, unknown_wishes
from shared.domain.inference import Dialect, InferenceRequest

# values by which a client says no more than leaving the field out would
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
}
# fields of a native body that either vendor's wire has a word for
NATIVE_SAID = frozenset(
    {
        "model",
        "messages",
        "system",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "thinking",
        "response_format",
        "stream",
        "metadata",
    }
)
_MESSAGE_FIELDS = {
    Dialect.OPENAI: frozenset(
        {
            "role",
            "content",
            "tool_calls",
            "tool_call_id",
            "refusal",
            "thinking_blocks",
            "reasoning_content",
        }
    ),
    Dialect.ANTHROPIC: frozenset({"role", "content"}),
}
_MESSAGE_FIELDS[Dialect.NATIVE] = _MESSAGE_FIELDS[Dialect.OPENAI]


def unsaid(request: InferenceRequest, said: frozenset[str]) -> Iterator[str]:
    """Names of the body's fields outside `said` that a translated request does not carry.

    Raises `InvalidRequest` for a tool that only the vendor of the dialect can run.
    """
    refuse_vendor_tools(request)
    yield from unknown_wishes(request.body)
    for key, value in request.body.items():
        if key not in said and key not in OWN_FIELDS and not _says_nothing(key, value):
            yield key
    yield from sorted(_message_fields(request))


def refuse_vendor_tools(request: InferenceRequest) -> None:
    tools = request.body.get("tools") or ()
    if len(tools) == len(request.tools):
        return
    names = {tool.name for tool in request.tools}
    for i, tool in enumerate(tools):
        if _tool_name(tool) not in names:
            raise fault(f"tools[{i}]", f"{tool.get('type')} is a tool of the vendor's own models")


def _tool_name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    if isinstance(function, Mapping):
        return function.get("name")
    return tool.get("name") if tool.get("type") in (None, "custom") else None


def _says_nothing(key: str, value: Any) -> bool:
    return value is None or value in _DEFAULTS.get(key, ()) or value in ([], {})


def _message_fields(request: InferenceRequest) -> set[str]:
    known = _MESSAGE_FIELDS[request.dialect]
    return {
        f"messages[].{key}"
        for message in request.body.get("messages", ())
        for key, value in message.items()
        if key not in known and value is not None
    }
