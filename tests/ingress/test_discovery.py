"""What an agent that knows nothing finds: cards, key sets, models in three forms."""

from typing import Any, cast

import anthropic
import httpx
import httpx2
import openai
import pytest

from ingress.deps import Deps
from shared.config import ProviderConfig, active_providers, provider_configs
from tests.ingress.conftest import BASE_URL, SignUp

ALIASES = ("ainfera-mithril", "ainfera-auto", "ainfera/auto")
EXACT_IDS = {"ainfera-inference", "claude-opus-4-7", "claude-sonnet-4-6", "claude-haiku-4-5"}
OWN_FIELDS = {
    "slug",
    "provider",
    "type",
    "context_window",
    "capabilities",
    "input_cost_per_million_usd",
    "output_cost_per_million_usd",
    "routable_status",
}


async def test_the_root_points_on(client: httpx.AsyncClient) -> None:
    root = (await client.get("/")).json()
    assert set(root) == {"service", "version", "docs", "models"}
    assert root["service"] == "Ainfera API"
    for link in (root["docs"], root["models"]):
        assert (await client.get(link)).status_code == 200


async def test_the_card_has_the_a2a_members_and_ours(client: httpx.AsyncClient) -> None:
    card = (await client.get("/.well-known/agent-card.json")).json()
    for member in (
        "name",
        "description",
        "supportedInterfaces",
        "provider",
        "version",
        "capabilities",
        "securitySchemes",
        "defaultInputModes",
        "defaultOutputModes",
        "skills",
        "issued_at",
    ):
        assert card[member]
    assert card["default_model"] == "ainfera-inference"
    for interface in card["supportedInterfaces"]:
        assert set(interface) == {"url", "protocolBinding", "protocolVersion"}
        assert interface["url"].startswith(BASE_URL)


@pytest.mark.parametrize("path", ["/.well-known/agent-card.json", "/llms.txt", "/v1/models", "/"])
async def test_no_page_for_agents_prints_an_alias(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert not any(alias in answer.text for alias in ALIASES)


async def test_llms_txt_has_one_heading_a_quote_and_links_that_lead_somewhere(
    client: httpx.AsyncClient,
) -> None:
    lines = (await client.get("/llms.txt")).text.splitlines()
    assert [line for line in lines if line.startswith("# ")] == ["# Ainfera"]
    assert any(line.startswith("> ") for line in lines)
    links = [line.split("](")[1].split(")")[0] for line in lines if line.startswith("- [")]
    assert links
    for link in links:
        assert (await client.get(link)).status_code in (200, 401, 405)


async def test_without_a_key_the_list_is_bare(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()
    assert isinstance(models, list)
    assert len(models) > 10
    assert {model["id"] for model in models} >= EXACT_IDS
    assert [model["type"] for model in models].count("router") == 1
    for model in models:
        assert set(model) >= OWN_FIELDS


async def test_with_a_key_the_list_has_the_openai_form(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    listing = (await client.get("/v1/models", headers=new["auth"])).json()
    assert listing["object"] == "list"
    assert {model["id"] for model in listing["data"]} >= EXACT_IDS


async def test_a_key_that_is_shown_must_be_good(client: httpx.AsyncClient) -> None:
    for headers in ({"x-api-key": "ainfera_wrong"}, {"authorization": "Bearer sk-other"}):
        for path in ("/v1/models", "/v1/models/gpt-5.5"):
            assert (await client.get(path, headers=headers)).status_code == 401


async def test_the_vendors_clients_list_and_retrieve_models(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    key: str = (await sign_up())["api_key"]
    app = cast(httpx.ASGITransport, client._transport).app
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(cast(Any, app)))
    theirs = anthropic.AsyncAnthropic(api_key=key, base_url=BASE_URL, http_client=http)
    listed = [model async for model in theirs.models.list()]
    assert {model.id for model in listed} >= EXACT_IDS
    assert all(
        model.type == "model" and model.created_at and model.display_name for model in listed
    )
    assert (await theirs.models.retrieve("claude-opus-4-7")).id == "claude-opus-4-7"
    with pytest.raises(anthropic.NotFoundError):
        await theirs.models.retrieve("no-such-model")

    ours = openai.AsyncOpenAI(api_key=key, base_url=f"{BASE_URL}/v1", http_client=http)
    assert {model.id async for model in ours.models.list()} >= EXACT_IDS
    assert (await ours.models.retrieve("ainfera-inference")).object == "model"
    with pytest.raises(openai.NotFoundError):
        await ours.models.retrieve("no-such-model")


async def test_a_model_is_found_by_id_by_slug_and_by_a_legacy_alias(
    client: httpx.AsyncClient,
) -> None:
    for name in ("gpt-5.5", "gpt-5-5"):
        assert (await client.get(f"/v1/models/{name}")).json()["slug"] == "gpt-5-5"
    for alias in ALIASES:
        assert (await client.get(f"/v1/models/{alias}")).json()["id"] == "ainfera-inference"


async def test_providers_say_whether_they_can_be_reached(client: httpx.AsyncClient) -> None:
    providers = (await client.get("/v1/providers")).json()
    assert {"anthropic", "openai"} <= {provider["slug"] for provider in providers}
    for provider in providers:
        assert set(provider) == {"slug", "name", "active", "models"}
        assert provider["models"]


@pytest.mark.parametrize(
    ("simulate", "configured", "active"),
    [
        ("auto", (), "all"),
        ("auto", ("openai",), {"openai"}),
        ("on", ("openai",), "all"),
        ("off", (), set()),
        ("off", ("anthropic",), {"anthropic"}),
    ],
)
async def test_nobody_is_answered_by_a_simulation_unawares(
    deps: Deps, simulate: str, configured: tuple[str, ...], active: Any
) -> None:
    providers = {
        slug: ProviderConfig(slug=slug, base_url=config.base_url, configured=slug in configured)
        for slug, config in provider_configs().items()
    }
    settings = deps.settings.model_copy(update={"simulate": simulate})
    # a wire that nobody speaks is not simulated either
    everyone = {candidate.provider for candidate in deps.catalog.candidates} - {"openai-responses"}
    expected = everyone if active == "all" else active
    assert (
        active_providers(settings, providers, [model.provider for model in deps.catalog.candidates])
        == expected
    )


async def test_the_key_set_holds_public_keys_only(
    client: httpx.AsyncClient, sign_up: SignUp
) -> None:
    new = await sign_up()
    keys = (await client.get("/.well-known/jwks.json")).json()["keys"]
    assert keys
    for key in keys:
        assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
    address = f"/.well-known/jwks.json?agent_id={new['agent_id']}"
    (own,) = (await client.get(address)).json()["keys"]
    assert own in keys
