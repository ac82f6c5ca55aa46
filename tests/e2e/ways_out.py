"""The ways out of a call, each as something that is done to the calls that shall take it.

A way makes the calls it is given and sees to it that they end as they should. What their clients
were told shows that they took that way and no other; what was written is looked at afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from shared.config import Settings
from shared.control import CONTROL_CHANNEL, KILLSWITCH
from shared.db import Database
from shared.kept import KeptCalls
from shared.queue import InferenceQueue
from shared.valkey import open_valkey
from tests.e2e.calls import Answer, call
from tests.e2e.sweeping import Ask, Sweep, codes, heard
from tests.e2e.test_leaving import ENDLESS
from tests.e2e.upstream import Say
from tests.e2e.witness import eventually
from workers.ledger import Ledger
from workers.sweep import BooksDeps, release_expired_holds

Asks = Sequence[Ask]
Way = Callable[[Sweep, Asks], None]

SILENT = Say(in_lockstep=True, first_waits=True)
# in the queue's own time, microseconds
LONGER_THAN_ANY_DEADLINE = 90_000 * 1_000_000
LOST_WITH_THEIR_WORKERS = 3


def answered(sweep: Sweep, asks: Asks) -> None:
    assert codes(sweep.ask_all(asks, Say())) == {None}


# -- rejects ------------------------------------------------------------------------------------


def below_the_floor(sweep: Sweep, asks: Asks) -> None:
    hint = {"min_quality": 0.99}
    assert codes(sweep.ask_all(asks, Say(), routing_hint=hint)) == {"no_candidate_clears_floor"}


def over_the_budget(sweep: Sweep, asks: Asks) -> None:
    hint = {"budget_cap_usd": 0.000001}
    assert codes(sweep.ask_all(asks, Say(), routing_hint=hint)) == {"no_candidate_clears_floor"}


def not_enrolled(sweep: Sweep, asks: Asks) -> None:
    """No allowed model is of an active provider; a pinned one is of none, or is unknown."""
    told = codes(sweep.ask_all(asks, Say(), routing_hint={"allow": ["mistral"]}))
    assert told == {"no_candidate_enrolled", "model_unavailable"}


def over_a_cap(sweep: Sweep, asks: Asks) -> None:
    sweep.sign_up(per_call_cap_usd="0.001")
    assert codes(sweep.ask_all(asks, Say(), max_tokens=60_000)) == {"spend_policy_exceeded"}


def over_the_days_cap(sweep: Sweep, asks: Asks) -> None:
    sweep.sign_up(daily_cap_usd="0.01")
    assert codes(sweep.ask_all(asks, Say(), max_tokens=60_000)) == {"spend_policy_exceeded"}


def out_of_funds(sweep: Sweep, asks: Asks) -> None:
    dear: Any = {"max_tokens": 60_000, "routing_hint": {"allow": ["claude-opus-4-7"]}}
    assert codes(sweep.ask_all(asks, Say(), **dear)) == {"insufficient_funds"}


def killswitch(sweep: Sweep, asks: Asks) -> None:
    engage(sweep)
    assert codes(sweep.ask_all(asks, Say())) == {"cost_killswitch_engaged"}


def killswitch_in_the_background(sweep: Sweep, asks: Asks) -> None:
    """No promise is made: nothing is kept, and a worker refuses it."""
    engage(sweep)
    assert codes(sweep.ask_all(asks, Say(), background=True)) == {"cost_killswitch_engaged"}


def engage(sweep: Sweep) -> None:
    """For the one tenant. Every process has heard of it once both kinds of calls are refused."""
    scope = sweep.agent.tenant_id
    statement = "INSERT INTO killswitches (scope, engaged_by) VALUES ($1, 'sweep')"
    sweep.witness.rows(statement, scope)
    order = {"type": KILLSWITCH, "scope": scope, "engaged": True}
    sweep.witness.redis.publish(CONTROL_CHANNEL, orjson.dumps(order))
    eventually(lambda: refused(sweep) and refused(sweep, background=True), "the killswitch heard")
    sweep.at_rest()
    sweep.leave_out()


def refused(sweep: Sweep, **more: Any) -> bool:
    return call(sweep.stack, sweep.agent.api_key, "native", "Hi.", **more).status == 503


# -- providers ----------------------------------------------------------------------------------


def falls_back(sweep: Sweep, asks: Asks) -> None:
    def ask(each: Ask) -> Answer:
        word = sweep.upstream.will(Say(status=500), on_anthropic=Say())
        answer = sweep.ask(each, word)
        assert len(sweep.upstream.all_asked(word)) > 1
        return answer

    assert codes(sweep.at_once(ask, asks)) == {None}


def provider_fails(sweep: Sweep, asks: Asks) -> None:
    assert codes(sweep.ask_all(asks, Say(status=500))) == {"provider_error"}


def provider_refuses(sweep: Sweep, asks: Asks) -> None:
    """What the client sent is at fault: no other model is asked."""
    refusing = Say(status=400, error="no", error_type="invalid_request_error")
    assert codes(sweep.ask_all(asks, refusing)) == {"invalid_request"}


def breaks_off(sweep: Sweep, asks: Asks) -> None:
    broken = Say(texts=("One ", "two "), broken_after=1)
    assert codes(sweep.ask_all(asks, broken)) == {"provider_error"}


# -- who stops it -------------------------------------------------------------------------------


def cancelled(sweep: Sweep, asks: Asks) -> None:
    """In the middle of the answer, by an order; who waits for a folded one has heard nothing."""
    calls = sweep.begin(asks, ENDLESS)
    for word in calls:
        sweep.asked(word)
    sweep.at_once(lambda id_: order_stop(sweep, id_), sweep.in_state("held", len(asks)))
    assert codes(heard(calls.values())) == {"cancelled"}


def cancelled_in_the_background(sweep: Sweep, asks: Asks) -> None:
    sweep.ask_all(asks, ENDLESS, background=True)
    sweep.at_once(lambda id_: order_stop(sweep, id_), sweep.in_state("held", len(asks)))


def cancelled_in_the_queue(sweep: Sweep, asks: Asks) -> None:
    with sweep.no_worker():
        calls = sweep.begin(asks, ENDLESS)
        ids = sweep.waiting(len(asks))
        orders = [sweep.pool.submit(order_stop, sweep, each) for each in ids]
        for each in ids:
            sweep.told_to_stop(each)
    assert codes(heard(calls.values())) == {"cancelled"}
    for order in orders:
        order.result()
    assert not any(map(sweep.upstream.all_asked, calls))


def order_stop(sweep: Sweep, inference_id: str) -> None:
    sweep.post(f"/v1/inferences/{inference_id}/cancel").raise_for_status()


def leaves_in_the_middle(sweep: Sweep, asks: Asks) -> None:
    """After the first word, which only the client of a stream has heard."""
    with sweep.lines(asks, ENDLESS) as lines:
        for line in lines:
            sweep.asked(line.word)
            if line.ask.stream:
                line.hears(b"word0")
                assert f"x-ainfera-router: {line.ask.router}\r\n".encode() in line.heard


def leaves_early(sweep: Sweep, asks: Asks) -> None:
    """Before the first word, when not even the inference's id is known to the client."""
    with sweep.lines(asks, SILENT) as lines:
        for line in lines:
            sweep.upstream.asked(line.word)


