"""`bury_inferences`, and what the other functions make of a dead call, against the pure rule."""

from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.db import Connection
from shared.domain.attempts import CallState, Standing, may_bury, may_open, may_settle
from shared.domain.ledger import (
    BuryOutcome,
    Caps,
    OpenOutcome,
    SettleOutcome,
    Wallet,
    admit,
    release,
    settle,
)
from tests.workers.ledger_cases import (
    Agent,
    call,
    chain_of,
    ending,
    hold,
    new_agent,
    results,
    wallet_of,
    written,
)
from tests.workers.letter_cases import burial

TODAY = "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date"
REPLAY = """UPDATE dead_letters SET state = 'replayed', resolved_at = now(), resolved_by = 'test'
             WHERE inference_id = $1 AND state = 'dead'"""


async def letter_of(db: Connection, inference: str) -> asyncpg.Record:
    row = await db.fetchrow("SELECT * FROM dead_letters WHERE inference_id = $1", UUID(inference))
    assert row is not None
    return row


async def call_of(db: Connection, inference: str) -> asyncpg.Record | None:
    return await db.fetchrow("SELECT * FROM inferences WHERE id = $1", UUID(inference))


async def test_burying_releases_the_hold_and_leaves_no_capture(ledger_db: Connection) -> None:
    agent, inference = await new_agent(ledger_db), str(uuid4())
    await call(ledger_db, "open_inferences", hold(agent, "2", inference, attempt=3))
    before = await written(ledger_db)
    item = burial(agent, inference, 4)
    assert await results(ledger_db, "bury_inferences", item) == ["BURIED"]
    assert await results(ledger_db, "bury_inferences", item) == ["EXISTS"]

    assert (await wallet_of(ledger_db, agent))["held"] == 0
    dead = await call_of(ledger_db, inference)
    assert dead is not None
    assert (dead["state"], dead["hold_state"], dead["attempt"]) == ("dead", "voided", 4)
    assert await written(ledger_db) == before
    letter = await letter_of(ledger_db, inference)
    assert (letter["state"], letter["attempts"], letter["envelope"]) == ("dead", 4, b"sealed")
    assert letter["expires_at"] > letter["died_at"]


async def test_a_call_that_never_held_anything_is_buried_too(ledger_db: Connection) -> None:
    agent, inference = await new_agent(ledger_db), str(uuid4())
    item = burial(agent, inference, 4, routed=False, model="gpt-5-5")
    assert await results(ledger_db, "bury_inferences", item) == ["BURIED"]
    dead = await call_of(ledger_db, inference)
    assert dead is not None
    assert (dead["state"], dead["routed"], dead["hold_usd"]) == ("dead", False, 0)


async def test_a_letter_without_a_readable_envelope_belongs_to_nobody(
    ledger_db: Connection,
) -> None:
    agent, inference = await new_agent(ledger_db), str(uuid4())
    item = burial(agent, inference, 1, tenant_id=None, agent_id=None, routed=False)
    assert await results(ledger_db, "bury_inferences", item) == ["BURIED"]
    assert await results(ledger_db, "bury_inferences", item) == ["EXISTS"]
    assert await call_of(ledger_db, inference) is None
    assert (await letter_of(ledger_db, inference))["tenant_id"] is None
    discard = """UPDATE dead_letters SET state = 'discarded', envelope = NULL, resolved_at = now()
                  WHERE inference_id = $1"""
    await ledger_db.execute(discard, UUID(inference))
    # the queue may still give its job to somebody
    assert await results(ledger_db, "bury_inferences", item) == ["SETTLED"]
    assert (await letter_of(ledger_db, inference))["state"] == "discarded"


async def test_the_unreadable_envelope_of_a_held_call_releases_its_hold(
    ledger_db: Connection,
) -> None:
    agent, inference = await new_agent(ledger_db), str(uuid4())
    await call(ledger_db, "open_inferences", hold(agent, "2", inference))
    item = burial(agent, inference, 2, tenant_id=None, agent_id=None)
    assert await results(ledger_db, "bury_inferences", item) == ["BURIED"]
    assert (await wallet_of(ledger_db, agent))["held"] == 0
    assert str((await letter_of(ledger_db, inference))["tenant_id"]) == agent.tenant_id


