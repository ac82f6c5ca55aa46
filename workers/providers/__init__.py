"""The providers that can be asked, by slug.

providers = build_providers(settings, provider_configs(), open_http(settings))
async with aclosing(providers["openai"].stream(call)) as events: ...
"""

import logging
from collections.abc import Callable, Mapping

import httpx

from shared.config import ProviderConfig, Settings, simulating
from workers.providers import anthropic, openai
from workers.providers.http import open_http
from workers.providers.provider import Provider, ProviderCall
from workers.providers.simulated import SimulatedProvider

__all__ = [
    "PROVIDERS",
    "Provider",
    "ProviderCall",
    "active_providers",
    "build_providers",
    "open_http",
]

log = logging.getLogger(__name__)

Builder = Callable[[ProviderConfig, Settings, httpx.AsyncClient], Provider]

# provider slug -> the wire it speaks
PROVIDERS: dict[str, Builder] = {
    "anthropic": anthropic.provider,
    "openai": openai.provider,
    "google": openai.provider,
    "mistral": openai.provider,
    "xai": openai.provider,
    "deepseek": openai.provider,
}


def active_providers(settings: Settings, configs: Mapping[str, ProviderConfig]) -> frozenset[str]:
    """Slugs that may be asked: those configured, and all where a simulation stands in."""
    if simulating(settings, dict(configs)):
        return frozenset(configs)
    return frozenset(slug for slug, config in configs.items() if config.configured)


def build_providers(
    settings: Settings, configs: Mapping[str, ProviderConfig], http: httpx.AsyncClient
) -> dict[str, Provider]:
    """Every active provider by slug; the simulation where one is active but not configured."""
    simulated = SimulatedProvider(settings)
    built: dict[str, Provider] = {}
    stood_in = []
    for slug in sorted(active_providers(settings, configs)):
        if configs[slug].configured:
            built[slug] = PROVIDERS[slug](configs[slug], settings, http)
        else:
            built[slug] = simulated
            stood_in.append(slug)
    if stood_in:
        log.warning("providers_simulated", extra={"providers": stood_in})
    return built
