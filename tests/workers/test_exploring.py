"""Calls whose model exploration drew: what a cap, a wallet or a lost worker makes of them."""

from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import orjson
import pytest

from shared.domain import capture
from shared.domain.dialects import DIALECTS
from shared.domain.exploration import drawn
from shared.domain.inference import Dialect
from shared.domain.planning import Situation
from shared.domain.routing import replay
from shared.domain.routing_policy import CallerPolicy
from shared.errors import Overloaded
from shared.holding import Held
from shared.queue import Envelope
from shared.stream import Record, RecordKind
from tests.domain.routing_cases import ANCHORS
from workers.call import Call
from workers.inference import carry_out
from workers.routing import Plan, plan_anew, plan_call
from workers.told import Told, plan_told

SHARE = Decimal("0.2")
POLICY = CallerPolicy(exploration_share=SHARE).to_json()
CHEAPEST = "mistral-large-3"
REFUSALS = ("PER_CALL_CAP", "DAILY_CAP", "TENANT_CAP", "INSUFFICIENT_FUNDS", "KILLSWITCH")
# of the first ids, one whose seed draws another model, and one whose seed does not
IDS = [UUID(int=number) for number in range(1, 100)]
DRAWING = next(each for each in IDS if drawn(str(each), SHARE, 4) is not None)
CALM = next(each for each in IDS if drawn(str(each), SHARE, 4) is None)


class Books:
    """A ledger that says what it was told to say, and keeps what it was asked."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)
        self.holds: list[Any] = []
        self.settlements: list[Any] = []

    async def hold(self, item: Any) -> Held:
        self.holds.append(item)
        word = self.words.pop(0)
        if word == "AWAY":
            raise Overloaded("The database does not answer at the moment.")
        return Held(word, item["attempt"], cap=Decimal("0.001"))

    async def settle(self, item: Any) -> str:
        self.settlements.append(item)
        return "SETTLED"


def situation(policy: CallerPolicy, active: frozenset[str], tenant_id: str) -> Situation:
    return Situation(ANCHORS, policy, active, False, 3, tenant_id)


def deps_with(books: Books | None = None) -> Any:
    return SimpleNamespace(
        catalog=ANCHORS,
        providers=dict.fromkeys(candidate.provider for candidate in ANCHORS.candidates),
        routing=SimpleNamespace(situation=situation),
        settings=SimpleNamespace(max_fallbacks=3, hold_ttl_s=60, call_deadline_s=60),
        killswitch=SimpleNamespace(stops=lambda tenant: False, missed=lambda: None),
        ledger=books,
    )


def a_call(inference_id: UUID = DRAWING, attempt: int = 1) -> Call:
    body = orjson.dumps(
        {"model": "ainfera-inference", "messages": [{"role": "user", "content": "Hi."}]}
    )
    caller = {"tenant_id": str(IDS[0]), "agent_id": str(IDS[1]), "policy": POLICY}
    envelope = Envelope(inference_id, IDS[2], Dialect.NATIVE, "reply", caller, 1.0, "trace", body)
    request = DIALECTS[Dialect.NATIVE].parse_request(orjson.loads(body))
    told: list[Any] = []
    answer: Any = SimpleNamespace(fail=told.append, told=told)
    return Call(envelope, request, attempt, answer, claimed_at=0)


def chosen(plan: Plan) -> str:
    assert plan.decision is not None
    return plan.candidates[0].slug


def share(plan: Plan) -> Decimal:
    assert plan.decision is not None
    return plan.decision.policy.exploration_share


def test_planned_anew_it_is_the_rules_own_choice_of_the_same_inputs() -> None:
    plan = plan_call(a_call(), deps_with())
    anew = plan_anew(plan, deps_with())
    assert plan.decision is not None
    assert anew.decision is not None
    assert anew.record is not None
    assert (plan.drawn, chosen(plan) == CHEAPEST) == (True, False)
    assert (anew.drawn, chosen(anew)) == (False, CHEAPEST)
    assert anew.hold_usd < plan.hold_usd
    still = {**plan.decision.inputs["policy"], "exploration_share": "0"}
    assert anew.decision.inputs == {**plan.decision.inputs, "policy": still}
    assert replay(anew.decision.inputs) == anew.decision
    assert anew.record == capture.record(anew.decision)


@pytest.mark.parametrize("inference_id", [DRAWING, CALM])
def test_only_a_first_attempt_explores(inference_id: UUID) -> None:
    """A later one that drew nothing is no draw either: else those would be too many."""
    plan = plan_call(a_call(inference_id, attempt=2), deps_with())
    assert (chosen(plan), plan.drawn) == (CHEAPEST, False)
    assert share(plan) == 0


def test_a_quoted_choice_is_not_put_aside() -> None:
    plan = plan_call(a_call(), deps_with())
    assert not Plan(plan.features, plan.decision, plan.candidates, quote_id="q").drawn


@pytest.mark.parametrize("word", REFUSALS)
async def test_what_was_refused_is_tried_once_more_without_the_dice(word: str) -> None:
    books, call = Books(word, word), a_call()
    await carry_out(call, deps_with(books))
    first, second = books.holds
    assert Decimal(second["amount"]) < Decimal(first["amount"])
    assert (first.get("tentative"), second.get("tentative")) == (True, None)
    (settled,) = books.settlements
    outcome = settled["outcome"]
    assert (outcome["chosen_model_slug"], "explored" in outcome["decision"]) == (CHEAPEST, False)
    assert outcome["decision"]["terms"]["policy"]["exploration_share"] == "0"
    assert outcome["outcome_status"].startswith("rejected_")
    assert len(settled["events"]) == 1
    assert len(call.answer.told) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("inference_id", "word"), [(DRAWING, "AGENT_UNKNOWN"), (CALM, "DAILY_CAP")]
)
async def test_no_other_call_is_held_for_twice(inference_id: UUID, word: str) -> None:
    books = Books(word)
    await carry_out(a_call(inference_id), deps_with(books))
    assert len(books.holds) == len(books.settlements) == 1


async def test_a_database_that_goes_away_in_between_closes_the_call_as_planned_anew() -> None:
    books = Books("DAILY_CAP", "AWAY")
    await carry_out(a_call(), deps_with(books))
    (settled,) = books.settlements
    assert settled["outcome"]["outcome_status"] == "expired"
    assert settled["outcome"]["chosen_model_slug"] == CHEAPEST


@pytest.mark.parametrize(
    ("attempt", "spoke", "explored"),
    [(1, "drawn", True), (1, CHEAPEST, False), (2, CHEAPEST, False)],
)
def test_a_lost_answer_is_that_of_the_plan_that_spoke(
    attempt: int, spoke: str, explored: bool
) -> None:
    call, deps = a_call(attempt=3), deps_with()
    slug = chosen(plan_call(call, deps, 1)) if spoke == "drawn" else spoke
    (model,) = [each for each in ANCHORS.candidates if each.slug == slug]
    opening = orjson.dumps({"model": model.provider_model_id, "provider": model.provider})
    record = Record(DRAWING.bytes, attempt, RecordKind.OPEN, 1, opening)
    plan = plan_told(Told([record], ended=False), call, deps)
    assert (chosen(plan), plan.drawn) == (slug, explored)
    assert share(plan) == (SHARE if explored else 0)
