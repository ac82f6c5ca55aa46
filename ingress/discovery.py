"""What this service is and serves, for agents that come by: cards, keys, models."""

from datetime import UTC, datetime
from inspect import getsource
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from sqlalchemy import select
from sqlmodel import col

import shared.receipt_verifier as verifier_module
from ingress.auth import current_caller, parse_id
from ingress.deps import Deps, everyone, get_deps
from ingress.openapi import KEY_OPTIONAL, NOT_FOUND
from ingress.wire import moment
from shared.audit_log import verifier_key
from shared.catalog import Shape, model_listing, provider_listing, provider_names
from shared.config import VERSION, Settings, active_providers
from shared.domain.inference import ROUTING_TARGET, canonical_target
from shared.errors import NotFound
from shared.keys import public_jwk
from shared.log_key import public_pem as log_key_pem
from shared.models import AgentRow

router = APIRouter()

SERVICE = "Ainfera API"
SUMMARY = (
    "An inference gateway for AI agents: one key and one wallet for the models of many vendors, "
    "each call routed, settled exactly once and written to a chain that anybody can verify."
)
# A card names the address of its own key; the plain list is for looking around.
MOST_KEYS = 500
VERIFIER_PATH = "/.well-known/ainfera-receipt-verifier.py"
VERIFIER_SOURCE = getsource(verifier_module)


@router.get("/")
async def root(request: Request) -> dict[str, str]:
    base_url = get_deps(request).settings.base_url
    return {
        "service": SERVICE,
        "version": VERSION,
        "docs": f"{base_url}/docs",
        "models": f"{base_url}/v1/models",
    }


@router.get("/.well-known/agent-card.json")
async def service_card(request: Request) -> dict[str, Any]:
    """The service's own card in the A2A form, with what else a caller needs to begin."""
    return a2a_card(get_deps(request).settings, datetime.now(UTC))


def a2a_card(settings: Settings, issued_at: datetime) -> dict[str, Any]:
    """An A2A 1.0 `AgentCard`; below `skills` are members of our own, which A2A ignores."""
    base_url = settings.base_url
    endpoints = {
        "inference": f"{base_url}/v1/inference",
        "messages": f"{base_url}/v1/messages",
        "chat_completions": f"{base_url}/v1/chat/completions",
        "models": f"{base_url}/v1/models",
        "signup": f"{base_url}/v1/agents/signup",
        "jwks": f"{base_url}/.well-known/jwks.json",
        "receipt_verifier": f"{base_url}{VERIFIER_PATH}",
        "llms": f"{base_url}/llms.txt",
    }
    return {
        "name": "Ainfera",
        "description": SUMMARY,
        "supportedInterfaces": [
            _interface(endpoints["inference"], "AINFERA-NATIVE"),
            _interface(endpoints["messages"], "ANTHROPIC-MESSAGES"),
            _interface(endpoints["chat_completions"], "OPENAI-CHAT-COMPLETIONS"),
        ],
        "provider": {"organization": "Ainfera", "url": "https://ainfera.ai"},
        "version": VERSION,
        "documentationUrl": f"{base_url}/docs",
        "capabilities": {"streaming": True, "pushNotifications": False},
        "securitySchemes": {
            "bearer": {"httpAuthSecurityScheme": {"scheme": "Bearer"}},
            "apiKey": {"apiKeySecurityScheme": {"location": "header", "name": "x-api-key"}},
        },
        "securityRequirements": [
            {"schemes": {"bearer": {"list": []}}},
            {"schemes": {"apiKey": {"list": []}}},
        ],
        "defaultInputModes": ["application/json"],
        "defaultOutputModes": ["application/json", "text/event-stream"],
        "skills": [
            {
                "id": "inference",
                "name": "Inference",
                "description": "Answers with a model that the router picks, or one you name: "
                "text, tool calls, images in, streamed or whole.",
                "tags": ["llm", "routing", "chat", "tools", "streaming"],
            }
        ],
        "default_model": ROUTING_TARGET,
        "auth": {"headers": ["Authorization: Bearer", "x-api-key"], "key_prefix": "ainfera_"},
        "endpoints": endpoints,
        "issued_at": moment(issued_at),
    }


def _interface(url: str, binding: str) -> dict[str, str]:
    return {"url": url, "protocolBinding": binding, "protocolVersion": "1.0"}


