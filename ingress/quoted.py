"""The call that names a quote: it takes it along, or gives it back if it is not accepted."""

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from starlette.responses import Response

from ingress.auth import parse_id
from ingress.deps import CALL_PATIENCE_S, Deps, reachable
from ingress.kept import REPLAYED
from shared.domain.inference import InferenceRequest
from shared.domain.request_hash import request_hash
from shared.errors import InvalidBody, NotFound
from shared.kept import hash_quote_key
from shared.queue import Envelope
from shared.quotes import Asker

QUOTE_HEADER = "x-ainfera-quote"


def quote_named(call: InferenceRequest, headers: Mapping[str, str]) -> str | None:
    """The quote that a call names, in its hint or in its header. Raises `InvalidBody` for two."""
    hinted, in_header = call.hint.quote_id, headers.get(QUOTE_HEADER)
    if hinted is not None and in_header is not None and hinted != in_header:
        raise InvalidBody(
            f"routing_hint.quote_id: names another quote than {QUOTE_HEADER}.",
            param="routing_hint.quote_id",
        )
    return hinted if in_header is None else in_header


def asker_of(tenant_id: str, agent_id: str, call: InferenceRequest) -> Asker:
    """For whom a quote is made, and who may use it."""
    return Asker(UUID(tenant_id), UUID(agent_id), request_hash(call))


async def take_quote(
    named: str, call: InferenceRequest, envelope: Envelope, key: str | None, deps: Deps
) -> Envelope:
    """The envelope with the quote in it, which is no other call's from now on.

    Raises `NotFound`, `QuoteUsed`, `QuoteExpired`, `QuoteMismatch`, `Overloaded`.
    """
    caller = envelope.caller
    asker = asker_of(caller["tenant_id"], caller["agent_id"], call)
    key_hash = None if key is None else hash_quote_key(envelope.dialect, key)
    try:
        async with reachable(CALL_PATIENCE_S):
            quote = await deps.quotes.take(parse_id(named), asker, envelope.inference_id, key_hash)
    except NotFound:
        raise NotFound(
            "This agent holds no quote of this id: POST /v1/quote with `hold_for_s` makes one."
        ) from None
    return replace(envelope, quote=quote.to_json())


async def give_back(envelope: Envelope, deps: Deps) -> None:
    """The call was not accepted, so its quote is free again; not if another call has it."""
    assert envelope.quote is not None, "only a call that has taken a quote gives one back"
    async with reachable(CALL_PATIENCE_S):
        await deps.quotes.give_back(
            UUID(envelope.quote["id"]),
            UUID(envelope.caller["tenant_id"]),
            envelope.inference_id,
        )


def is_replay(response: Response) -> bool:
    """Whether a response is an earlier call's: this one was none."""
    return REPLAYED.items() <= dict(response.headers).items()
