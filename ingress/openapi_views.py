"""JSON Schemas of what finance and agents' owners read, for the document."""

from typing import Any

Schema = dict[str, Any]

_ID: Schema = {"type": "string", "format": "uuid"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_USD: Schema = {"type": "string", "description": "US dollars.", "pattern": r"^-?\d+(\.\d{1,9})?$"}
_MOMENT: Schema = {"type": "string", "format": "date-time"}
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}


def _thing(properties: Schema) -> Schema:
    """An object; all of its fields are always there."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _maybe(thing: Schema, properties: Schema) -> Schema:
    """The same, with fields that are there only where there is something to say."""
    return {**thing, "properties": {**thing["properties"], **properties}}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_SHARE: Schema = _or_null({"type": "number", "minimum": 0, "maximum": 1})
_PAGE: Schema = {"has_more": _FLAG, "next_cursor": _or_null(_ID)}
_SPENT: Schema = {"calls": _COUNT, "cost_usd": _USD}
_PURSE: Schema = {
    "agent_id": _ID,
    "balance_usd": _USD,
    "available_usd": _USD,
    "held_usd": _USD,
}


def _sums(noun: str, name: str) -> Schema:
    row = _thing({name: _TEXT, **_SPENT, "first_at": _MOMENT, "last_at": _MOMENT})
    return _thing({noun: _list(row), "has_more": _FLAG})


_ASKED: Schema = {
    "model": _TEXT,
    "model_used": _TEXT,
    "provider": _TEXT,
    "projected_cost_usd": _USD,
    "held_usd": {**_USD, "description": "US dollars held when the call begins."},
    "maximum_cost_usd": {
        **_USD,
        "description": "US dollars at the most, for as many output tokens as the request or the "
        "model allows; the input is estimated.",
    },
}
_MONEY: Schema = {"settled_usd": _USD, "held_usd": _USD, "available_usd": _USD}
QUOTE_PARAMETERS: list[Schema] = [
    {
        "name": "dialect",
        "in": "query",
        "required": False,
        "description": "The dialect of the body.",
        "schema": {
            "type": "string",
            "enum": ["native", "anthropic", "openai"],
            "default": "native",
        },
    },
    {
        "name": "hold_for_s",
        "in": "query",
        "required": False,
        "description": "Hold the quote for so many seconds; it may also stand in the body.",
        "schema": _COUNT,
    },
]


COMPONENTS: Schema = {
    "Quote": _thing(
        {
            "quote_id": _or_null(_ID),
            "expires_at": _or_null(_MOMENT),
            "router": _TEXT,
            **_ASKED,
            "input_tokens_estimated": _COUNT,
            "output_tokens_reserved": _COUNT,
            "fallbacks": _list(_thing(_ASKED)),
            "funds": _thing(
                {
                    "allowed": _FLAG,
                    **_MONEY,
                    "required_usd": _USD,
                    "caps": _list(_thing({"cap": _TEXT, "cap_usd": _USD, **_MONEY})),
                    "refusal": _or_null(
                        _thing(
                            {
                                "status": _COUNT,
                                "code": _TEXT,
                                "message": _TEXT,
                                "detail": {"type": "object"},
                            }
                        )
                    ),
                }
            ),
            "decision": _or_null({"type": "object"}),
        }
    ),
    "UsageBySession": _sums("sessions", "session_id"),
    "UsageByParentAgent": _sums("parent_agents", "parent_agent_id"),
    "UsageDaily": _thing(
        {
            "days": _list(
                _thing(
                    {
                        "date": {"type": "string", "format": "date", "description": "UTC."},
                        **_SPENT,
                        "by_status": _thing(dict.fromkeys(("ok", "fallback", "error"), _COUNT)),
                    }
                )
            ),
            "totals": _thing(_SPENT),
        }
    ),
    "CapsRollup": _maybe(
        _thing(
            {
                "agents": _COUNT,
                "policies_set": _COUNT,
                "budget": _thing({"set": _or_null(_USD), "used_usd": _USD}),
                "latency_p50_ms": _or_null(_COUNT),
                "breaches": _thing({"quality": _COUNT, "reliability": _COUNT}),
            }
        ),
        {"tenant_cap_usd": _USD},
    ),
    "AgentMetrics": _thing(
        {
            "agent_id": _ID,
            "window_hours": _COUNT,
            **_SPENT,
            "latency_p50_ms": _or_null(_COUNT),
            "latency_p95_ms": _or_null(_COUNT),
            "error_rate": _SHARE,
            "fallback_rate": _SHARE,
            "top_models": _list(_thing({"model": _TEXT, **_SPENT})),
        }
    ),
    "Wallet": _thing(_PURSE),
    "Wallets": _thing({"wallets": _list(_thing({**_PURSE, "name": _TEXT})), **_PAGE}),
    "Ledger": _thing(
        {
            "agent_id": _ID,
            "balance_usd": _USD,
            "entries": _list(
                _thing(
                    {
                        "id": _ID,
                        "agent_id": _ID,
                        "amount_usd": _USD,
                        "balance_after_usd": _or_null(_USD),
                        "kind": _TEXT,
                        "memo": _or_null(_TEXT),
                        "inference_id": _or_null(_ID),
                        "created_at": _MOMENT,
                    }
                )
            ),
            **_PAGE,
        }
    ),
}