@router.get("/.well-known/jwks.json", openapi_extra=NOT_FOUND)
async def jwks(request: Request, agent_id: str | None = None) -> dict[str, Any]:
    """The public keys that are signed with: one agent's for its cards, else the audit log's and
    the newest agents'."""
    query = select(col(AgentRow.public_key_pem)).order_by(col(AgentRow.id).desc()).limit(MOST_KEYS)
    if agent_id is not None:
        wanted: UUID = parse_id(agent_id)
        query = query.where(col(AgentRow.id) == wanted)
    async with everyone(get_deps(request).db) as s:
        found = list(await s.scalars(query))
        log_key = await verifier_key(s) if agent_id is None else None
    if log_key is not None:
        found.insert(0, log_key_pem(log_key))
    return {"keys": [public_jwk(public_pem) for public_pem in found]}


class Program(PlainTextResponse):
    media_type = "text/x-python"


@router.get(VERIFIER_PATH, response_class=Program)
async def receipt_verifier() -> Program:
    """A program that checks decision receipts: one file that needs Python 3.9 and nothing else."""
    return Program(VERIFIER_SOURCE)


@router.get("/llms.txt", response_class=PlainTextResponse)
async def llms_txt(request: Request) -> PlainTextResponse:
    """The service for readers that are models: one heading, a summary, lists of links."""
    base_url = get_deps(request).settings.base_url
    return PlainTextResponse(
        f"""# Ainfera

> {SUMMARY}

Send `model: {ROUTING_TARGET}` and the router picks the cheapest model that is good enough; name
a model from the list and it is that one. The key goes into `Authorization: Bearer` or `x-api-key`.

## Begin

- [Sign up]({base_url}/v1/agents/signup): POST `{{"agent_handle": "…"}}`, answers with an API key
- [Models]({base_url}/v1/models): what can be named, and what it costs
- [Agent card]({base_url}/.well-known/agent-card.json): the same in the A2A form

## Inference

- [Native]({base_url}/v1/inference): messages in the OpenAI or the Anthropic form
- [Anthropic Messages]({base_url}/v1/messages): for Anthropic's SDKs and tools, unmodified
- [OpenAI chat completions]({base_url}/v1/chat/completions): for OpenAI's SDKs, unmodified

## Trust

- [Audit]({base_url}/v1/audit/public): the newest events of all agents, without their content
- [Keys]({base_url}/.well-known/jwks.json): for agent cards, checkpoints and receipts
- [Receipt verifier]({base_url}{VERIFIER_PATH}): checks decision receipts, one Python file
- [API reference]({base_url}/docs): every endpoint
"""
    )


async def listing_shape(request: Request) -> Shape:
    """Which client is asking. A key that is shown must be a good one. Raises `InvalidApiKey`."""
    headers = request.headers
    shows_key = "authorization" in headers or "x-api-key" in headers
    if shows_key:
        await current_caller(request)
    if "anthropic-version" in headers:
        return "anthropic"
    return "openai" if shows_key else "bare"


def _active(deps: Deps) -> frozenset[str]:
    catalogued = (model.provider for model in deps.catalog.candidates)
    return active_providers(deps.settings, deps.providers, catalogued)


@router.get("/v1/models", openapi_extra=KEY_OPTIONAL)
async def list_models(request: Request, shape: Annotated[Shape, Depends(listing_shape)]) -> Any:
    """The catalogue, router first, in the form of the client that asks."""
    deps = get_deps(request)
    return model_listing(deps.catalog, _active(deps), shape)


@router.get("/v1/models/{model_id:path}", openapi_extra=KEY_OPTIONAL)
async def read_model(
    model_id: str, request: Request, shape: Annotated[Shape, Depends(listing_shape)]
) -> Any:
    """One model by the vendor's id or by slug."""
    deps = get_deps(request)
    name, _ = canonical_target(model_id)
    candidate = deps.catalog.find(name)
    wanted = candidate.slug if candidate is not None else name
    listing = model_listing(deps.catalog, _active(deps), shape)
    for entry in listing if shape == "bare" else listing["data"]:
        if entry["slug"] == wanted:
            return entry
    raise NotFound("No such model; GET /v1/models lists them.")


@router.get("/v1/providers")
async def list_providers(request: Request) -> list[dict[str, Any]]:
    """The vendors, whether calls can reach them now, and their models."""
    deps = get_deps(request)
    return provider_listing(deps.catalog, _active(deps), provider_names())
