"""The providers that can be asked, by slug.

providers = build_providers(settings, provider_configs(), open_transport(), slugs)
async with aclosing(providers["openai"].stream(call)) as events: ...
"""

import logging
from collections.abc import Callable, Iterable, Mapping

from shared.config import ProviderConfig, Settings, active_providers
from workers.providers import anthropic, openai
from workers.providers.http import open_transport
from workers.providers.provider import Provider, ProviderCall
from workers.providers.simulated import SimulatedProvider
from workers.providers.transport import Transport

__all__ = [
    "PROVIDERS",
    "Provider",
    "ProviderCall",
    "build_providers",
    "open_transport",
]

log = logging.getLogger(__name__)

Builder = Callable[[ProviderConfig, Settings, Transport], Provider]

# provider slug -> the wire it speaks
PROVIDERS: dict[str, Builder] = {
    "anthropic": anthropic.provider,
    "openai": openai.provider,
    "google": openai.provider,
    "mistral": openai.provider,
    "xai": openai.provider,
    "deepseek": openai.provider,
}


def build_providers(
    settings: Settings,
    configs: Mapping[str, ProviderConfig],
    http: Transport,
    catalogued: Iterable[str] = PROVIDERS,
) -> dict[str, Provider]:
    """Every active provider by slug; the simulation where one is active but not configured.

    `catalogued` are the slugs that the catalogue names; one that has no adapter here is never
    asked, nor simulated.
    """
    simulated = SimulatedProvider(settings)
    built: dict[str, Provider] = {}
    stood_in = []
    for slug in sorted(active_providers(settings, configs, catalogued)):
        if slug in configs and configs[slug].configured:
            built[slug] = PROVIDERS[slug](configs[slug], settings, http)
        else:
            built[slug] = simulated
            stood_in.append(slug)
    if stood_in:
        log.warning("providers_simulated", extra={"providers": stood_in})
    return built
