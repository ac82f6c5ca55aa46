"""The ingress as an ASGI application: what it holds, its routes, its one error handler."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from redis.asyncio import Redis
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ingress import (
    agents,
    annex_iv,
    attributions,
    audit,
    dead_letters,
    discovery,
    events,
    inference,
    inferences,
    keys,
    killswitches,
    ledger,
    measures,
    operations,
    quotes,
    reads,
    routing_policy,
    usage,
    wallets,
)
from ingress.answers import failure_response
from ingress.auth import KeyCache
from ingress.deps import Deps
from ingress.ends import Ends
from ingress.field_faults import invalid_fields
from ingress.following import Followers
from ingress.keeping import Keeper
from ingress.last_use import LastUse
from ingress.limits import AddressLimit, default_limits, limit_strangers
from ingress.middleware import RequestContext
from ingress.openapi import describe
from ingress.relay import Relay
from ingress.scopes import methods_at
from shared.config import VERSION, Settings, active_providers
from shared.control import KEY_REVOKED, TENANT_POLICY, ControlListener
from shared.db import Database
from shared.domain.counting import listed
from shared.domain.inference import Dialect
from shared.errors import (
    AinferaError,
    InternalError,
    InvalidBody,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
)
from shared.heap import settle_heap
from shared.kept import KeptCalls
from shared.keys import agent_key_sealer
from shared.killswitch import Killswitch
from shared.live_routing import LiveRouting
from shared.queue import InferenceQueue, queue_limits
from shared.quotes import Quotes
from shared.valkey import open_valkey

log = logging.getLogger(__name__)

DIALECT_OF_PATH = {
    "/v1/messages": Dialect.ANTHROPIC,
    "/v1/messages/count_tokens": Dialect.ANTHROPIC,
    "/v1/chat/completions": Dialect.OPENAI,
}
# What no provider call may take is not slow but lost.
LOST_AFTER_S = 30.0
ROUTERS = (
    *(inference, quotes, inferences, events, discovery, agents, keys, wallets, ledger, usage),
    *(attributions, reads, audit, annex_iv, routing_policy),
    *(operations, measures, dead_letters, killswitches),
)


def create_app(settings: Settings) -> FastAPI:
    """The application; connections are opened when it starts and closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_deps(settings) as deps:
            app.state.deps = deps
            settle_heap()
            yield

    guard = [Depends(limit_strangers)]
    app = FastAPI(
        title="Ainfera API",
        version=VERSION,
        lifespan=lifespan,
        dependencies=guard,
        # an id that came out empty is a mistake, and no other path is what was meant
        redirect_slashes=False,
    )
    for room in ROUTERS:
        app.include_router(room.router)
    describe(app)
    app.add_exception_handler(AinferaError, handle_error)
    app.add_exception_handler(RequestValidationError, handle_error)
    app.add_exception_handler(HTTPException, handle_error)
    app.add_exception_handler(Exception, handle_error)
    app.add_middleware(RequestContext, shortcuts=inference.CALLS, on_error=handle_error)
    return app


@asynccontextmanager
async def open_deps(settings: Settings) -> AsyncIterator[Deps]:
    """Everything a request handler may use, connected; closed in reverse order."""
    agent_key_sealer(settings.master_key.get_secret_value())  # refuses a key that cannot seal
    redis = open_valkey(settings.redis_url)
    db = Database(settings)
    routing = LiveRouting(db, settings)
    keyring = KeyCache(db, limits=default_limits(settings), policies=routing.policies)
    last_use = LastUse(keyring, db)
    queue = InferenceQueue(redis, queue_limits(settings))
    relay = Relay(
        redis,
        settings.ping_interval_s,
        patience_s=settings.call_deadline_s + LOST_AFTER_S,
        stall_s=settings.idle_deadline_s,
        keeper=Keeper(redis, queue, db, start_within_s=settings.start_deadline_s),
        followers=Followers(redis, settings.replay_step_ms / 1000),
    )

    killswitch = Killswitch(db)
    kept = KeptCalls(db, settings)
    ends = Ends(kept, settings, settings.call_deadline_s + LOST_AFTER_S)
    control = listener(redis, keyring, killswitch, routing)
    try:
        ends.start()
        last_use.start()
        await relay.start()
        await killswitch.start()
        await routing.start()
        await control.start()
        deps = Deps(
            settings=settings,
            db=db,
            redis=redis,
            keyring=keyring,
            routing=routing,
            relay=relay,
            kept=kept,
            quotes=Quotes(db, settings),
            ends=ends,
            queue=queue,
            killswitch=killswitch,
            public_limit=AddressLimit(settings.public_requests_per_minute),
            signup_limit=AddressLimit(settings.signups_per_minute),
        )
        warn_of_no_provider(deps)
        yield deps
    finally:
        await ends.aclose()
        await kept.aclose()
        await control.aclose()
        await killswitch.aclose()
        await routing.aclose()
        await relay.aclose()
        await last_use.aclose()
        await db.aclose()
        await redis.aclose()


def listener(
    redis: Redis, keyring: KeyCache, killswitch: Killswitch, routing: LiveRouting
) -> ControlListener:
    """Who hears the orders that are given to every ingress, not yet listening."""

    def obey(order: Mapping[str, Any]) -> None:
        if order["type"] == KEY_REVOKED:
            keyring.forget(order["key_hash"])
        if order["type"] == TENANT_POLICY:
            keyring.forget_tenant(order["tenant_id"])
        killswitch.obey(order)
        routing.obey(order)

    def missed() -> None:
        """What was said while nobody listened is not known, so nothing kept is trusted then."""
        keyring.forget_all()
        killswitch.missed()
        routing.missed()

    return ControlListener(redis, obey, missed)


def warn_of_no_provider(deps: Deps) -> None:
    """Every call will be refused, and each refusal alone looks like its client's fault."""
    if not active_providers(
        deps.settings, deps.providers, [model.provider for model in deps.catalog.candidates]
    ):
        log.warning(
            "no_provider",
            extra={"advice": "Configure a provider (its key or base URL), or set SIMULATE=auto."},
        )


async def handle_error(request: Request, error: Exception) -> Response:
    """Any error as the response of the dialect the path speaks."""
    dialect = DIALECT_OF_PATH.get(request.url.path, Dialect.NATIVE)
    if isinstance(error, HTTPException) and error.status_code == 405:
        return wrong_method(request, dialect)
    return failure_response(
        as_ainfera_error(error).failure(), dialect, None, request.app.state.deps
    )


def wrong_method(request: Request, dialect: Dialect) -> Response:
    """405 with all the methods of the path; the framework knows those of its first route."""
    allowed = methods_at(request.url.path) or ["GET"]  # the document and its pages are read
    error = MethodNotAllowed(f"This path takes {listed(allowed, 'and')}, not {request.method}.")
    answer = failure_response(error.failure(), dialect, None, request.app.state.deps)
    answer.headers["allow"] = ", ".join(allowed)
    return answer


def as_ainfera_error(error: Exception) -> AinferaError:
    """The framework's errors, and bugs, in our own words."""
    if isinstance(error, AinferaError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid_fields(error)
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound("There is nothing at this path.")
    if isinstance(error, HTTPException) and error.status_code == 413:
        return RequestTooLarge(str(error.detail))
    if isinstance(error, HTTPException):
        refused = InvalidBody(str(error.detail))
        refused.status = error.status_code  # type: ignore[misc]
        return refused
    log.exception("unhandled_error", exc_info=error)
    return InternalError("Something went wrong on our side; the logs have it.")
