"""The killswitch, engaged by an operator: each call that it stops is told so, and written down."""

from collections.abc import Callable, Iterator
from typing import Any

import ainfera
import pytest

from tests.e2e.calls import STREAMED_OR_NOT, Answer, call
from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually
from tests.test_cli import fleet

ROUTED, STOPPED = "ainfera-inference", "cost_killswitch_engaged"
Act = Callable[[str], None]


@pytest.fixture
def operator(stack: Stack, agent: ainfera.SignupResult) -> Iterator[Act]:
    """Engages or releases the killswitch of this test's tenant; it is released in the end."""

    def act(word: str) -> None:
        words = ("killswitch", word, "--tenant", str(agent.tenant_id), "--reason", "why", "--yes")
        done = fleet(*words, **stack.told)
        assert done.exit_code == 0, done.output

    yield act
    act("release")


def engaged(stack: Stack, agent: ainfera.SignupResult, operator: Act) -> None:
    """Every process has heard of it once a call is refused, and one in the background too."""
    operator("engage")
    for more in ({}, {"background": True}):
        eventually(lambda more=more: _refused(stack, agent, **more), "a call refused")  # type: ignore[misc]


def _refused(stack: Stack, agent: ainfera.SignupResult, **more: Any) -> bool:
    return call(stack, agent.api_key, "native", "Hi.", **more).status == 503


@STREAMED_OR_NOT
def test_each_call_that_it_stops_leaves_its_one_capture(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    operator: Act,
    stream: bool,
) -> None:
    engaged(stack, agent, operator)
    word = upstream.will(Say())
    for dialect in ("native", "anthropic", "openai"):
        stopped = call(stack, agent.api_key, dialect, word, stream=stream, model=ROUTED)
        assert stopped.status == (529 if dialect == "anthropic" else 503)
        assert int(stopped.headers["retry-after"]) >= 1
        assert "killswitch" in stopped.content.decode()
        (capture,) = witness.captures(stopped.inference_id)
        assert capture["outcome_status"] == "rejected_cap"
        (event,) = witness.events(stopped.inference_id)
        assert event["event_type"] == "inference.rejected_cap_violation"
        assert event["code"] == STOPPED
        assert witness.transfers(stopped.inference_id) == []
        assert witness.inference(stopped.inference_id)["state"] == "refused"
    assert upstream.all_asked(word) == []


def test_what_is_kept_is_not_promised_and_no_key_is_used_up(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    operator: Act,
) -> None:
    """A repeat of what was accepted before is no new call."""

    def background(key: str) -> Answer:
        headers = {"idempotency-key": key}
        return call(
            stack, agent.api_key, "native", word, model=ROUTED, background=True, headers=headers
        )

    word = upstream.will(Say())
    before = background("old")
    engaged(stack, agent, operator)
    repeat, new = background("old"), background("new")
    waits = call(stack, agent.api_key, "native", word, headers={"idempotency-key": "waits"})
    assert [a.status for a in (before, repeat, new, waits)] == [202, 202, 503, 503]
    assert repeat.body["inference_id"] == before.body["inference_id"]
    assert new.error_code == waits.error_code == STOPPED
    (capture,) = witness.captures(new.inference_id)
    assert capture["outcome_status"] == "rejected_cap"

    operator("release")
    eventually(lambda: not _refused(stack, agent), "a call let in")
    eventually(lambda: not _refused(stack, agent, background=True), "one in the background too")
    assert background("new").status == 202
    again = call(stack, agent.api_key, "native", word, headers={"idempotency-key": "waits"})
    assert again.status == 200
    assert "idempotent-replayed" not in again.headers