def leaves_in_the_queue(sweep: Sweep, asks: Asks) -> None:
    with sweep.no_worker():
        with sweep.lines(asks, ENDLESS) as lines:
            ids = sweep.waiting(len(asks))
        for each in ids:
            sweep.told_to_stop(each)
    sweep.at_rest()
    assert not any(sweep.upstream.all_asked(line.word) for line in lines)


# -- calls that are kept ------------------------------------------------------------------------


def in_the_background(sweep: Sweep, asks: Asks) -> None:
    assert {each.status for each in sweep.ask_all(asks, Say(), background=True)} == {202}


def comes_again(sweep: Sweep, asks: Asks) -> None:
    """Twice at once, and once more when it is over: one call, and one answer three times."""
    words = [sweep.upstream.will(Say()) for _ in asks]

    def ask(pair: tuple[Ask, str]) -> Answer:
        return sweep.ask(*pair, headers={"idempotency-key": pair[1]})

    pairs = list(zip(asks, words, strict=True))
    first = sweep.at_once(ask, [*pairs, *pairs])
    again = sweep.at_once(ask, pairs)
    assert codes([*first, *again]) == {None}
    ids = [each.inference_id for each in first]
    assert ids[: len(asks)] == ids[len(asks) :] == [each.inference_id for each in again]
    assert {each.headers["idempotent-replayed"] for each in again} == {"true"}
    assert {len(sweep.upstream.all_asked(word)) for word in words} == {1}


# -- quotes -------------------------------------------------------------------------------------


def quoted(sweep: Sweep, asks: Asks) -> None:
    """Each by a quote of its own, which is good for that one call."""
    words = [sweep.upstream.will(Say()) for _ in asks]
    quotes = sweep.at_once(lambda pair: hold_quote(sweep, *pair), zip(asks, words, strict=True))

    def ask(named: tuple[Ask, str, str]) -> Answer:
        return sweep.ask(named[0], named[1], headers={"x-ainfera-quote": named[2]})

    named = list(zip(asks, words, quotes, strict=True))
    assert codes(sweep.at_once(ask, named)) == {None}
    assert codes(sweep.at_once(ask, named)) == {"quote_used"}


def quote_is_another_calls(sweep: Sweep, asks: Asks) -> None:
    quote = {"x-ainfera-quote": hold_quote(sweep, asks[0], sweep.upstream.will(Say()))}
    assert codes(sweep.ask_all(asks, Say(), headers=quote)) == {"quote_mismatch"}


def quote_has_expired(sweep: Sweep, asks: Asks) -> None:
    words = [sweep.upstream.will(Say()) for _ in asks]
    quotes = sweep.at_once(lambda pair: hold_quote(sweep, *pair), zip(asks, words, strict=True))
    ending = "UPDATE quotes SET expires_at = now() WHERE tenant_id = $1::uuid"
    sweep.witness.rows(ending, sweep.agent.tenant_id)

    def ask(named: tuple[Ask, str, str]) -> Answer:
        return sweep.ask(named[0], named[1], headers={"x-ainfera-quote": named[2]})

    told = sweep.at_once(ask, zip(asks, words, quotes, strict=True))
    assert codes(told) == {"quote_expired"}


