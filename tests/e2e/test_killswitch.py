"""The killswitch, engaged by an operator: each call that it stops is told so, and written down."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID

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


def test_calls_that_come_at_once_pass_no_threshold_together(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    operator: Act,
) -> None:
    """One of them engages it; what was let in is within it; the others are told and captured."""
    word = upstream.will(Say(gap_s=0.3))
    first = call(stack, agent.api_key, "native", word)
    (held,) = witness.rows(
        "SELECT hold_usd FROM inferences WHERE id = $1", UUID(first.inference_id)
    )
    limit = Decimal(held["hold_usd"]) * 5
    tenant = str(agent.tenant_id)
    words = ("killswitch", "threshold", "--tenant", tenant, "--usd", f"{limit:f}", "--yes")
    assert fleet(*words, **stack.told).exit_code == 0
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: call(stack, agent.api_key, "native", word), range(16)))
    (switch,) = witness.rows("SELECT * FROM killswitches WHERE scope = $1", tenant)
    assert switch["engaged_by"] == "threshold"
    assert Decimal(switch["spent_usd"]) <= limit
    newest = witness.value(
        "SELECT max(created_at) FROM inferences WHERE tenant_id = $1 AND state <> 'refused'",
        agent.tenant_id,
    )
    served = [each for each in answers if each.status == 200]
    assert 0 < len(served) <= 5
    assert newest <= switch["engaged_at"]
    for each in answers:
        if each.status != 200:
            assert (each.status, each.error_code) == (503, STOPPED)
            (capture,) = witness.captures(each.inference_id)
            assert capture["outcome_status"] == "rejected_cap"
            assert witness.transfers(each.inference_id) == []
    assert len(upstream.all_asked(word)) == len(served) + 1