async def test_what_is_over_or_newer_is_not_buried(ledger_db: Connection) -> None:
    agent, over, newer = await new_agent(ledger_db), str(uuid4()), str(uuid4())
    await call(ledger_db, "open_inferences", hold(agent, "1", over))
    await call(ledger_db, "settle_inferences", ending(agent, over, "0.5"))
    await call(ledger_db, "open_inferences", hold(agent, "1", newer, attempt=3))
    tried = [burial(agent, over, 4), burial(agent, newer, 2)]
    assert await results(ledger_db, "bury_inferences", *tried) == ["SETTLED", "FENCED"]
    assert await ledger_db.fetchval("SELECT count(*) FROM dead_letters WHERE attempts > 4") == 0
    stranger = burial(await new_agent(ledger_db), newer, 9)
    assert await results(ledger_db, "bury_inferences", stranger) == ["FENCED"]
    assert (await wallet_of(ledger_db, agent))["held"] == 1


async def test_a_dead_call_waits_for_its_operator(ledger_db: Connection) -> None:
    """A claim that was under way, or that comes because the queue had the job still."""
    agent, inference = await new_agent(ledger_db), str(uuid4())
    await call(ledger_db, "open_inferences", hold(agent, "1", inference))
    await call(ledger_db, "bury_inferences", burial(agent, inference, 4))
    for attempt in (1, 4, 5):
        late = hold(agent, "1", inference, attempt=attempt)
        assert await results(ledger_db, "open_inferences", late) == ["FENCED"]
        done = ending(agent, inference, "0.5", attempt=attempt)
        assert await results(ledger_db, "settle_inferences", done) == ["FENCED"]
    again = burial(agent, inference, 6)
    assert await results(ledger_db, "bury_inferences", again) == ["EXISTS"]
    # its number is used up, so that a replay does not meet it again
    assert (await letter_of(ledger_db, inference))["attempts"] == 6
    assert (await wallet_of(ledger_db, agent))["held"] == 0


async def test_a_replay_opens_the_call_anew_and_settles_it_once(ledger_db: Connection) -> None:
    agent, inference = await new_agent(ledger_db), str(uuid4())
    await call(ledger_db, "open_inferences", hold(agent, "1", inference))
    await call(ledger_db, "bury_inferences", burial(agent, inference, 4))
    await ledger_db.execute(REPLAY, UUID(inference))
    same = hold(agent, "2", inference, attempt=4)
    assert await results(ledger_db, "open_inferences", same) == ["FENCED"]
    fresh = hold(agent, "2", inference, attempt=5)
    assert await results(ledger_db, "open_inferences", fresh) == ["OPENED"]
    assert await results(ledger_db, "open_inferences", fresh) == ["EXISTS"]
    assert (await wallet_of(ledger_db, agent))["held"] == 2
    late = ending(agent, inference, "0.5", attempt=3)
    assert await results(ledger_db, "settle_inferences", late) == ["FENCED"]
    done = ending(agent, inference, "0.75", attempt=5)
    assert await results(ledger_db, "settle_inferences", done) == ["SETTLED"]
    assert await results(ledger_db, "settle_inferences", done) == ["EXISTS"]
    wallet = await wallet_of(ledger_db, agent)
    assert (wallet["balance"], wallet["held"]) == (Decimal("9.25"), 0)
    assert (await chain_of(ledger_db, agent)).valid


@pytest.mark.parametrize(
    ("funds", "daily", "refusal"), [("1", None, "INSUFFICIENT_FUNDS"), ("9", "1", "DAILY_CAP")]
)
async def test_a_replay_is_checked_against_funds_and_caps_anew(
    ledger_db: Connection, funds: str, daily: str | None, refusal: str
) -> None:
    agent, inference = await new_agent(ledger_db, funds, daily=daily), str(uuid4())
    await call(ledger_db, "open_inferences", hold(agent, "1", inference))
    await call(ledger_db, "bury_inferences", burial(agent, inference, 4))
    await call(ledger_db, "open_inferences", hold(agent, "1"))
    await ledger_db.execute(REPLAY, UUID(inference))
    fresh = hold(agent, "1", inference, attempt=5)
    assert await results(ledger_db, "open_inferences", fresh) == [refusal]
    refused = ending(agent, inference, "0", attempt=5, refused=True)
    assert await results(ledger_db, "settle_inferences", refused) == ["SETTLED"]
    assert (await wallet_of(ledger_db, agent))["held"] == 1


