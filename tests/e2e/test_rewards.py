"""What the books worker can tell of answers afterwards: each routed call gets its row, once."""

import json
import time
from typing import Any

import ainfera

from tests.e2e.calls import EVERY_DIALECT, STREAMED_OR_NOT, call
from tests.e2e.stack import Stack
from tests.e2e.upstream import Say, Upstream
from tests.e2e.witness import Witness

Row = dict[str, Any]

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
FINE, BROKEN = "def f(x):\n    return x + 1", "def f(x:\n    return x +"
REWARDS = "SELECT * FROM routing_rewards WHERE inference_id = $1"
# rounds are every five seconds
PATIENCE_S = 60


def reward(witness: Witness, inference_id: str) -> Row:
    """The one row of a call, once it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while not (rows := witness.rows(REWARDS, inference_id)):
        assert time.monotonic() < deadline, "no reward was written"
        time.sleep(0.1)
    (row,) = rows
    return dict(row)


def signals(row: Row) -> tuple[str, str, str, str, int | None]:
    return row["finish"], row["code"], row["json"], row["tools"], row["reward"]


def tools_for(dialect: str) -> list[dict[str, Any]]:
    if dialect == "anthropic":
        return [{"name": "note_age", "input_schema": SCHEMA}]
    return [{"type": "function", "function": {"name": "note_age", "parameters": SCHEMA}}]


def schema_for(dialect: str) -> dict[str, Any]:
    if dialect == "anthropic":
        return {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    return {"response_format": FORMAT}


@EVERY_DIALECT
@STREAMED_OR_NOT
def test_every_answer_gets_the_signals_that_it_deserves(
    stack: Stack,
    agent: ainfera.SignupResult,
    upstream: Upstream,
    witness: Witness,
    dialect: str,
    stream: bool,
) -> None:
    tools, schema = {"tools": tools_for(dialect)}, schema_for(dialect)
    right, wrong = json.dumps({"age": 7}), json.dumps({"age": "seven"})
    cases: list[tuple[Say, dict[str, Any], tuple[str, str, str, str, int | None]]] = [
        (Say(texts=("Just ", "words.")), {}, ("by_itself", "none", "none", "none", 1)),
        (Say(texts=(right[:4], right[4:])), schema, ("by_itself", "none", "passed", "none", 1)),
        (Say(texts=(wrong,)), schema, ("by_itself", "none", "failed", "none", 0)),
        (Say(texts=("I am seven.",)), schema, ("by_itself", "none", "failed", "none", 0)),
        (
            Say.tool_calls(("note_age", right)),
            tools,
            ("by_itself", "none", "none", "passed", 1),
        ),
        (
            Say.tool_calls(("note_age", right), ("note_age", wrong)),
            tools,
            ("by_itself", "none", "none", "failed", 0),
        ),
        (fenced("python", FINE), {}, ("by_itself", "passed", "none", "none", 1)),
        (fenced("python", BROKEN), {}, ("by_itself", "failed", "none", "none", 0)),
        (fenced("cobol", BROKEN), {}, ("by_itself", "not_checked", "none", "none", 1)),
        (Say(texts=("And then",), finish="length"), {}, ("cut_off", "none", "none", "none", 0)),
    ]
    answers = [
        (call(stack, agent.api_key, dialect, upstream.will(say), stream=stream, **more), expected)
        for say, more, expected in cases
    ]
    for place, (answer, expected) in enumerate(answers):
        assert answer.status == 200, answer.content
        assert signals(reward(witness, answer.inference_id)) == expected, cases[place]


def fenced(language: str, code: str) -> Say:
    return Say(texts=("Here:\n```", f"{language}\n{code}\n", "```\nDone."))


def test_a_row_says_whose_it_is_and_no_word_of_the_answer(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    word = upstream.will(fenced("python", "xylophone_of_the_answer = 1"))
    answer = call(stack, agent.api_key, "openai", word)
    row = reward(witness, answer.inference_id)

    (capture,) = witness.captures(answer.inference_id)
    assert str(row["tenant_id"]) == str(agent.tenant_id)
    assert (row["task_type"], row["band"]) == (capture["task_type"], "balanced")
    assert (row["model"], row["failed_models"]) == (capture["chosen_model_slug"], [])
    assert (row["checked"], row["note"]) == (True, None)
    assert row["ended_at"] == capture["created_at"]
    assert "xylophone" not in str(row)
    asked_key = f"ainfera:asked:{{{answer.inference_id}}}".encode()
    assert asked_key not in witness.keys_with("")


def test_failures_count_against_the_models_that_failed(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    broken = Say(texts=("One", "two"), broken_after=1, error="Overloaded")
    cut = call(stack, agent.api_key, "openai", upstream.will(broken), stream=True)
    assert signals(reward(witness, cut.inference_id)) == ("error", "none", "none", "none", 0)

    word = upstream.will(Say(status=500, error="No."), on_anthropic=Say(texts=("Yes.",)))
    saved = call(stack, agent.api_key, "openai", word)
    row = reward(witness, saved.inference_id)
    assert row["finish"] == "by_itself"
    assert "gpt-5-mini" in row["failed_models"]
    assert row["model"].startswith("claude")


def test_a_pinned_call_is_not_learned_from(
    stack: Stack, agent: ainfera.SignupResult, upstream: Upstream, witness: Witness
) -> None:
    pinned = call(stack, agent.api_key, "openai", upstream.will(Say()), model="gpt-5-mini")
    routed = call(stack, agent.api_key, "openai", upstream.will(Say()))
    reward(witness, routed.inference_id)
    assert witness.rows(REWARDS, pinned.inference_id) == []
