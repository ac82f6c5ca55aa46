"""The replay of an inference: what was told of it, kept for a while beside the live channel.

One Redis stream an inference, `ainfera:events:{<id>}`. An entry's field `r` holds packed
records, joined; its id is `<attempt>-<seq of its last record>`. So an entry that is sent again
is refused by the store, as is one of an attempt that a newer one has taken over from, and
"what comes after this record" is a range of ids. The first entry, the last, and every one
after something was trimmed bear `h`: whose inference it is, and in which dialect.

The last entry bears `a` if the call asked something of its answer's form. Then the schemas are
beside the replay, under `ainfera:asked:{<id>}`, for as long: for whoever checks the answer.

This module writes; reading is in `shared/stream.py`, where records are taken apart.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson

from shared.config import Settings
from shared.domain.inference import Dialect
from shared.queue import Envelope

RECORDS, HEAD, ASKED = b"r", b"h", b"a"
# A stream's time to live is renewed this often within it, however often it is written.
RENEWALS = 3
# longer than any call waits and runs
FOLLOWED_S = 2 * 24 * 60 * 60

Command = tuple[bytes | str | int, ...]


def replay_key(inference_id: UUID) -> str:
    """The braces keep all that is ever named after one inference in one slot of a cluster."""
    return f"ainfera:events:{{{inference_id}}}"


def asked_key(inference_id: UUID) -> str:
    """What the call asked of its answer's form: `shared.domain.reward.Asked` as JSON."""
    return f"ainfera:asked:{{{inference_id}}}"


def followed_key(inference_id: UUID) -> str:
    """There once somebody else than the client of a call reads, or waits for, its events."""
    return f"{replay_key(inference_id)}:followed"


@dataclass(frozen=True, slots=True)
class ReplayLimits:
    """`seconds` a replay outlives its last record, 0 for no replay at all.

    What comes between an answer's first record and its last is written in steps of `step_s`.
    Over `max_bytes` the oldest entries of an inference are dropped.
    """

    seconds: int = 300
    step_s: float = 0.1
    max_bytes: int = 8 * 1024 * 1024

    @classmethod
    def of(cls, settings: Settings) -> "ReplayLimits":
        return cls(
            seconds=settings.replay_seconds,
            step_s=settings.replay_step_ms / 1000,
            max_bytes=settings.replay_max_bytes,
        )


def pack_head(envelope: Envelope) -> bytes:
    return orjson.dumps(
        {
            "receipt_id": str(envelope.receipt_id),
            "dialect": envelope.dialect.value,
            "tenant_id": envelope.caller["tenant_id"],
            "agent_id": envelope.caller["agent_id"],
            "accepted_at": envelope.accepted_at,
            "kept": envelope.kept,
        }
    )


def unpack_head(packed: bytes, inference_id: UUID) -> Envelope:
    """The call as far as a reader of its events needs it: without its body and its headers."""
    fields = orjson.loads(packed)
    return Envelope(
        inference_id=inference_id,
        receipt_id=UUID(fields["receipt_id"]),
        dialect=Dialect(fields["dialect"]),
        reply_to="",
        caller={"tenant_id": fields["tenant_id"], "agent_id": fields["agent_id"]},
        accepted_at=fields["accepted_at"],
        trace_id="",
        body=b"",
        kept=fields.get("kept", False),
    )


class ReplayWriter:
    """One attempt's part of one replay: packed records in, commands for the store out."""

    __slots__ = (
        "_attempt", "_envelope", "_key", "_last_seq", "_limits", "_parts", "_renew_at", "_size",
        "_sizes", "_trims", "asked", "ended",
    )  # fmt: skip

    def __init__(self, envelope: Envelope, attempt: int, limits: ReplayLimits) -> None:
        self._key = replay_key(envelope.inference_id)
        self._envelope = envelope
        self._attempt = attempt
        self._limits = limits
        self._parts: list[bytes] = []
        self._last_seq = 0
        self._sizes: deque[int] = deque()
        self._size = 0
        self._trims = False
        self._renew_at = 0.0
        self.ended = False
        self.asked: bytes | None = None  # told with the end, where there is something to tell

    def gather(self, packed: Sequence[bytes], last_seq: int) -> None:
        """Take records in; the last of them is number `last_seq`."""
        self._parts.extend(packed)
        self._last_seq = last_seq

    def take(self, now: float) -> list[Command]:
        """Everything gathered as one entry, with the stream's life renewed where that is due."""
        entry = b"".join(self._parts)
        self._parts.clear()
        first = not self._sizes
        self._note(len(entry))
        keep = ("MAXLEN", len(self._sizes)) if self._trims else ()
        entry_id = f"{self._attempt}-{self._last_seq}"
        fields: Command = (RECORDS, entry)
        if first or self._trims or self.ended:
            fields = (*fields, HEAD, pack_head(self._envelope))
        asked = self.asked if self.ended else None
        if asked is not None:
            fields = (*fields, ASKED, 1)
        commands: list[Command] = [("XADD", self._key, *keep, entry_id, *fields)]
        if self.ended or now >= self._renew_at:
            self._renew_at = now + self._limits.seconds / RENEWALS
            commands.append(("EXPIRE", self._key, self._limits.seconds))
        if asked is not None:
            key = asked_key(self._envelope.inference_id)
            commands.append(("SET", key, asked, "EX", self._limits.seconds))
        return commands

    def _note(self, size: int) -> None:
        """Count the new entry, and out those that have no room beside it any more."""
        self._sizes.append(size)
        self._size += size
        while self._size > self._limits.max_bytes and self._sizes:
            self._size -= self._sizes.popleft()
            self._trims = True
