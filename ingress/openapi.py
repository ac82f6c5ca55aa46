"""What /openapi.json says beyond what the framework reads from the code.

Inference calls take a bare request and give a bare response, for speed, so their bodies, answers
and errors are described here. The document is about shapes; what is checked is in `shared/domain`.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBearer
from fastapi.security.base import SecurityBase

from ingress import openapi_schemas as schemas
from ingress import openapi_views as views
from ingress.scopes import ROUTES, Access, Open
from shared.domain.dialects import DIALECTS
from shared.domain.inference import Dialect
from shared.domain.keys import in_order
from shared.errors import (
    AinferaError,
    Cancelled,
    DeadlineExceeded,
    Draining,
    EventsExpired,
    Forbidden,
    HandleTaken,
    IdempotencyConflict,
    InsufficientFunds,
    InternalError,
    InvalidApiKey,
    InvalidBody,
    KillswitchEngaged,
    ModelUnavailable,
    NoCandidateClearsFloor,
    NoCandidateEnrolled,
    NotFound,
    Overloaded,
    ProviderError,
    QuoteExpired,
    QuoteMismatch,
    QuoteUsed,
    RateLimited,
    RequestTooLarge,
    SpendPolicyExceeded,
    ToolsNotSupported,
)

# what an inference call can be answered instead
CALL_ERRORS: tuple[type[AinferaError], ...] = (
    InvalidBody,
    InvalidApiKey,
    InsufficientFunds,
    Forbidden,
    SpendPolicyExceeded,
    NotFound,
    IdempotencyConflict,
    QuoteUsed,
    QuoteMismatch,
    Cancelled,
    QuoteExpired,
    RequestTooLarge,
    ModelUnavailable,
    NoCandidateClearsFloor,
    NoCandidateEnrolled,
    ToolsNotSupported,
    RateLimited,
    InternalError,
    ProviderError,
    Overloaded,
    Draining,
    KillswitchEngaged,
    DeadlineExceeded,
)
_QUOTE_ERRORS = (
    *(InvalidBody, InvalidApiKey, Forbidden, NotFound, RequestTooLarge),
    *(ModelUnavailable, NoCandidateClearsFloor, NoCandidateEnrolled, ToolsNotSupported),
    *(RateLimited, InternalError, Overloaded, KillswitchEngaged),
)
_COUNT_ERRORS = (InvalidBody, InvalidApiKey, NotFound, RequestTooLarge, InternalError, Overloaded)

Extra = dict[str, Any]

KEY_NEEDED: Extra = {"security": [{"bearer": []}, {"apiKey": []}]}
KEY_OPTIONAL: Extra = {"security": [{}, *KEY_NEEDED["security"]]}
INTERNAL_OR_OWN_KEY: Extra = {"security": [*KEY_NEEDED["security"], {"internalKey": []}]}
INTERNAL_KEY_OPTIONAL: Extra = {"security": [{}, {"internalKey": []}]}

_KEY_FORM = "A key of Ainfera, `ainfera_…`"
_INTERNAL_KEY = {"type": "apiKey", "in": "header", "name": "X-Ainfera-Internal-Key"}


class _Scheme(SecurityBase):
    """A way to show a key, for the document alone: `ingress/auth.py` reads the headers itself."""

    def __init__(self, name: str, model: HTTPBearer | APIKey) -> None:
        self.scheme_name, self.model = name, model

    async def __call__(self) -> None:
        return None


BEARER = _Scheme("bearer", HTTPBearer(description=f"{_KEY_FORM}."))
API_KEY = _Scheme(
    "apiKey",
    APIKey.model_validate(
        {"in": APIKeyIn.header, "name": "x-api-key", "description": f"{_KEY_FORM}, as well."}
    ),
)


def call(dialect: Dialect, example: Mapping[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of an inference route; `example` is the least that a body can be."""
    request, result, stream = schemas.OF_DIALECT[dialect]
    routed = {**example, "model": "ainfera-inference", "stream": True}
    return {
        **KEY_NEEDED,
        "parameters": schemas.CALL_PARAMETERS,
        "requestBody": _body(
            request, {"pinned": {"value": example}, "routed, streamed": {"value": routed}}
        ),
        "responses": {
            "200": {
                "description": "The answer; with `stream` as server-sent events, each forwarded "
                "when it comes. What goes wrong after the first one is an event of the stream.",
                "headers": schemas.ANSWER_HEADERS,
                "content": {
                    "application/json": {"schema": schemas.ref(result)},
                    "text/event-stream": {"schema": {"type": "string", "description": stream}},
                },
            },
            "202": {
                "description": "With `background`: the call is kept and goes on by itself.",
                "headers": schemas.ANSWER_HEADERS,
                "content": {"application/json": {"schema": schemas.ref("Accepted")}},
            },
            **failures(CALL_ERRORS, dialect),
        },
    }


