"""The fence: whatever the order of claims, burials and replays, a call is charged once at most."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.attempts import CallState, Standing, may_bury, may_open, may_settle
from shared.domain.ledger import BuryOutcome, OpenOutcome, SettleOutcome

HELD, DEAD, SETTLED = CallState.HELD, CallState.DEAD, CallState.SETTLED


@pytest.mark.parametrize("attempt", [1, 4, 5, 9])
def test_nobody_but_an_operator_moves_a_call_that_is_dead(attempt: int) -> None:
    waiting = Standing(DEAD, 4, waits=True)
    assert may_open(waiting, attempt) is OpenOutcome.FENCED
    assert may_settle(waiting, attempt, refused=False) is SettleOutcome.FENCED
    assert may_settle(waiting, attempt, refused=True) is SettleOutcome.FENCED
    assert may_bury(waiting, attempt) is BuryOutcome.EXISTS


@pytest.mark.parametrize("attempt", [1, 4])
def test_a_replay_is_not_for_the_attempts_that_came_before(attempt: int) -> None:
    replayed = Standing(DEAD, 4)
    assert may_open(replayed, attempt) is OpenOutcome.FENCED
    assert may_settle(replayed, attempt, refused=False) is SettleOutcome.FENCED
    assert may_bury(replayed, attempt) is BuryOutcome.FENCED


def test_a_replay_opens_ends_or_buries_the_call_again() -> None:
    replayed = Standing(DEAD, 4)
    assert may_open(replayed, 5) is None
    assert may_settle(replayed, 5, refused=True) is SettleOutcome.SETTLED
    assert may_bury(replayed, 5) is BuryOutcome.BURIED


def test_a_call_that_is_over_stays_so() -> None:
    for state in (SETTLED, CallState.REFUSED):
        over = Standing(state, 2)
        assert may_open(over, 3) is OpenOutcome.SETTLED
        assert may_settle(over, 3, refused=False) is SettleOutcome.EXISTS
        assert may_bury(over, 3) is BuryOutcome.SETTLED


@dataclass(slots=True)
class Life:
    """A call as the rules move it; `settled` counts its ends, `holds` the money held now."""

    known: Standing | None = None
    settled: int = 0
    holds: int = 0

    def step(self, act: str, attempt: int) -> None:
        known = self.known
        newest = max(attempt, known.attempt) if known else attempt
        if act == "open" and (verdict := may_open(known, attempt)) in (None, OpenOutcome.EXISTS):
            self.holds += verdict is None
            self.known = Standing(HELD, newest)
        elif act == "settle" and may_settle(known, attempt, False) is SettleOutcome.SETTLED:
            self.holds = 0
            self.settled += 1
            self.known = Standing(SETTLED, attempt)
        elif act == "bury" and may_bury(known, attempt) in ("BURIED", "EXISTS"):
            self.holds = 0
            self.known = Standing(DEAD, newest, waits=True)
        elif act == "replay" and known is not None and known.state is DEAD:
            self.known = Standing(DEAD, known.attempt)


acts = st.lists(
    st.tuples(st.sampled_from(["open", "settle", "bury", "replay"]), st.integers(1, 6)),
    max_size=30,
)


@given(acts)
def test_any_story_settles_once_and_holds_once(story: list[tuple[str, int]]) -> None:
    life = Life()
    for act, attempt in story:
        before = life.known
        life.step(act, attempt)
        assert life.settled <= 1
        assert life.holds == (1 if life.known and life.known.state is HELD else 0)
        if before is not None:
            assert life.known is not None
            assert life.known.attempt >= before.attempt
