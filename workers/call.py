"""One call in the hands of a worker, and how it can end."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from shared.domain.candidate import Candidate
from shared.domain.inference import Completed, Failure, InferenceRequest, Usage
from shared.domain.ledger import ZERO
from shared.errors import InternalError
from shared.queue import Envelope
from workers.answer import Answer

NOTHING_USED = Usage()


class Outcome(StrEnum):
    """`routing_outcomes.outcome_status`: every way in which a call can end."""

    SUCCEEDED = "succeeded"
    REJECTED_FLOOR = "rejected_floor"
    REJECTED_NOT_ENROLLED = "rejected_not_enrolled"
    REJECTED_CAP = "rejected_cap"
    REJECTED_FUNDS = "rejected_funds"
    FAILED_PROVIDER = "failed_provider"
    FAILED_MIDSTREAM = "failed_midstream"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Asked:
    """A provider that was asked in vain, as the fallback chain and the audit trail tell it."""

    model: str
    provider: str
    code: str
    upstream_status: int | None

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "provider": self.provider,
            "code": self.code,
            "upstream_status": self.upstream_status,
        }


@dataclass(slots=True)
class Call:
    """What a worker knows of the call it carries out.

    `age_s` is how old it was when it was claimed, by the store's clock, as ingress and worker may
    not agree on the time; `claimed_at` is in seconds that only ever grow.

    `reached` is set before the first provider is asked: from then on something may be owed.
    `late`: its client was told that it will not be started.
    `tokens` are what a call that is settled used, as limits count them.
    `hold_on` ends an attempt that was overtaken while this process stood still.
    """

    envelope: Envelope
    request: InferenceRequest
    attempt: int
    answer: Answer
    claimed_at: float
    age_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    reached: bool = False
    late: bool = False
    tokens: int | None = None
    hold_on: Callable[[], Awaitable[None]] | None = None
    # as text, because that is how every record of the call names them
    inference_id: str = field(init=False)
    receipt_id: str = field(init=False)
    tenant_id: str = field(init=False)
    agent_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.inference_id = str(self.envelope.inference_id)
        self.receipt_id = str(self.envelope.receipt_id)
        self.tenant_id = self.envelope.caller["tenant_id"]
        self.agent_id = self.envelope.caller["agent_id"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended. `candidate` is the model that was asked last, None where none was.

    `usage` is what the provider counted, or our estimate of it; times in milliseconds since
    the provider was asked. `held_usd` is the hold at the end.
    """

    outcome: Outcome
    failure: Failure | None = None
    completed: Completed | None = None
    candidate: Candidate | None = None
    usage: Usage = NOTHING_USED
    held_usd: Decimal = ZERO
    latency_ms: int | None = None
    ttft_ms: int | None = None

    def failure_or_bug(self) -> Failure:
        """The failure to tell; an ending that is no success always has one."""
        if self.failure is not None:
            return self.failure
        return InternalError("The call ended without an answer.").failure()
