"""Policies that explore or count on observed quality in a running fleet: what they do, and when."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import ainfera
import orjson
import pytest

from shared.domain.exploration import drawn
from shared.domain.learning import Tally, Terms, estimates, snapshot_hash
from tests.e2e.calls import Answer, call
from tests.e2e.conftest import Signup
from tests.e2e.stack import Stack
from tests.e2e.test_books import check_replay, get
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually
from tests.receipts.verifying import verify_alone
from tests.test_cli import fleet

Receipt = dict[str, Any]
SHARE = Decimal("0.2")
# so many calls that do not explore are one in 10^19
MOST_CALLS = 200
EXPLORING = 'version = "{}"\nexploration_share = "0.2"\n'
EMPIRICAL = 'version = "empirical-e2e"\nq_source = "empirical"\n[floors]\nchat = 0.6\n'
CHEAPEST = "gpt-5-mini"
KEEP = "INSERT INTO quality_snapshots (terms, cells, hash) VALUES ($1, $2, $3)"

Caller = Callable[..., tuple[Answer, Receipt]]
Publish = Callable[[str], AbstractContextManager[None]]


def operator(stack: Stack, *words: str) -> Any:
    done = fleet("policy", *words, "--json", **stack.told)
    assert done.exit_code == 0, done.output
    return orjson.loads(done.stdout)


@pytest.fixture
def make(stack: Stack, upstream: Upstream) -> Caller:
    """Make a routed call of an agent, and read its decision receipt."""

    def made(agent: ainfera.SignupResult, **hint: Any) -> tuple[Answer, Receipt]:
        word, told = upstream.will(Say()), {"task_type": "chat", **hint}
        answer = call(stack, agent.api_key, "native", word, routing_hint=told, max_tokens=400)
        path = f"/v1/inferences/{answer.inference_id}/decision"
        receipt: Receipt = get(stack, agent.api_key, path).json()
        return answer, receipt

    return made


@pytest.fixture
def published(stack: Stack, signup: Signup, make: Caller, tmp_path: Path) -> Publish:
    """While the block runs a document is the policy of all, and is heard; then it is as before."""
    listener = signup("listener")

    def heard(version: str) -> bool:
        return bool(make(listener)[1]["policy_version"] == version)

    @contextmanager
    def publish(document: str) -> Iterator[None]:
        path = tmp_path / "policy.toml"
        path.write_text(document)
        turn = operator(stack, "publish", str(path), "--yes")
        try:
            eventually(lambda: heard(turn["version"]), "the publication is heard")
            yield
        finally:
            operator(stack, "rollback", turn["before"], "--yes")
            eventually(lambda: heard(turn["before"]), "the rollback is heard")

    return publish


def draws(receipt: Receipt) -> bool:
    """Whether a call's seed draws another than the first of those that were ranked."""
    ranked = [each for each in receipt["candidates"] if each["rank"]]
    return drawn(receipt["seed"], SHARE, len(ranked) - 1) is not None


def first(receipt: Receipt) -> str:
    slug: str = receipt["candidates"][0]["model_slug"]
    return slug


def verified_alone(stack: Stack, receipts: list[Receipt], folder: Path) -> None:
    """By the one file that clients keep, with the published key."""
    jwks = stack.request("GET", "/.well-known/jwks.json").json()
    answer = verify_alone(folder, receipts, jwks=jwks)
    assert answer.code == 0, answer.out
    assert f"{len(receipts)} receipts: {len(receipts)} valid" in answer.out