def count(example: Mapping[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of the route that counts tokens."""
    counted = {"application/json": {"schema": schemas.ref("TokenCount")}}
    return {
        **KEY_NEEDED,
        "requestBody": _body("MessagesRequest", {"message": {"value": example}}),
        "responses": {
            "200": {"description": "The estimate that decisions use.", "content": counted},
            **failures(_COUNT_ERRORS, Dialect.ANTHROPIC),
        },
    }


def quote(example: Mapping[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of the route that quotes a call: its body is a call's, in any dialect."""
    routed = {**example, "model": "ainfera-inference"}
    held = {**routed, "hold_for_s": 300}
    quoted = {"application/json": {"schema": schemas.ref("Quote")}}
    body = _body("InferenceRequest", {"routed": {"value": routed}, "held": {"value": held}})
    refused = failures(_QUOTE_ERRORS, Dialect.NATIVE)
    refused["422"]["description"] += ". Where the router refused, `decision` is its signed receipt."
    return {
        **KEY_NEEDED,
        "parameters": views.QUOTE_PARAMETERS,
        "requestBody": body,
        "responses": {
            "200": {"description": "What the call would choose and cost.", "content": quoted},
            **refused,
        },
    }


def _body(schema: str, examples: Mapping[str, Any]) -> dict[str, Any]:
    content = {"schema": schemas.ref(schema), "examples": examples}
    return {"required": True, "content": {"application/json": content}}


def failures(errors: tuple[type[AinferaError], ...], dialect: Dialect) -> dict[str, Any]:
    """Responses by status, as the dialect has them; each names the codes that come with it."""
    codes: dict[int, list[str]] = {}
    for error in errors:
        status = DIALECTS[dialect].http_status(error("").failure())
        codes.setdefault(status, []).append(f"`{error.code}`")
    return {
        str(status): _failure(" or ".join(found), schemas.ERROR_OF_DIALECT[dialect])
        for status, found in sorted(codes.items())
    }


def _failure(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas.ref(schema)}}
    return {"description": description, "content": content}


EVENTS: Extra = {
    "parameters": [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "string"},
            "description": "The `id` of the last event that you have; without it, all of them.",
        }
    ],
    "responses": {
        "200": {
            "description": "The events in the dialect of the call, as they come.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        "204": {"description": "Nothing comes after that event."},
        **failures((InvalidBody, NotFound, EventsExpired, Overloaded), Dialect.NATIVE),
    },
}
NOT_FOUND: Extra = {"responses": failures((NotFound,), Dialect.NATIVE)}
HANDLE_TAKEN: Extra = {"responses": failures((HandleTaken,), Dialect.NATIVE)}
SIGNUP: Extra = {**INTERNAL_KEY_OPTIONAL, **HANDLE_TAKEN}


def view(schema: str, *, csv: bool = False, of_one: bool = False) -> Extra:
    """`openapi_extra` of figures that are read; `of_one` names an agent, which may be unknown."""
    content: Extra = {"application/json": {"schema": schemas.ref(schema)}}
    if csv:
        content["text/csv"] = {"schema": {"type": "string"}}
    refusals = (InvalidBody, *((NotFound,) if of_one else ()), Overloaded)
    return {
        "responses": {
            "200": {"description": "The figures.", "content": content},
            **failures(refusals, Dialect.NATIVE),
        }
    }


def describe(app: FastAPI) -> None:
    """Have the app's document completed when it is first asked for; it is kept then."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(generate())
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> None:
    """Add our components; say of every operation how it refuses what it cannot read or admit."""
    components = document["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["schemas"] |= schemas.COMPONENTS | views.COMPONENTS
    components["securitySchemes"]["internalKey"] = _INTERNAL_KEY
    native = schemas.ERROR_OF_DIALECT[Dialect.NATIVE]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            _tell_access(operation, ROUTES.get((method.upper(), path)), native)
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
                responses["400"] = _failure("`invalid_request`, names the field", native)
            if {} not in operation.get("security", [{}]):
                responses.setdefault("401", _failure("`invalid_api_key`", native))
            if "500" in responses:
                continue  # an inference call: all of its refusals are there, in its dialect
            written = "401" in responses and "requestBody" in operation
            if "401" in responses:
                responses.setdefault("503", _failure("`overloaded`", native))
            if written:
                responses.setdefault("403", _failure("`forbidden`", native))
            if "{" in path or written:
                words = "`not_found`: unknown, or someone else's"
                responses.setdefault("404", _failure(words, native))


def _tell_access(operation: dict[str, Any], access: Access | None, native: str) -> None:
    """Which scopes are good for an operation, and how it refuses keys and strangers."""
    responses = operation["responses"]
    if isinstance(access, frozenset):
        operation["x-scopes"] = in_order(access)
        responses.setdefault("403", _failure("`forbidden`: the key has not the scope", native))
    elif access in (Open.METERED, Open.SIGNUP):
        responses.setdefault("429", _failure("`rate_limited`, by the client's address", native))
