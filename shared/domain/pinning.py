"""A model that the client names itself: whether it may be asked, and the 422 where it may not."""

from shared.domain.candidate import Candidate, Catalog
from shared.domain.conditions import OPT_IN
from shared.domain.inference import ROUTING_TARGET, Capability, Failure
from shared.domain.routing_policy import RequestFeatures


def pinned(
    model: str, catalog: Catalog, features: RequestFeatures, active_providers: frozenset[str]
) -> Candidate | Failure:
    """The model that a passthrough names by slug or vendor id, or the 422 that says what to do.

    Room in the context window is left to the provider, whose own wording clients act upon.
    """
    found = catalog.find(model)
    if found is None:
        hint = f"GET /v1/models lists the catalogue; {ROUTING_TARGET} lets the router choose."
        return _unavailable(model, None, f"The model {model} is not in the catalogue.", hint)
    if found.verdict == "VETO" or found.verdict is None:
        hint = "Choose a model of another brand."
        return _unavailable(model, found, f"The brand {found.brand} is not allowed here.", hint)
    if found.verdict == "CONDITIONAL":
        said = features.data_class, features.region, features.tenant_id
        if unmet := found.unmet_condition(True, *said):
            return _unavailable(model, found, *_unmet(found, unmet, features))
    if found.prices is None:
        hint = "Choose a model that GET /v1/models lists with prices."
        return _unavailable(model, found, f"The model {model} has no price.", hint)
    if found.provider not in active_providers:
        text = (
            f"The model {model} cannot be asked: its provider {found.provider} is not active. It is"
            " not configured, or this version does not speak its wire."
        )
        hint = "Choose a model of an active provider, see GET /v1/providers."
        return _unavailable(model, found, text, hint)
    return _incapable(model, found, features) or found


def _unmet(found: Candidate, unmet: str, features: RequestFeatures) -> tuple[str, str]:
    """`(what is wrong, what to do)` where a condition of the brand does not hold on the request."""
    brand, hint = found.brand, "Choose a model of another brand."
    if unmet == "tenant":
        return f"The brand {brand} is not open to this tenant (condition: tenant).", hint
    said: str | None = getattr(features, unmet)
    wanted = ", ".join((found.conditions or OPT_IN).to_json()[unmet])
    text = f"The brand {brand} serves only requests of {unmet} {wanted}; this one "
    text += "does not say." if said is None else f"says {said}."
    if said is None:
        hint = f"If it is so, say it in routing_hint.{unmet}; else choose another brand."
    return text, hint


def _incapable(model: str, found: Candidate, features: RequestFeatures) -> Failure | None:
    missing = sorted(features.capabilities - found.capabilities)
    if not missing:
        return None
    hint = f"Leave {' and '.join(missing)} out, pin a model that has it, or use {ROUTING_TARGET}."
    text = f"The model {model} does not support {', '.join(missing)}."
    if Capability.TOOLS in missing:
        code = "tools_not_supported_by_backend"
        return unroutable(code, model, found.provider, text, hint)
    return _unavailable(model, found, text, hint)


def _unavailable(model: str, found: Candidate | None, message: str, hint: str) -> Failure:
    provider = None if found is None else found.provider
    return unroutable("model_unavailable", model, provider, message, hint)


def unroutable(code: str, model: str, provider: str | None, message: str, hint: str) -> Failure:
    """A 422 that says what is wrong and what to do."""
    detail = {"model": model, "provider": provider, "hint": hint}
    return Failure(code=code, status=422, message=f"{message} {hint}", detail=detail)
