"""Whom a call is for, as the client's headers say it."""

import pytest
from starlette.datastructures import Headers

from shared.attribution import attribution_of
from shared.domain.inference import Dialect
from shared.ids import mint_id
from shared.queue import Envelope


def test_what_claude_code_sends_is_understood_and_our_own_names_come_first() -> None:
    said = {
        "X-Claude-Code-Session-Id": "s1",
        "x-claude-code-agent-id": "a1",
        "x-claude-code-parent-agent-id": "p1",
    }
    told = {"session_id": "s1", "client_agent_id": "a1", "parent_agent_id": "p1"}
    assert attribution_of(Headers(said)) == told
    ours = Headers({**said, "x-ainfera-session-id": "s2", "x-ainfera-parent-agent-id": "p2"})
    assert attribution_of(ours) == {**told, "session_id": "s2", "parent_agent_id": "p2"}


@pytest.mark.parametrize("value", ["", " ", "x" * 129, "a\tb", "a\x7f", "é", " a", "a\n"])
def test_a_value_that_cannot_be_kept_is_as_none(value: str) -> None:
    assert attribution_of({"x-ainfera-session-id": value}) == {}
    both = {"x-ainfera-session-id": value, "x-claude-code-session-id": "s"}
    assert attribution_of(both) == {"session_id": "s"}


@pytest.mark.parametrize("value", ["a", "a b", "x" * 128, "~!"])
def test_printable_words_are_kept_as_they_are(value: str) -> None:
    assert attribution_of({"x-ainfera-session-id": value}) == {"session_id": value}


def test_it_travels_in_the_envelope_and_costs_nothing_where_there_is_none() -> None:
    caller = {"tenant_id": "t", "agent_id": "a"}
    plain = Envelope(mint_id(), mint_id(), Dialect.NATIVE, "reply", caller, 1.0, "trace", b"{}")
    assert b"attribution" not in plain.pack()
    said = Envelope(
        mint_id(),
        mint_id(),
        Dialect.NATIVE,
        "reply",
        caller,
        1.0,
        "trace",
        b"{}",
        attribution={"session_id": "s"},
    )
    assert Envelope.unpack(said.pack()) == said
