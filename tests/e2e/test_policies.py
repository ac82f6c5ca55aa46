"""What operators decide about routing while a fleet runs: the next call's decision has it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ainfera
import orjson
import pytest

from shared.domain import routing_policy
from shared.domain.routing import replay
from tests.e2e.calls import call
from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness, eventually
from tests.test_cli import fleet

ROUTED = "ainfera-inference"
CAREFUL = """
version = "careful-e2e"
description = "Only the best."
[floors]
chat = 0.95
general = 0.95
"""
Operator = Callable[..., Any]
Receipt = dict[str, Any]


@pytest.fixture
def operator(stack: Stack) -> Iterator[Operator]:
    """Runs `fleet policy …`; the default and the gate are as they were in the end."""

    def act(*words: str) -> Any:
        done = fleet("policy", *words, "--json", **stack.told)
        assert done.exit_code == 0, done.output
        return orjson.loads(done.stdout)

    before = act("list")["active"]
    yield act
    act("rollback", before, "--yes")
    act("preference", "off", "--yes")


@pytest.fixture
def decide(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> Callable[..., Receipt]:
    """Make a routed call and read its decision receipt."""

    def decided(**hint: Any) -> Receipt:
        word = upstream.will(Say())
        made = call(stack, agent.api_key, "native", word, model=ROUTED, routing_hint=hint)
        assert made.status == 200, made.content
        path = f"/v1/inferences/{made.inference_id}/decision"
        auth = {"authorization": f"Bearer {agent.api_key}"}
        receipt: Receipt = stack.request("GET", path, headers=auth).json()
        return receipt

    return decided


def replayed(receipt: Receipt) -> tuple[str | None, list[dict[str, Any]]]:
    again = replay(receipt["inputs"])
    assert again.chosen is not None
    drops = [o.drop_reason and o.drop_reason.value for o in again.outcomes]
    return again.chosen.slug, [
        {**told, "drop_reason": drop}
        for told, drop in zip(receipt["candidates"], drops, strict=True)
    ]


def test_a_publication_decides_the_next_call_and_a_rollback_the_one_after(
    operator: Operator,
    decide: Callable[..., Receipt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    document = tmp_path / "careful.toml"
    document.write_text(CAREFUL)
    first = decide(task_type="chat")
    assert (first["policy_version"], first["min_quality"]) == ("flat-1", 0.5)

    trial = operator("publish", str(document), "--dry-run", "--since", "1h")
    assert trial["changed"] >= 1
    moved = {move["from"]: move["to"] for move in trial["moves"]}
    assert moved[first["chosen_model_slug"]] == "claude-opus-4-7"
    assert decide(task_type="chat")["policy_version"] == "flat-1"

    done = operator("publish", str(document), "--yes", "--reason", "complaints")
    assert done == {"version": "careful-e2e", "before": "flat-1", "changed": True}

    def heard(version: str) -> Receipt:
        receipt = decide(task_type="chat")
        return receipt if receipt["policy_version"] == version else {}

    careful = eventually(lambda: heard("careful-e2e"), "the publication is heard")
    assert careful["chosen_model_slug"] == "claude-opus-4-7" != first["chosen_model_slug"]
    assert (careful["min_quality"], careful["floor_source"]) == (0.95, "task_type")
    assert careful["inputs"]["policy"]["floors"] == {"chat": "0.95", "general": "0.95"}

    assert operator("rollback", "--yes")["version"] == "flat-1"
    back = eventually(lambda: heard("flat-1"), "the rollback is heard")
    assert back["chosen_model_slug"] == first["chosen_model_slug"]

    # nothing of a version is needed but what its receipt has
    monkeypatch.setattr(routing_policy, "POLICY_VERSIONS", {})
    for receipt in (first, careful, back):
        slug, candidates = replayed(receipt)
        assert slug == receipt["chosen_model_slug"]
        assert candidates == receipt["candidates"]


def test_the_gate_of_the_preference_is_flipped_while_the_fleet_runs_and_outlives_a_worker(
    stack: Stack, operator: Operator, decide: Callable[..., Receipt]
) -> None:
    def live(wanted: bool) -> Receipt:
        receipt = decide(routing_preference="quality", task_type="chat")
        return receipt if receipt["inputs"]["preference_live"] is wanted else {}

    closed = eventually(lambda: live(False), "a closed gate")
    assert closed["min_quality"] == 0.5
    assert operator("preference", "on", "--yes") == {"live": True, "changed": True}
    opened = eventually(lambda: live(True), "an open gate")
    assert opened["min_quality"] == 0.6
    stack.kill("inference")
    stack.start("inference")
    assert live(True), "the environment's first value came back"
    asked = {"x-ainfera-internal-key": stack.internal_key}
    path = "/internal/routing-preference"
    assert stack.request("GET", path, headers=asked).json() == {"live": True}
    flipped = stack.request("POST", path, headers=asked, json={"live": False})
    assert flipped.json() == {"live": False, "changed": True}
    assert eventually(lambda: live(False), "a closed gate")["min_quality"] == 0.5
