"""JSON Schemas of the inference calls' bodies, for the document: main fields, no more.

Fields that are not named here are taken as well. What the provider's wire has no word for is named
by `x-ainfera-ignored-fields`.
"""

from typing import Any

from shared.domain.conditions import DATA_CLASSES, REGION
from shared.domain.dialects.wishes import QUALITY_TIERS
from shared.domain.inference import Dialect

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _either(*choices: Schema, **more: Any) -> Schema:
    return {"anyOf": list(choices), **more}


def _thing(properties: Schema, required: str = "", **more: Any) -> Schema:
    """An object; `required` are names with blanks between them. Others may be there too."""
    needed = {"required": required.split()} if required else {}
    return {"type": "object", "properties": properties, **needed, **more}


_OBJECT: Schema = {"type": "object"}
_FLAG: Schema = {"type": "boolean", "default": False}
_ID: Schema = {"type": "string", "format": "uuid"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LIMIT: Schema = {"type": "integer", "minimum": 1}
_STRINGS: Schema = _either(_text(), _list(_text()))
_USD: Schema = _text("US dollars as a decimal.", pattern=r"^-?\d+(\.\d{1,9})?$")
_CONTENT: Schema = _either(_text(), _list(_OBJECT), {"type": "null"})


def _between(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _messages(*roles: str) -> Schema:
    role = {"type": "string", "enum": list(roles)}
    message = _thing({"role": role, "content": _CONTENT}, "role")
    return _list(message, minItems=1)


_COMMON: Schema = {
    "model": _text(
        "`ainfera-inference` lets the router choose; or one model of GET /v1/models, "
        "by its id or its slug."
    ),
    "max_tokens": _LIMIT,
    "top_p": _between(0, 1),
    "stream": _FLAG,
    "background": {**_FLAG, "description": "Answer 202 now; the call goes on by itself."},
    "metadata": _OBJECT,
    "routing_hint": ref("RoutingHint"),
    "task_type": _text("As in `routing_hint`."),
    "agent_id": {**_ID, "description": "An agent of the key's tenant, else the key's own."},
}
_BOTH_ROLES = ("system", "developer", "user", "assistant", "tool")

_REQUESTS: Schema = {
    "RoutingHint": _thing(
        {
            "task_type": _text(
                examples=["reasoning", "code", "extraction", "chat", "tool_use", "general"]
            ),
            "min_quality": _either(_between(0, 1), {"type": "string", "enum": list(QUALITY_TIERS)}),
            "routing_preference": _text(examples=["quality", "balanced", "cost"]),
            "budget_cap_usd": _either(_USD, {"type": "number", "minimum": 0}),
            "latency_cap_ms": _COUNT,
            "quote_id": {**_ID, "description": "A held quote of this request."},
            "allow": {**_STRINGS, "description": "Slugs or brands; no others are chosen."},
            "deny": {**_STRINGS, "description": "Slugs or brands that are not chosen."},
            "data_class": _text(
                "What the data is; some brands take some classes only.", enum=list(DATA_CLASSES)
            ),
            "region": _text("Where the call belongs.", pattern=f"^{REGION}$", examples=["eu"]),
        },
        description="Wishes for the router. For a model that was named, only `data_class` and "
        "`region` have a meaning. The headers `x-ainfera-priority` (`routing_preference`), "
        "`x-ainfera-data-class` and `x-ainfera-region` say the same where the body does not.",
    ),
    "InferenceRequest": _thing(
        {
            **_COMMON,
            "messages": _messages(*_BOTH_ROLES),
            "system": _either(_text(), _list(_OBJECT)),
            "temperature": _between(0, 2),
            "stop": _STRINGS,
            "tools": _list(_OBJECT, description="In the OpenAI or the Anthropic form."),
            "tool_choice": _either(_text(), _OBJECT),
            "thinking": _OBJECT,
            "response_format": _OBJECT,
        },
        "model messages",
    ),
    "MessagesRequest": _thing(
        {
            **_COMMON,
            "messages": _messages("user", "assistant", "system"),
            "system": _either(_text(), _list(_OBJECT)),
            "max_tokens": {**_COUNT, "description": "May be left out here."},
            "temperature": _between(0, 1),
            "stop_sequences": _list(_text()),
            "tools": _list(_thing({"name": _text(), "input_schema": _OBJECT})),
            "tool_choice": _thing(
                {"type": {"type": "string", "enum": ["auto", "any", "none", "tool"]}}, "type"
            ),
            "thinking": _OBJECT,
        },
        "model messages",
    ),
    "ChatCompletionRequest": _thing(
        {
            **_COMMON,
            "messages": _messages(*_BOTH_ROLES),
            "max_completion_tokens": _LIMIT,
            "temperature": _between(0, 2),
            "stop": _STRINGS,
            "n": {"const": 1},
            "tools": _list(_thing({"type": _text(), "function": _OBJECT}, "type")),
            "tool_choice": _either(
                {"type": "string", "enum": ["auto", "none", "required"]}, _OBJECT
            ),
            "parallel_tool_calls": {"type": "boolean", "default": True},
            "response_format": _OBJECT,
            "stream_options": _thing({"include_usage": _FLAG}),
        },
        "model messages",
    ),
}

_TOLD_IF_SO: Schema = {
    "simulated": {"const": True, "description": "There only if no provider was asked."},
    "ignored": _list(_text(), description="Fields of the request that were not served."),
}
_ANSWERS: Schema = {
    "CallFields": _thing(
        {
            **dict.fromkeys(("inference_id", "receipt_id", "agent_id"), _ID),
            "provider": _text(),
            "audit_url": _text(format="uri"),
            **_TOLD_IF_SO,
        },
        "inference_id receipt_id agent_id provider audit_url",
    ),
    "InferenceResult": _thing(
        {
            **dict.fromkeys(("inference_id", "receipt_id", "agent_id"), _ID),
            "content": _text("All text of the answer; empty if there is none."),
            "content_blocks": _list(_OBJECT, description="In the Anthropic form."),
            "tool_calls": _list(_OBJECT, description="In the OpenAI form."),
            "model_used": _text("The vendor's id."),
            "provider": _text(),
            "finish_reason": {
                "type": "string",
                "enum": ["stop", "length", "tool_calls", "content_filter"],
            },
            "finish_reason_native": _either(_text(), {"type": "null"}),
            "input_tokens": _COUNT,
            "output_tokens": _COUNT,
            "cache_read_tokens": _COUNT,
            "cache_write_tokens": _COUNT,
            "usage_estimated": {"const": True},
            "cost_usd": _either(_USD, {"type": "null"}),
            **_TOLD_IF_SO,
        },
        "inference_id receipt_id agent_id content content_blocks model_used provider "
        "finish_reason input_tokens output_tokens cost_usd",
    ),
    "Message": _thing(
        {
            "id": _text(),
            "type": {"const": "message"},
            "role": {"const": "assistant"},
            "model": _text("The vendor's id."),
            "content": _list(_thing({"type": _text()}, "type")),
            "stop_reason": _either(_text(), {"type": "null"}),
            "stop_sequence": _either(_text(), {"type": "null"}),
            "usage": _thing({"input_tokens": _COUNT, "output_tokens": _COUNT}),
            "ainfera": ref("CallFields"),
        },
        "id type role model content stop_reason usage ainfera",
    ),
    "ChatCompletion": _thing(
        {
            "id": _text(),
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _text("The vendor's id."),
            "choices": _list(
                _thing({"index": _COUNT, "message": _OBJECT, "finish_reason": _text()}),
                minItems=1,
            ),
            "usage": _thing(
                dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)
            ),
            "ainfera": ref("CallFields"),
        },
        "id object created model choices usage ainfera",
    ),
    "TokenCount": _thing({"input_tokens": _COUNT}, "input_tokens"),
    "Accepted": _thing(
        {
            **dict.fromkeys(("inference_id", "receipt_id"), _ID),
            "status": _text("As GET /v1/inferences/{id} says it."),
            **dict.fromkeys(("url", "events_url"), _text(format="uri")),
        },
        "inference_id receipt_id status url events_url",
    ),
}

_ERRORS: Schema = {
    "Error": _thing(
        {
            "code": _text(),
            "message": _text("What is wrong and what to do."),
            "detail": _OBJECT,
            "inference_id": _ID,
        },
        "code message detail",
        description="The fields of `detail` stand at the top level as well.",
    ),
    "MessagesError": _thing(
        {
            "type": {"const": "error"},
            "error": _thing({"type": _text(), "message": _text()}, "type message"),
            "request_id": _either(_ID, {"type": "null"}),
            "ainfera": _thing({"code": _text()}, "code"),
        },
        "type error",
    ),
    "ChatCompletionError": _thing(
        {
            "error": _thing(
                {
                    "message": _text(),
                    "type": _text(),
                    "param": _either(_text(), {"type": "null"}),
                    "code": _text(),
                },
                "message type param code",
            ),
            "ainfera": _OBJECT,
        },
        "error",
    ),
}

COMPONENTS: Schema = {**_REQUESTS, **_ANSWERS, **_ERRORS}

# request, answer, and what the events of a stream are
OF_DIALECT = {
    Dialect.NATIVE: (
        "InferenceRequest",
        "InferenceResult",
        "`started`, then `delta` and `tool_call` events, then `completed` with an InferenceResult, "
        "or `error` with an Error.",
    ),
    Dialect.ANTHROPIC: (
        "MessagesRequest",
        "Message",
        "`message_start`; for each block `content_block_start`, `content_block_delta` and "
        "`content_block_stop`; `message_delta` and `message_stop`; `ping` in between. `error` with "
        "a MessagesError ends it early.",
    ),
    Dialect.OPENAI: (
        "ChatCompletionRequest",
        "ChatCompletion",
        "`chat.completion.chunk` objects, then `[DONE]`. A chunk with a ChatCompletionError ends "
        "it early.",
    ),
}
ERROR_OF_DIALECT = {
    Dialect.NATIVE: "Error",
    Dialect.ANTHROPIC: "MessagesError",
    Dialect.OPENAI: "ChatCompletionError",
}

CALL_PARAMETERS: list[Schema] = [
    {
        "name": "X-Ainfera-Agent-Id",
        "in": "header",
        "required": False,
        "description": "An agent of the key's tenant; `agent_id` of the body wins.",
        "schema": _ID,
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "The same key and request is the same call: never run or charged twice.",
        "schema": {**_text(), "minLength": 1, "maxLength": 255},
    },
    {
        "name": "x-ainfera-quote",
        "in": "header",
        "required": False,
        "description": "A held quote of this very request (POST /v1/quote), by whose choice and "
        "prices it is served; `routing_hint.quote_id` is the same.",
        "schema": _ID,
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "description": "W3C Trace Context; the trace goes on to the provider.",
        "schema": _text(),
    },
]


def _header(description: str, **schema: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **schema}}


ANSWER_HEADERS: Schema = {
    "x-ainfera-inference-id": _header("The call.", format="uuid"),
    "x-ainfera-receipt-id": _header("Its receipt, GET /v1/receipts/{id}.", format="uuid"),
    "x-ainfera-agent-id": _header("Who called.", format="uuid"),
    "x-ainfera-audit-url": _header("Where the agent's chain is verified.", format="uri"),
    "x-ainfera-model": _header("The vendor's id of the model, where it is known by now."),
    "x-ainfera-router": _header("`ainfera-inference`, or `direct` where the model was named."),
    "x-ainfera-stream-mode": _header("`native` on streams."),
    "x-ainfera-simulated": _header("`true` if no provider was asked."),
    "idempotent-replayed": _header("`true` if this is the answer of an earlier call."),
    "x-ainfera-ignored-fields": _header("Fields of the request that were not served."),
}