def hold_quote(sweep: Sweep, ask: Ask, word: str) -> str:
    body = ask.body(word, hold_for_s=60)
    answer = sweep.post(f"/v1/quote?dialect={ask.dialect}", body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["quote_id"])


def not_a_call(sweep: Sweep, asks: Asks) -> None:
    """A body that is none."""
    assert codes(sweep.ask_all(asks, Say(), max_tokens="many")) == {"invalid_request"}


# -- time, and workers that are lost ------------------------------------------------------------


def not_begun_in_time(sweep: Sweep, asks: Asks) -> None:
    """No worker takes it: its client is told so, and it is not run when one is there again."""
    with sweep.no_worker():
        calls = sweep.begin(asks, Say(), at=sweep.impatient)
        assert codes(heard(calls.values())) == {"deadline_exceeded"}
    sweep.at_rest()
    assert not any(map(sweep.upstream.all_asked, calls))


def too_long_in_the_queue(sweep: Sweep, asks: Asks) -> None:
    with sweep.no_worker():
        calls = sweep.begin(asks, Say())
        grow_old(sweep, len(asks))
    assert codes(heard(calls.values())) == {"deadline_exceeded"}
    assert not any(map(sweep.upstream.all_asked, calls))


def too_long_in_the_background(sweep: Sweep, asks: Asks) -> None:
    with sweep.no_worker():
        sweep.ask_all(asks, Say(), background=True)
        grow_old(sweep, len(asks))


def grow_old(sweep: Sweep, count: int) -> None:
    """Every call in the queue was accepted a day ago, and more."""
    seconds, micros = sweep.witness.redis.time()  # type: ignore[misc]
    accepted = seconds * 1_000_000 + micros - LONGER_THAN_ANY_DEADLINE
    for each in sweep.waiting(count):
        sweep.note(each, at=accepted)


def hold_runs_out(sweep: Sweep, asks: Asks) -> None:
    """While it is still asked for: the books close it, and its worker comes too late."""
    with sweep.lines(asks, ENDLESS) as lines:
        for line in lines:
            sweep.asked(line.word)
        ids = sweep.in_state("held", len(asks))
        ending = "UPDATE inferences SET hold_expires_at = now() WHERE id = ANY ($1::uuid[])"
        sweep.witness.rows(ending, ids)
        sweep.witness.run(release(Settings(**sweep.stack.told)))  # type: ignore[arg-type]
        assert not [each for each in sweep.calls() if each["state"] == "held"]


async def release(settings: Settings) -> None:
    """A round of the books worker."""
    db, redis = Database(settings), open_valkey(settings.redis_url)
    ledger = Ledger(db)
    await ledger.start()
    deps = BooksDeps(settings, db, ledger, KeptCalls(db, settings), InferenceQueue(redis), redis)
    await release_expired_holds({"deps": deps})
    await ledger.aclose()
    await redis.aclose()
    await db.aclose()


def worker_is_lost(sweep: Sweep, asks: Asks) -> None:
    """After the first word. Of a stream that was heard, so nobody is asked again; a folded answer
    is asked for once more, and breaks off."""
    calls = sweep.begin(asks, Say(texts=("Lost ", "word"), broken_after=1, break_waits=True))
    for word in calls:
        sweep.asked(word)
    streamed = [word for ask, word in zip(asks, calls, strict=True) if ask.stream]
    eventually(lambda: len(sweep.witness.keys_with("Lost ")) == len(streamed), "the replays")
    sweep.stack.kill("inference")
    sweep.stack.start("inference")
    for word in calls.keys() - set(streamed):
        eventually(lambda word=word: len(sweep.upstream.all_asked(word)) == 2, "asked again")  # type: ignore[misc]
        sweep.upstream.asked(word).step()
    assert codes(heard(calls.values())) == {"provider_error"}
    assert {len(sweep.upstream.all_asked(word)) for word in streamed} == {1}


def dead_and_discarded(sweep: Sweep, asks: Asks) -> None:
    for each in dead(sweep, asks):
        sweep.operate(f"/internal/dead-letters/{each}/discard")


def dead_and_replayed(sweep: Sweep, asks: Asks) -> None:
    for each in dead(sweep, asks):
        sweep.operate(f"/internal/dead-letters/{each}/replay")


def dead(sweep: Sweep, asks: Asks) -> list[str]:
    """Calls that a worker set aside, because the queue says that three were lost with them."""
    with sweep.no_worker():
        calls = sweep.begin(asks, Say())
        for each in sweep.waiting(len(asks)):
            sweep.note(each, **{"try": LOST_WITH_THEIR_WORKERS})
    assert codes(heard(calls.values())) == {"overloaded"}
    letters = sweep.in_state("dead", len(asks))
    assert not [each for each in sweep.calls() if each["captured"]], "a dead call is not over"
    return letters
