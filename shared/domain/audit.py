"""The audit chain of one agent: what is hashed, and how a chain is verified.

An event's payload is one JSON object that holds `agent_id, created_at, event_type, seq` and
the event's own data. Its canonical text (sorted keys, no spaces, UTF-8 not escaped) is what is
stored and hashed:

    event_hash = sha256_hex((previous_hash or "") + canonical_json(payload))

`created_at` and `seq` are only known under the lock of the chain's head, inside the database. A
draft is therefore the canonical text with two holes, `head … created_at … middle … seq … tail`;
the database fills the holes and hashes. No float ever enters a payload, because the canonical
text of a float is not the same in every language.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from json.encoder import encode_basestring
from typing import Any

# `json.dumps` with these options would build an encoder for each call
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
RESERVED = frozenset({"agent_id", "created_at", "event_type", "seq"})


class EventType(StrEnum):
    AGENT_REGISTERED = "agent.registered"
    INFERENCE_ROUTED = "inference.routed"
    REJECTED_FLOOR = "inference.rejected_floor"
    REJECTED_CAP_VIOLATION = "inference.rejected_cap_violation"
    REJECTED_INSUFFICIENT_FUNDS = "inference.rejected_insufficient_funds"
    PROVIDER_FALLBACK = "provider.fallback"
    PROVIDER_FAILED = "provider.failed"
    PROVIDER_RESPONDED = "provider.responded"
    RECEIPT_CREATED = "receipt.created"
    WALLET_TOPPED_UP = "wallet.topped_up"
    SPEND_POLICY_CHANGED = "spend_policy.changed"
    # not of a call either: a tenant changed how all of its agents are routed
    ROUTING_POLICY_CHANGED = "routing_policy.changed"
    KEY_REVOKED = "key.revoked"
    # not of a call: an operator took a transfer back, wholly or in part
    WALLET_CORRECTED = "wallet.corrected"


def canonical_json(value: Any) -> str:
    """The one text of a JSON value that is hashed. Raises `ValueError` where it has none.

    Floats have no portable text, and lone surrogates no UTF-8 form. Keys must be strings.
    """
    _refuse_unhashable(value)
    text = _ENCODER.encode(value)
    _refuse_surrogates(text)
    return text


def _refuse_surrogates(text: str) -> None:
    text.encode("utf-8")


def _refuse_unhashable(value: Any) -> None:
    if type(value) is str or value is None:
        return
    match value:
        case bool() | int() | str():
            return
        case Mapping():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"audit payload: key {key!r} is not a string")
                _refuse_unhashable(item)
        case list() | tuple():
            for item in value:
                _refuse_unhashable(item)
        case _:
            raise ValueError(f"audit payload: {type(value).__name__} is not allowed, got {value!r}")


class Canonical(str):
    """A value's canonical JSON, as `canonical_json` wrote it: put into a draft as it is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class AuditDraft:
    """An event whose `created_at` and `seq` are still to be filled in by the database."""

    event_type: str
    head: str
    middle: str
    tail: str

    def wire(self) -> list[str]:
        """The form that the SQL functions take: `[type, head, middle, tail]`."""
        return [self.event_type, self.head, self.middle, self.tail]


def draft(event_type: str, agent_id: str, data: Mapping[str, Any]) -> AuditDraft:
    """The event as a draft. `data` may use any key but the four that every payload has."""
    if taken := RESERVED & data.keys():
        raise ValueError(f"audit payload: {sorted(taken)} belong to the chain, not to the data")
    fields = {"agent_id": agent_id, "event_type": str(event_type), **data}
    names = sorted(fields)
    members = [f"{_member(name)}:{_member(fields[name])}" for name in names]
    at, nth = bisect_left(names, "created_at"), bisect_left(names, "seq")
    between, after = members[at:nth], members[nth:]
    drafted = AuditDraft(
        event_type=str(event_type),
        head="{" + ",".join(members[:at]) + ',"created_at":"',
        middle='",' + ",".join(between) + ',"seq":',
        tail="," + ",".join(after) + "}" if after else "}",
    )
    _refuse_surrogates(drafted.head + drafted.middle + drafted.tail)
    return drafted


def _member(value: Any) -> str:
    """`canonical_json`, short for what nearly every key and value is."""
    if type(value) is str:
        return encode_basestring(value)
    if type(value) is Canonical:
        return value
    return canonical_json(value)


def seal(event: AuditDraft, created_at: str, seq: int) -> str:
    """The payload's canonical text, as the database builds it. `created_at` is ISO 8601 UTC."""
    return f"{event.head}{created_at}{event.middle}{seq}{event.tail}"


def event_hash(previous_hash: str | None, payload_text: str) -> str:
    return hashlib.sha256(((previous_hash or "") + payload_text).encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One stored event; `payload` is the canonical text that was hashed."""

    agent_id: str
    seq: int
    event_type: str
    payload: str
    previous_hash: str | None
    event_hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    event_count: int
    valid: bool
    failure_seq: int | None = None
    failure_reason: str | None = None


def verify_chain(events: Iterable[AuditEvent], after: AuditEvent | None = None) -> Verification:
    """Check a chain, oldest event first; names the first event at fault and why.

    `after` is the last event of a part that was checked before, so that a long chain can be
    checked page by page; `event_count` counts from the chain's beginning.
    """
    previous = after.event_hash if after else None
    count = after.seq if after else 0
    for event in events:
        if reason := _fault(event, count + 1, previous):
            return Verification(count, False, event.seq, reason)
        previous = event.event_hash
        count += 1
    return Verification(count, True)


def _fault(event: AuditEvent, expected_seq: int, previous: str | None) -> str | None:
    if event.seq != expected_seq:
        return f"sequence gap: expected seq {expected_seq}, found {event.seq}"
    if event.previous_hash != previous:
        return "previous_hash does not match the event before"
    if event.event_hash != event_hash(previous, event.payload):
        return "event_hash does not match the payload"
    return _payload_fault(event)


def _payload_fault(event: AuditEvent) -> str | None:
    """The hash covers the payload alone, so the row must not say anything else than it."""
    try:
        payload = json.loads(event.payload)
    except (ValueError, RecursionError):
        return "payload is not JSON"
    said = {"agent_id": event.agent_id, "event_type": event.event_type, "seq": event.seq}
    if not isinstance(payload, dict):
        return "payload is not an object"
    for name, value in said.items():
        if payload.get(name) != value:
            return f"{name} differs between the row and its payload"
    return None


def created_at(event: AuditEvent) -> datetime | None:
    """When the event says that it was made; None if it does not say."""
    try:
        made = datetime.fromisoformat(json.loads(event.payload)["created_at"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return made if made.tzinfo is not None else None
