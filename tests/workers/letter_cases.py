"""Dead letters for tests: items of `bury_inferences`, and envelopes as an ingress makes them."""

import base64
from typing import Any
from uuid import UUID

import orjson

from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.keys import Sealer
from shared.queue import Envelope
from tests.workers.ledger_cases import Agent

SECRET_WORDS = "the prompt of a poisoned call"


def envelope_of(
    agent: Agent, inference: str | None = None, model: str = "ainfera-inference", **changes: Any
) -> Envelope:
    """An accepted call of the native dialect, whose body holds `SECRET_WORDS`."""
    body = {"model": model, "messages": [{"role": "user", "content": SECRET_WORDS}]}
    told: dict[str, Any] = {
        "inference_id": UUID(inference) if inference else mint_id(),
        "receipt_id": mint_id(),
        "dialect": Dialect.NATIVE,
        "reply_to": "nobody",
        "caller": {"tenant_id": agent.tenant_id, "agent_id": agent.agent_id, "policy": {}},
        "accepted_at": 1.0,
        "trace_id": "0" * 32,
        "body": orjson.dumps(body),
        "model": model,
    }
    return Envelope(**(told | changes))


def burial(
    agent: Agent, inference: str, attempt: int, sealer: Sealer | None = None, **changes: Any
) -> dict[str, Any]:
    """An item of `bury_inferences`; with a sealer its envelope can be opened again."""
    packed = envelope_of(agent, inference).pack()
    sealed = sealer.seal(packed, UUID(inference)) if sealer else b"sealed"
    item = {
        "inference_id": inference,
        "tenant_id": agent.tenant_id,
        "agent_id": agent.agent_id,
        "attempt": attempt,
        "routed": True,
        "dialect": "native",
        "model": "ainfera-inference",
        "envelope": base64.b64encode(sealed).decode(),
        "error_code": "worker_lost",
        "error_message": "lost",
        "failures": [{"attempt": n, "code": "worker_lost"} for n in range(1, attempt)],
        "ttl_s": 3600,
    }
    return {**item, **changes}
