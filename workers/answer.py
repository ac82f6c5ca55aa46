"""What the client is told: provider events in, records in the client's dialect out.

Streamed and folded answers go the same way; a folded one keeps its frames and sends one
body at the end. Nothing is sent before the provider's first word, so that until then a
fault can still become an HTTP status, or be answered by another model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson

from shared.domain.dialects import DIALECTS
from shared.domain.inference import (
    CallInfo,
    Completed,
    Failure,
    Forwarded,
    Frame,
    InferenceRequest,
    Started,
    StreamEvent,
)
from shared.domain.reward import LARGEST_ASKED, Asked, asked_of
from shared.kept import KeptResult
from shared.publisher import Publisher
from shared.queue import Envelope
from shared.stream import Record, RecordKind, decode_frames, encode_frames, pack_failure

WORDS = frozenset({RecordKind.DATA, RecordKind.DONE})

# How far behind the last record of the replay a later attempt's error is numbered. An attempt
# that was lost may have told more than its replay knows; the error comes after all of it.
FAR_BEHIND = 1_000_000


class Answer:
    """The answer of one attempt. `opened` says whether the client has been told anything."""

    def __init__(
        self, publisher: Publisher, envelope: Envelope, request: InferenceRequest, attempt: int
    ) -> None:
        self._publisher = publisher
        self._line = publisher.open_line(envelope, attempt)
        self._id = envelope.inference_id.bytes
        self._attempt = attempt
        # what runs in the background can be followed, whatever its body says
        self._stream = request.stream or request.background
        self._request = request
        self._dialect = DIALECTS[request.dialect]
        self._seq = 0
        self._held: list[Frame] = []
        self._folding: list[Frame] = []
        self._told: list[Record] | None = [] if envelope.kept else None
        self._end: tuple[Completed | Failure, list[Record]] | None = None
        self.opened = False

    def come_after(self, told: Sequence[Record]) -> None:
        """An earlier attempt told the client these words and perhaps more; only an end is left."""
        self._seq = told[-1].seq + FAR_BEHIND
        if self._told is not None:
            self._told += before_hole(told)

    def begin(self, call: CallInfo) -> None:
        """A provider is about to be asked; what an earlier one started is forgotten."""
        self.call = call
        self._state = self._dialect.RenderState(call)
        self._held, self._folding = [], []

    def tell(self, event: StreamEvent) -> None:
        """Pass one event on. `Started` waits for the first word that follows it."""
        if isinstance(event, Forwarded):
            self._held = []  # the provider's own opening is among its frames
            if self._stream:
                self._send_data(event.frames)
            else:
                self._folding.extend(decode_frames(event.frames))
            return
        frames = self._dialect.render_event(event, self._state)
        if isinstance(event, Started):
            if event.ignored:
                self.call = replace(self.call, ignored=event.ignored)
            self._held = frames
        elif self._stream:
            held, self._held = self._held, []
            self._send_data(*(encode_frames(part) for part in (held, frames) if part))
        else:
            held, self._held = self._held, []
            self._folding.extend(held + frames)

    def finish(self, completed: Completed) -> None:
        """Tell the end; only to be called once the settlement is durable."""
        if self._request.routed:  # only those are learned from
            self._line.note_asked(pack_asked(asked_of(self._request, completed.finish_reason)))
        self._publish(self._ending(completed), urgent=True)

    def whole(self, end: Completed | Failure) -> KeptResult:
        """The answer of a kept call with this end, which is not told yet: that is for later."""
        told = self._told or []
        records = [*told, *self._ending(end)]
        packed = b"".join([replace(each, seq=seq).pack() for seq, each in enumerate(records)])
        if not isinstance(end, Completed):
            return KeptResult(packed)
        if not self._stream:
            return KeptResult(packed, records[-1].body)
        frames = b"".join([record.body for record in records if record.kind in WORDS])
        return KeptResult(packed, self._fold(list(decode_frames(frames)), end))

    def _ending(self, end: Completed | Failure) -> list[Record]:
        """The last records; those of one and the same end are made once."""
        if self._end is None or self._end[0] is not end:
            self._end = (end, self._last_records(end))
        return self._end[1]

    def _last_records(self, end: Completed | Failure) -> list[Record]:
        if isinstance(end, Failure):
            return [self._record(RecordKind.FAIL, pack_failure(end))]
        last = self._last_frames(end)
        if not self._stream:
            self._folding.extend(decode_frames(last))
            last = self._fold(self._folding, end)
        return [*self._opening(), self._record(RecordKind.DONE, last)]

    def _fold(self, frames: Iterable[Frame], end: Completed) -> bytes:
        body = self._dialect.fold(frames, self.call, end.cost_usd, end.usage)
        return orjson.dumps(body, default=_decimal)

    def _last_frames(self, completed: Completed) -> bytes:
        held, self._held = self._held, []
        if completed.tail:
            return completed.tail
        return encode_frames(held + self._dialect.render_event(completed, self._state))

    def fail(self, failure: Failure) -> None:
        """Tell that the call broke: an HTTP status if nothing was sent yet, else an event."""
        self._publish(self._ending(failure), urgent=True)

    def _send_data(self, *parts: bytes) -> None:
        if not parts:
            return
        first = not self.opened
        opening = self._opening()
        data = [self._record(RecordKind.DATA, part) for part in parts]
        if self._told is not None:
            self._told += opening + data
        self._publish([*opening, *data], urgent=first)

    def _opening(self) -> list[Record]:
        if self.opened:
            return []
        self.opened = True
        head: dict[str, Any] = {
            "model": self.call.model,
            "provider": self.call.provider,
            "simulated": self.call.simulated,
            "ignored": self.call.ignored,
        }
        return [self._record(RecordKind.OPEN, orjson.dumps(head))]

    def _record(self, kind: RecordKind, body: bytes) -> Record:
        record = Record(self._id, self._attempt, kind, self._seq, body)
        self._seq += 1
        return record

    def _publish(self, records: Sequence[Record], *, urgent: bool) -> None:
        self._publisher.publish(self._line, records, urgent=urgent)


def before_hole(told: Sequence[Record]) -> Sequence[Record]:
    """The part of an answer that a reader may be told: from its opening on, without a gap.

    The store may have lost the beginning of a replay while the answer went on, or dropped it
    because it was too large. Nothing at all, where no word is left.
    """
    whole = [record for seq, record in enumerate(told) if record.seq == seq]
    return whole if any(record.kind is RecordKind.DATA for record in whole) else ()


def pack_asked(asked: Asked | None) -> bytes | None:
    """What was asked, for whoever checks the answer later; of what is too large only that."""
    if asked is None:
        return None
    packed = orjson.dumps(asked.to_json())
    if len(packed) <= LARGEST_ASKED:
        return packed
    return orjson.dumps(asked.without_schemas().to_json())


def _decimal(value: object) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(f"{type(value).__name__} has no place in an answer")
