"""The document of the API says what is true: bodies, answers, errors, and where a key is needed."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import httpx
import pytest
import pytest_asyncio

from ingress.openapi import CALL_ERRORS
from shared.domain.dialects import DIALECTS
from shared.domain.inference import (
    CallInfo,
    Completed,
    Dialect,
    FinishReason,
    Frame,
    InvalidRequest,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from shared.errors import InvalidBody

PATHS = {
    Dialect.NATIVE: "/v1/inference",
    Dialect.ANTHROPIC: "/v1/messages",
    Dialect.OPENAI: "/v1/chat/completions",
}
EACH_DIALECT = pytest.mark.parametrize("dialect", list(PATHS))
INFO = CallInfo(
    inference_id="01890000-0000-7000-8000-000000000000",
    receipt_id="01890000-0000-7000-8000-000000000001",
    agent_id="01890000-0000-7000-8000-000000000002",
    audit_url="http://gateway.test/v1/audit/a/verify",
    model="gpt-5.5",
    provider="openai",
    created=1,
    simulated=True,
    ignored=("seed",),
)

Document = dict[str, Any]


@pytest_asyncio.fixture(loop_scope="session")
async def document(client: httpx.AsyncClient) -> Document:
    found: Document = (await client.get("/openapi.json")).json()
    return found


def resolved(document: Document, schema: Document) -> Document:
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].removeprefix("#/components/schemas/")
    found: Document = document["components"]["schemas"][name]
    return found


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_every_reference_leads_somewhere(document: Document) -> None:
    schemas, schemes = document["components"]["schemas"], document["components"]["securitySchemes"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    for _, path, operation in operations(document):
        for way in operation.get("security", ()):
            assert set(way) <= set(schemes), path
    used = {reference.rpartition("/")[2] for reference in references(document)}
    assert set(schemas) == used


async def test_both_ways_to_show_a_key_are_there(document: Document) -> None:
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["type"], schemes["bearer"]["scheme"]) == ("http", "bearer")
    shown = {name: schemes[name] for name in ("apiKey", "internalKey")}
    assert {(s["type"], s["in"], s["name"].lower()) for s in shown.values()} == {
        ("apiKey", "header", "x-api-key"),
        ("apiKey", "header", "x-ainfera-internal-key"),
    }


async def test_a_key_is_asked_for_where_the_document_says_so(
    client: httpx.AsyncClient, document: Document
) -> None:
    """Each operation is called without a key; ids are of nobody."""
    for method, path, operation in operations(document):
        names = {p["name"]: INFO.agent_id for p in operation.get("parameters", ())}
        answer = await client.request(method, path.format(**names), json={})
        ways = operation.get("security", [{}])
        assert (answer.status_code == 401) is ({} not in ways), (method, path)
        if {} not in ways:
            assert "401" in operation["responses"], path


async def test_what_cannot_be_read_is_a_400_everywhere(document: Document) -> None:
    for _, path, operation in operations(document):
        if "requestBody" in operation:
            assert "400" in operation["responses"], path
    assert "HTTPValidationError" not in document["components"]["schemas"]


@EACH_DIALECT
async def test_a_call_has_a_body_that_its_dialect_reads(
    document: Document, dialect: Dialect
) -> None:
    operation = document["paths"][PATHS[dialect]]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    schema = resolved(document, content["schema"])
    assert operation["requestBody"]["required"] is True
    assert set(schema["required"]) == {"model", "messages"}
    assert {"stream", "tools", "max_tokens", "routing_hint"} <= set(schema["properties"])
    for example in content["examples"].values():
        DIALECTS[dialect].parse_request(example["value"])
        assert set(example["value"]) <= set(schema["properties"])
    for name in schema["required"]:
        (example, *_) = content["examples"].values()
        left = {k: v for k, v in example["value"].items() if k != name}
        with pytest.raises(InvalidRequest, match=name):
            DIALECTS[dialect].parse_request(left)


@EACH_DIALECT
async def test_an_answer_has_the_fields_of_its_schema(document: Document, dialect: Dialect) -> None:
    spoken = DIALECTS[dialect]
    state, frames = spoken.RenderState(INFO), list[Frame]()
    completed = Completed(FinishReason.TOOL_CALLS, "tool_calls", Usage(10, 20))
    for event in (
        Started("x"),
        TextDelta("Hello"),
        ToolCallStarted(0, "call-1", "look"),
        ToolCallDelta(0, "{}"),
        replace(completed, cost_usd=Decimal("0.5")),
    ):
        frames += spoken.render_event(event, state)
    body = spoken.fold(frames, INFO, Decimal("0.5"), completed.usage)
    ok = document["paths"][PATHS[dialect]]["post"]["responses"]["200"]
    assert set(ok["content"]) == {"application/json", "text/event-stream"}
    schema = resolved(document, ok["content"]["application/json"]["schema"])
    assert set(schema["required"]) <= set(body)
    assert set(body) <= set(schema["properties"])
    if "ainfera" in body:
        ours = resolved(document, schema["properties"]["ainfera"])
        assert set(ours["required"]) <= set(body["ainfera"]) <= set(ours["properties"])
    assert {"x-ainfera-inference-id", "x-ainfera-receipt-id", "x-ainfera-model"} <= set(
        ok["headers"]
    )


@EACH_DIALECT
async def test_an_error_has_the_form_and_the_statuses_of_the_dialect(
    document: Document, dialect: Dialect
) -> None:
    responses = document["paths"][PATHS[dialect]]["post"]["responses"]
    spoken = DIALECTS[dialect]
    documented = {int(status) for status in responses} - {200, 202}
    assert documented == {spoken.http_status(error("x").failure()) for error in CALL_ERRORS}
    assert {400, 401, 402, 403, 404, 413, 422, 502, 504} <= documented
    assert (529 if dialect is Dialect.ANTHROPIC else 503) in documented
    body = spoken.render_failure(InvalidBody("x: y", param="x").failure(), INFO.inference_id)
    for status in documented:
        response = responses[str(status)]
        schema = resolved(document, response["content"]["application/json"]["schema"])
        assert set(schema["required"]) <= set(body)
    for error in CALL_ERRORS:
        response = responses[str(spoken.http_status(error("x").failure()))]
        assert f"`{error.code}`" in response["description"]


async def test_other_operations_say_what_is_their_own(document: Document) -> None:
    operation = document["paths"]["/v1/messages/count_tokens"]["post"]
    assert "MessagesRequest" in str(operation["requestBody"])
    assert "TokenCount" in str(operation["responses"]["200"])
    for path in ("/v1/agents/signup", "/v1/agents/register"):
        taken = document["paths"][path]["post"]["responses"]["409"]
        assert "`handle_taken`" in taken["description"]
    assert set(operation["responses"]) >= {"200", "400", "401", "413"}
