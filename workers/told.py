"""What an earlier attempt had told the client when its worker was lost.

After its first word an answer belongs to the attempt that began it. Another model, or the same
one once more, would say something else, and a provider would be paid twice for one call.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from shared.domain.billing import Work, owed
from shared.domain.candidate import Candidate
from shared.domain.dialects.written import written_in_frames
from shared.errors import ProviderError
from shared.stream import Record, RecordKind, decode_frames
from workers.call import Call, Ending, Outcome
from workers.deps import Deps
from workers.routing import Plan, plan_anew, plan_call

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """`records` of the attempt that spoke, in order; `ended` if the end was told too."""

    records: Sequence[Record]
    ended: bool

    @property
    def last_seq(self) -> int:
        return self.records[-1].seq

    @property
    def model(self) -> Mapping[str, Any]:
        """The model that spoke, by the provider's name for it, and the provider."""
        opening = next((r.body for r in self.records if r.kind is RecordKind.OPEN), b"{}")
        found: dict[str, Any] = orjson.loads(opening)
        return found

    @property
    def frames(self) -> bytes:
        return b"".join(r.body for r in self.records if r.kind is RecordKind.DATA)


async def told_before(call: Call, deps: Deps) -> Told | None:
    """What the client has of an earlier attempt; None if that is nothing, as of a first one.

    Of a call in the background that nobody has followed, nobody has anything: it starts anew.
    """
    if call.attempt == 1:
        return None
    inference_id = call.envelope.inference_id
    records = await deps.publisher.told_before(inference_id)
    spoke = {record.attempt for record in records if record.kind is RecordKind.DATA}
    if not spoke:
        return None
    if call.request.background and await deps.publisher.forget_unread(inference_id):
        return None
    first = min(spoke)
    return Told(
        [record for record in records if record.attempt == first],
        ended=records[-1].kind >= RecordKind.DONE,
    )


def plan_told(told: Told, call: Call, deps: Deps) -> Plan:
    """The plan of the attempt that spoke; what exploration drew only where that is what spoke."""
    plan = plan_call(call, deps, told.records[0].attempt)
    if plan.drawn and who_spoke(told, plan, deps) != plan.candidates[0]:
        return plan_anew(plan, deps)
    return plan


def broken_ending(told: Told, call: Call, plan: Plan, deps: Deps) -> Ending:
    """How a call ends whose worker was lost after the first word.

    The provider's own count went with the worker. What is known to have been told is estimated
    as for any answer that breaks: it may be less than the provider wrote, never more.
    """
    candidate = who_spoke(told, plan, deps)
    log.warning("answer_broken_off", extra={"attempt": call.attempt, "told": told.last_seq})
    lost = ProviderError(
        "The worker that answered was lost in the middle of the answer. What it is known to "
        "have written is settled; the receipt says what. Send the request again.",
        provider=told.model.get("provider"),
        upstream_status=None,
    )
    written = written_in_frames(call.request.dialect, decode_frames(told.frames))
    return Ending(
        Outcome.FAILED_MIDSTREAM if candidate is not None else Outcome.FAILED_PROVIDER,
        failure=lost.failure(),
        candidate=candidate,
        usage=owed(Work(plan.estimated_input_tokens, written, spoke=True)),
        held_usd=plan.hold_usd,
    )


def who_spoke(told: Told, plan: Plan, deps: Deps) -> Candidate | None:
    """The model as the catalogue has it; the planned one if it is not there any more."""
    spoke = (told.model.get("model"), told.model.get("provider"))
    for candidate in (*plan.candidates, *deps.catalog.candidates):
        if (candidate.provider_model_id, candidate.provider) == spoke and candidate.prices:
            return candidate
    return next(iter(plan.candidates), None)
