"""The chain's rule: what is hashed, and that every kind of tampering is found and named."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from ainfera import verify_chain as sdk_verify_chain
from ainfera._internal.canonical import canonical_json as sdk_canonical_json
from ainfera.audit import AuditEvent as SdkEvent
from ainfera.exceptions import AuditChainBroken
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.audit import (
    RESERVED,
    AuditEvent,
    EventType,
    canonical_json,
    created_at,
    draft,
    event_hash,
    seal,
    verify_chain,
)

AGENT = "6f1c1f0e-6a1f-4a55-9c0c-0c8d6e3b8f10"
STAMP = "2026-01-02T03:04:05.000006Z"

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
payload_data = st.dictionaries(words.filter(lambda key: key not in RESERVED), values, max_size=6)


def chain(datas: list[dict[str, Any]], agent: str = AGENT) -> list[AuditEvent]:
    events: list[AuditEvent] = []
    for seq, data in enumerate(datas, start=1):
        previous = events[-1].event_hash if events else None
        text = seal(draft(EventType.PROVIDER_RESPONDED, agent, data), STAMP, seq)
        hashed = event_hash(previous, text)
        events.append(AuditEvent(agent, seq, "provider.responded", text, previous, hashed))
    return events


def as_sdk(event: AuditEvent) -> SdkEvent:
    return SdkEvent(
        agent_id=event.agent_id,
        seq=event.seq,
        event_type=event.event_type,
        payload=json.loads(event.payload),
        previous_hash=event.previous_hash,
        event_hash=event.event_hash,
        created_at=datetime.now(UTC),
    )


@given(payload_data, st.integers(1, 2**40))
def test_a_sealed_draft_is_the_canonical_text_of_the_whole_payload(
    data: dict[str, Any], seq: int
) -> None:
    payload = {
        **data,
        "agent_id": AGENT,
        "created_at": STAMP,
        "event_type": "receipt.created",
        "seq": seq,
    }
    sealed = seal(draft(EventType.RECEIPT_CREATED, AGENT, data), STAMP, seq)
    assert sealed == canonical_json(payload)
    assert json.loads(sealed) == payload


@given(values)
def test_the_canonical_text_is_the_one_that_the_sdk_hashes(value: Any) -> None:
    assert canonical_json(value).encode() == sdk_canonical_json(value)


@given(st.lists(payload_data, max_size=5))
def test_an_untouched_chain_verifies_here_and_in_the_sdk(datas: list[dict[str, Any]]) -> None:
    events = chain(datas)
    result = verify_chain(events)
    assert (result.valid, result.event_count) == (True, len(datas))
    assert sdk_verify_chain([as_sdk(event) for event in events])


@pytest.mark.parametrize("bad", [1.5, float("nan"), object(), {1: "x"}, {"a": [{"b": 0.1}]}, b"x"])
def test_what_has_no_portable_text_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="audit payload"):
        draft(EventType.RECEIPT_CREATED, AGENT, {"value": bad})


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        draft(EventType.RECEIPT_CREATED, AGENT, {"value": "\ud800"})


@pytest.mark.parametrize("key", sorted(RESERVED))
def test_data_cannot_replace_what_belongs_to_the_chain(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        draft(EventType.RECEIPT_CREATED, AGENT, {key: "x"})


def test_an_edited_payload_is_found_at_its_own_event() -> None:
    events = chain([{"cost_usd": "0.001"}, {"cost_usd": "0.002"}, {"cost_usd": "0.003"}])
    events[1] = replace(events[1], payload=events[1].payload.replace("0.002", "0.001"))
    result = verify_chain(events)
    assert (result.valid, result.failure_seq) == (False, 2)
    assert result.failure_reason == "event_hash does not match the payload"
    with pytest.raises(AuditChainBroken):
        sdk_verify_chain([as_sdk(event) for event in events])


def test_a_rehashed_edit_is_found_at_the_next_event() -> None:
    events = chain([{"n": 1}, {"n": 2}, {"n": 3}])
    text = events[1].payload.replace('"n":2', '"n":9')
    rehashed = event_hash(events[1].previous_hash, text)
    events[1] = replace(events[1], payload=text, event_hash=rehashed)
    result = verify_chain(events)
    assert (result.failure_seq, result.event_count) == (3, 2)
    assert result.failure_reason == "previous_hash does not match the event before"


@pytest.mark.parametrize(("gone", "found_at"), [(0, 2), (1, 3)])
def test_a_missing_event_is_found(gone: int, found_at: int) -> None:
    events = chain([{"n": 1}, {"n": 2}, {"n": 3}])
    del events[gone]
    result = verify_chain(events)
    assert (result.valid, result.failure_seq) == (False, found_at)
    assert str(result.failure_reason).startswith("sequence gap")


def test_a_chain_that_does_not_begin_with_null_is_refused() -> None:
    events = chain([{"n": 1}])
    assert verify_chain([replace(events[0], previous_hash="00")]).failure_seq == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("agent_id", lambda event: replace(event, agent_id="another")),
        ("event_type", lambda event: replace(event, event_type="key.revoked")),
    ],
)
def test_a_row_that_says_other_than_its_hashed_payload_is_refused(
    name: str, told: Callable[[AuditEvent], AuditEvent]
) -> None:
    result = verify_chain([told(event) for event in chain([{"n": 1}])])
    assert (result.valid, result.failure_seq) == (False, 1)
    assert result.failure_reason == f"{name} differs between the row and its payload"


@pytest.mark.parametrize("payload", ["[" * 200_000, "1" * 5_000, "{", "[1]"])
def test_a_payload_that_cannot_be_read_is_a_fault_and_no_crash(payload: str) -> None:
    forged = AuditEvent(AGENT, 1, "receipt.created", payload, None, event_hash(None, payload))
    found = verify_chain([forged])
    assert (found.valid, found.failure_seq) == (False, 1)
    assert created_at(forged) is None