async def test_a_replay_that_dies_again_is_one_letter_with_all_its_failures(
    ledger_db: Connection,
) -> None:
    agent, inference = await new_agent(ledger_db), str(uuid4())
    await call(ledger_db, "bury_inferences", burial(agent, inference, 4))
    await ledger_db.execute(REPLAY, UUID(inference))
    await call(ledger_db, "open_inferences", hold(agent, "1", inference, attempt=5))
    crashes = [{"attempt": n, "code": "worker_lost"} for n in (5, 6, 7)]
    again = burial(agent, inference, 8, failures=crashes)
    assert await results(ledger_db, "bury_inferences", again) == ["BURIED"]
    letter = await letter_of(ledger_db, inference)
    assert (letter["state"], letter["attempts"], letter["resolved_at"]) == ("dead", 8, None)
    assert '"attempt": 7' in letter["failures"]
    assert '"attempt": 1' in letter["failures"]
    assert (await wallet_of(ledger_db, agent))["held"] == 0


# -- the database and the rule ------------------------------------------------------------------

amounts = st.decimals("0.01", 3, places=3)
acts = st.sampled_from(["open", "settle", "refuse", "bury", "replay"])
stories = st.lists(st.tuples(acts, st.integers(0, 1), st.integers(1, 6), amounts), max_size=16)


@dataclass(slots=True)
class Known:
    """One call as the pure rules see it."""

    inference: str = field(default_factory=lambda: str(uuid4()))
    standing: Standing | None = None
    hold: Decimal = Decimal(0)


@dataclass(slots=True)
class Model:
    """An agent without caps, its wallet, and two calls of it."""

    agent: Agent
    wallet: Wallet
    calls: tuple[Known, Known]


async def opened(db: Connection, model: Model, known: Known, attempt: int, usd: Decimal) -> None:
    item = hold(model.agent, f"{usd:f}", known.inference, attempt=attempt)
    (answer,) = await results(db, "open_inferences", item)
    expected: str | None = may_open(known.standing, attempt)
    if expected is None:
        admitted = admit(model.wallet, usd, Caps(), await db.fetchval(TODAY))
        expected, model.wallet = admitted.outcome, admitted.wallet
    assert answer == expected
    if answer == OpenOutcome.OPENED:
        known.hold, known.standing = usd, Standing(CallState.HELD, attempt)
    elif answer == OpenOutcome.EXISTS:
        assert known.standing is not None
        newest = max(attempt, known.standing.attempt)
        known.standing = Standing(CallState.HELD, newest)


async def ended(
    db: Connection, model: Model, known: Known, attempt: int, usd: Decimal, refused: bool
) -> None:
    item = ending(model.agent, known.inference, f"{usd:f}", attempt=attempt, refused=refused)
    (row,) = await call(db, "settle_inferences", item)
    assert row["result"] == may_settle(known.standing, attempt, refused)
    if row["result"] != SettleOutcome.SETTLED:
        return
    if known.standing is not None:
        cost = Decimal(0) if refused else usd
        done = settle(model.wallet, known.hold, cost, await db.fetchval(TODAY))
        model.wallet = done.wallet
        assert row["charged"] == done.charged
    state = CallState.REFUSED if refused else CallState.SETTLED
    known.hold, known.standing = Decimal(0), Standing(state, attempt)


async def buried(db: Connection, model: Model, known: Known, attempt: int) -> None:
    item = burial(model.agent, known.inference, attempt)
    (answer,) = await results(db, "bury_inferences", item)
    assert answer == may_bury(known.standing, attempt)
    newest = max(attempt, known.standing.attempt) if known.standing else attempt
    if answer == BuryOutcome.BURIED:
        model.wallet, known.hold = release(model.wallet, known.hold), Decimal(0)
    if answer in (BuryOutcome.BURIED, BuryOutcome.EXISTS):
        known.standing = Standing(CallState.DEAD, newest, waits=True)


async def replayed(db: Connection, known: Known) -> None:
    await db.execute(REPLAY, UUID(known.inference))
    if known.standing is not None and known.standing.state is CallState.DEAD:
        known.standing = Standing(CallState.DEAD, known.standing.attempt)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(story=stories)
async def test_the_database_and_the_rule_agree(
    ledger_db: Connection, story: list[tuple[str, int, int, Decimal]]
) -> None:
    agent = await new_agent(ledger_db, "4")
    model = Model(agent, Wallet(Decimal(4)), (Known(), Known()))
    for act, which, attempt, usd in story:
        known = model.calls[which]
        if act == "open":
            await opened(ledger_db, model, known, attempt, usd)
        elif act in ("settle", "refuse"):
            await ended(ledger_db, model, known, attempt, usd, act == "refuse")
        elif act == "bury":
            await buried(ledger_db, model, known, attempt)
        else:
            await replayed(ledger_db, known)
        row = await wallet_of(ledger_db, agent)
        assert (row["balance"], row["held"]) == (model.wallet.balance, model.wallet.held)