def test_some_calls_explore_while_a_published_version_says_so(
    stack: Stack,
    agent: ainfera.SignupResult,
    witness: Witness,
    make: Caller,
    published: Publish,
    tmp_path: Path,
) -> None:
    before = [make(agent)[1] for _ in range(5)]
    asked: dict[str, Any] = {"min_quality": 0.6, "budget_cap_usd": 0.01}
    made: list[Receipt] = []
    with published(EXPLORING.format("exploring-e2e")):
        while len({receipt["explored"] for receipt in made}) < 2:
            assert len(made) < MOST_CALLS
            answer, receipt = make(agent, **asked)
            made.append(receipt)
            assert (answer.status, receipt["seed"]) == (200, answer.inference_id)
    after = [make(agent)[1] for _ in range(5)]

    for receipt in made:
        assert receipt["policy_version"] == "exploring-e2e"
        assert receipt["inputs"]["policy"]["exploration_share"] == "0.2"
        assert receipt["decision_rule"] == "cheapest_clearing_floor"
        assert (
            receipt["explored"]
            == draws(receipt)
            == (receipt["chosen_model_slug"] != first(receipt))
        )
        (chosen,) = [
            each
            for each in receipt["candidates"]
            if each["model_slug"] == receipt["chosen_model_slug"]
        ]
        assert chosen["rank"]
        assert chosen["q_prior"] >= 0.6
        assert Decimal(chosen["projected_cost_usd"]) <= Decimal("0.01")
        (capture,) = witness.captures(receipt["inference_id"])
        assert capture["decision"].get("explored", False) == receipt["explored"]
        routed = witness.events(receipt["inference_id"])[0]
        assert routed["model"] == receipt["chosen_model_slug"]
        assert routed.get("explored", False) == receipt["explored"]
    for receipt in before + after:
        assert receipt["inputs"]["policy"]["exploration_share"] == "0"
        assert (receipt["explored"], receipt["chosen_model_slug"]) == (False, first(receipt))
    for receipt in before + made + after:
        check_replay(receipt)
    verified_alone(stack, before + made + after, tmp_path)


def test_what_exploration_drew_over_a_cap_is_planned_anew(
    stack: Stack,
    signup: Signup,
    witness: Witness,
    make: Caller,
    published: Publish,
    tmp_path: Path,
) -> None:
    """Four hundred tokens are within the cap at the cheapest model only."""
    agent = signup("frugal", per_call_cap_usd="0.001")
    made: list[Receipt] = []
    with published(EXPLORING.format("capped-e2e")):
        while sum(map(draws, made)) < 2:
            assert len(made) < MOST_CALLS
            answer, receipt = make(agent)
            assert answer.status == 200, answer.content
            made.append(receipt)
        too_dear, refused = make(agent, min_quality=0.9)

    for receipt in made:
        share = "0" if draws(receipt) else "0.2"
        assert receipt["inputs"]["policy"]["exploration_share"] == share
        assert (receipt["explored"], receipt["chosen_model_slug"]) == (False, CHEAPEST)
        assert receipt["policy_version"] == "capped-e2e"
        assert len(witness.captures(receipt["inference_id"])) == 1
        assert len(witness.receipts(receipt["inference_id"])) == 1
        kinds = [each["event_type"] for each in witness.events(receipt["inference_id"])]
        assert kinds == ["inference.routed", "provider.responded", "receipt.created"]
    assert (too_dear.status, refused["outcome_status"]) == (403, "rejected_cap")
    assert len(witness.captures(too_dear.inference_id)) == 1
    verified_alone(stack, [*made, refused], tmp_path)


def test_observed_quality_counts_while_a_published_version_says_so(
    stack: Stack,
    agent: ainfera.SignupResult,
    witness: Witness,
    make: Caller,
    published: Publish,
    tmp_path: Path,
) -> None:
    """The cheapest model's answers were bad: known at once, of consequence once it is published."""
    terms = Terms()
    found = estimates([Tally("chat", CHEAPEST, "balanced", 0, 100, 30, 100)], terms)
    cells = [each.to_json() for each in found]
    witness.rows(KEEP, terms.to_json(), cells, snapshot_hash(terms, found))
    stack.kill("inference")
    stack.start("inference")  # it reads the newest snapshot when it starts

    before = make(agent)[1]
    tried = operator(stack, "compare", "flat-1", document(tmp_path), "--since", "1h")
    with published(EMPIRICAL):
        during = make(agent)[1]
    after = make(agent)[1]

    assert before["chosen_model_slug"] == after["chosen_model_slug"] == CHEAPEST
    assert during["chosen_model_slug"] != CHEAPEST
    lower = next(each["lower"] for each in cells if each["band"] == "all")
    assert during["inputs"]["empirical"][CHEAPEST]["lower"] == lower
    (fate,) = [each for each in during["candidates"] if each["model_slug"] == CHEAPEST]
    assert fate["drop_reason"] == "below_quality_floor"
    for receipt in (before, after):
        assert receipt["inputs"]["empirical"] == {}
        assert receipt["inputs"]["policy"]["q_source"] == "prior"
    assert tried["quality_snapshot"]["calls"] >= 1
    moved = {move["from"]: move["to"] for move in tried["moves"]}
    assert moved[CHEAPEST] == during["chosen_model_slug"]
    for receipt in (before, during, after):
        check_replay(receipt)
    verified_alone(stack, [before, during, after], tmp_path)


def document(folder: Path) -> str:
    path = folder / "tried.toml"
    path.write_text(EMPIRICAL)
    return str(path)
