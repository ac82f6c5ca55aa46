"""What every body may hold besides the model's own fields: the target and the routing wishes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from shared.domain.conditions import DATA_CLASSES, REGION
from shared.domain.dialects.fields import (
    a_decimal,
    a_name,
    a_string,
    an_object,
    fault,
    optional_int,
    optional_string,
    storable,
    strings,
)
from shared.domain.inference import (
    Block,
    Capability,
    InferenceRequest,
    Message,
    RoutingHint,
    Tool,
    canonical_target,
)
from shared.domain.routing_policy import PREFERENCES
from shared.domain.task_type import TASK_TYPES

QUALITY_TIERS = {"good": Decimal("0.50"), "strong": Decimal("0.70"), "frontier": Decimal("0.85")}

# fields of a body that are meant for us and that no provider is sent
OWN_FIELDS = frozenset({"routing_hint", "ainfera", "background", "agent_id", "task_type"})
HINT_FIELDS = frozenset(
    {
        "task_type",
        "min_quality",
        "routing_preference",
        "budget_cap_usd",
        "latency_cap_ms",
        "allow",
        "deny",
        "data_class",
        "region",
        "quote_id",
    }
)
# another word is taken as if nothing had been said: `balanced`, or the classifier's task type
HINT_WORDS = {"routing_preference": PREFERENCES, "task_type": TASK_TYPES}
# the wishes that a header may say too, so that no client has to change its bodies
HINT_HEADERS = {
    "routing_preference": "x-ainfera-priority",
    "data_class": "x-ainfera-data-class",
    "region": "x-ainfera-region",
}
_REGION = re.compile(REGION)

_CAPABILITY_OF_BLOCK = {
    "image": Capability.VISION,
    "document": Capability.DOCUMENTS,
    "tool_use": Capability.TOOLS,
    "tool_result": Capability.TOOLS,
}


def read_target(body: Mapping[str, Any]) -> tuple[str, str | None]:
    """`(model, legacy alias or None)`, the aliases of the routing target resolved."""
    return canonical_target(a_name(body.get("model"), "model"))


def read_hint(body: Mapping[str, Any]) -> RoutingHint:
    """The `routing_hint` object; `task_type` may also stand at the top level of the body."""
    task_type = optional_string(body, "task_type")
    if body.get("routing_hint") is None:
        return RoutingHint(task_type=task_type)
    hint = an_object(body["routing_hint"], "routing_hint")
    at = "routing_hint."
    return RoutingHint(
        task_type=optional_string(hint, "task_type", at) or task_type,
        min_quality=_quality(hint.get("min_quality")),
        routing_preference=optional_string(hint, "routing_preference", at),
        budget_cap_usd=_budget(hint.get("budget_cap_usd")),
        latency_cap_ms=optional_int(hint, "latency_cap_ms", 0, at),
        allow=_slugs(hint.get("allow"), at + "allow"),
        deny=_slugs(hint.get("deny"), at + "deny"),
        data_class=_data_class(hint.get("data_class"), at + "data_class"),
        region=_region(hint.get("region"), at + "region"),
        quote_id=optional_string(hint, "quote_id", at),
    )


def hear_headers(request: InferenceRequest, headers: Mapping[str, str]) -> InferenceRequest:
    """The request with the wishes that its headers say; where its body says one, the body wins.

    Header names are in lower case. Raises `InvalidRequest`, which names the header at fault.
    """
    said = {wish: headers[name] for wish, name in HINT_HEADERS.items() if name in headers}
    if not said:
        return request
    hint = request.hint
    heard = RoutingHint(
        routing_preference=said.get("routing_preference"),
        data_class=_data_class(said.get("data_class"), HINT_HEADERS["data_class"]),
        region=_region(said.get("region"), HINT_HEADERS["region"]),
    )
    return replace(
        request,
        hint=replace(
            hint,
            routing_preference=hint.routing_preference or heard.routing_preference,
            data_class=hint.data_class or heard.data_class,
            region=hint.region or heard.region,
        ),
    )


def _data_class(value: Any, param: str) -> str | None:
    if value is None:
        return None
    if value not in DATA_CLASSES:
        raise fault(param, f"must be one of {', '.join(DATA_CLASSES)}")
    return str(value)


def _region(value: Any, param: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _REGION.fullmatch(value):
        raise fault(param, "must be a word of lowercase letters, digits and hyphens, such as eu")
    return value


def _slugs(value: Any, param: str) -> tuple[str, ...]:
    return tuple(storable(slug, param) for slug in strings(value, param))


def _quality(value: Any) -> Decimal | None:
    param = "routing_hint.min_quality"
    if value is None:
        return None
    if isinstance(value, str) and value in QUALITY_TIERS:
        return QUALITY_TIERS[value]
    if isinstance(value, str) and not value.strip().replace(".", "", 1).isdigit():
        raise fault(param, f"must be a number from 0 to 1 or one of {', '.join(QUALITY_TIERS)}")
    quality = a_decimal(value, param)
    if not 0 <= quality <= 1:
        raise fault(param, "must be between 0 and 1")
    return quality


def _budget(value: Any) -> Decimal | None:
    if value is None:
        return None
    budget = a_decimal(value, "routing_hint.budget_cap_usd")
    if budget < 0:
        raise fault("routing_hint.budget_cap_usd", "must not be negative")
    return budget


def unknown_wishes(body: Mapping[str, Any]) -> Iterator[str]:
    """What of `routing_hint` means nothing to us: fields, and words that are none of a field's."""
    if _no_word_of("task_type", body):
        yield "task_type"
    hint = body.get("routing_hint")
    if isinstance(hint, Mapping):
        for key in hint:
            if key not in HINT_FIELDS or _no_word_of(key, hint):
                yield f"routing_hint.{key}"


def _no_word_of(name: str, said: Mapping[str, Any]) -> bool:
    return name in HINT_WORDS and said.get(name) not in (None, *HINT_WORDS[name])


def read_agent(body: Mapping[str, Any]) -> str | None:
    value = body.get("agent_id")
    return None if value is None else a_string(value, "agent_id")


def capabilities(
    messages: Iterable[Message],
    tools: Iterable[Tool],
    thinking: Mapping[str, Any] | None,
    response_format: Mapping[str, Any] | None,
    vendor_tools: bool = False,
) -> frozenset[Capability]:
    """What a model must be able to do to answer such a request."""
    found = {
        _CAPABILITY_OF_BLOCK[block["type"]]
        for message in messages
        for block in _all_blocks(message.content)
        if block["type"] in _CAPABILITY_OF_BLOCK
    }
    if vendor_tools or any(True for _ in tools):
        found.add(Capability.TOOLS)
    if thinking is not None and thinking.get("type") in ("enabled", "adaptive"):
        found.add(Capability.THINKING)
    if response_format is not None and response_format.get("type") == "json_schema":
        found.add(Capability.JSON_SCHEMA)
    return frozenset(found)


def _all_blocks(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if block["type"] == "tool_result" and isinstance(block.get("content"), list):
            yield from block["content"]
