"""What is told of an answer: signals where they are sure, silence where they are not."""

import json
from typing import Any

import pytest

from shared.domain.answered import Answered, Finish, ToolUse, from_body, from_frames
from shared.domain.dialects import DIALECTS
from shared.domain.inference import Dialect, FinishReason
from shared.domain.reward import (
    LARGEST_CODE,
    NOTHING_ASKED,
    Asked,
    Check,
    Signals,
    asked_of,
    check_fences,
    judge,
    worst,
)

SCHEMA = {"type": "object", "required": ["a"]}


def fence(language: str, code: str) -> str:
    return f"Before.\n```{language}\n{code}\n```\nAfter."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no code at all", Check.NONE),
        (fence("python", "x = 1"), Check.PASSED),
        (fence("Python title=a.py", "x = (1"), Check.FAILED),
        (fence("py", "    x = 1\n    y = 2"), Check.PASSED),
        (fence("python", "await f()\nreturn 1"), Check.PASSED),
        (fence("python", ">>> x = (\n1"), Check.NOT_CHECKED),
        (fence("python", "!pip install x"), Check.NOT_CHECKED),
        (fence("python", "type X = (int"), Check.NOT_CHECKED),
        (fence("python", "def f[T](x: T): (("), Check.NOT_CHECKED),
        (fence("python", "x = '\0'"), Check.FAILED),
        (fence("python", "(" * 50_000), Check.FAILED),
        (fence("python", "x = 1\n" * LARGEST_CODE), Check.NOT_CHECKED),
        (fence("json", '{"a": 1}'), Check.PASSED),
        (fence("json", '{"a": NaN}'), Check.FAILED),
        (fence("json", "[" * 200_000), Check.NOT_CHECKED),
        (fence("toml", "a = 1"), Check.PASSED),
        (fence("toml", "a = = 1"), Check.FAILED),
        (fence("rust", "fn main( {"), Check.NOT_CHECKED),
        (fence("", "anything ("), Check.NOT_CHECKED),
        (fence("rust", "fn main( {") + fence("python", "x = 1"), Check.PASSED),
        (fence("python", "x = 1") + fence("python", "x = ("), Check.FAILED),
        ("~~~python\nx = (\n~~~", Check.FAILED),
        ("````md\n```python\nx = (\n```\n````", Check.NOT_CHECKED),
        ("```python\nx = 1", Check.PASSED),
    ],
)
def test_code_in_fences(text: str, expected: Check) -> None:
    assert check_fences(text) is expected


@pytest.mark.parametrize(
    ("asked", "text", "expected"),
    [
        (NOTHING_ASKED, "words", Check.NONE),
        (Asked(wants_json=True), "{}", Check.PASSED),
        (Asked(wants_json=True), "[]", Check.FAILED),
        (Asked(True, SCHEMA), '{"a": 1}', Check.PASSED),
        (Asked(True, SCHEMA), "{}", Check.FAILED),
        (Asked(True, SCHEMA), '```json\n{"a": 1}\n```', Check.FAILED),
        (Asked(True, SCHEMA).without_schemas(), "{}", Check.NOT_CHECKED),
        (Asked(True, SCHEMA).without_schemas(), "words", Check.FAILED),
        (Asked(True, SCHEMA), '{"a":' * 200_000, Check.NOT_CHECKED),
    ],
)
def test_json_that_was_asked_for(asked: Asked, text: str, expected: Check) -> None:
    assert judge(Answered(text, finish=Finish.BY_ITSELF), asked).json is expected


@pytest.mark.parametrize(
    ("asked", "used", "expected"),
    [
        (Asked(tools={"f": SCHEMA}), [ToolUse("f", '{"a": 1}')], Check.PASSED),
        (Asked(tools={"f": SCHEMA}), [ToolUse("f", {"a": 1})], Check.PASSED),
        (Asked(tools={"f": SCHEMA}), [ToolUse("f", "")], Check.FAILED),
        (Asked(tools={"f": {}}), [ToolUse("f", "")], Check.PASSED),
        (Asked(tools={"f": {}}), [ToolUse("f", "[]")], Check.FAILED),
        (Asked(tools={"f": {}}), [ToolUse("f", '{"a"')], Check.FAILED),
        (Asked(tools={"f": {}}), [ToolUse("f", "{}"), ToolUse("g", "{}")], Check.FAILED),
        (Asked(tools={"f": {}}, whole=False), [ToolUse("g", "{}")], Check.NOT_CHECKED),
        (
            Asked(tools={"f": {"pattern": "x", "$ref": "y"}}),
            [ToolUse("f", "{}")],
            Check.NOT_CHECKED,
        ),
    ],
)
def test_calls_of_tools(asked: Asked, used: list[ToolUse], expected: Check) -> None:
    assert judge(Answered("", used, Finish.BY_ITSELF), asked).tools is expected


@pytest.mark.parametrize(
    ("signals", "reward", "checked"),
    [
        (Signals(Finish.BY_ITSELF), 1, False),
        (Signals(Finish.BY_ITSELF, code=Check.PASSED), 1, True),
        (Signals(Finish.BY_ITSELF, code=Check.PASSED, tools=Check.FAILED), 0, True),
        (Signals(Finish.BY_ITSELF, json=Check.NOT_CHECKED), 1, False),
        (Signals(Finish.CUT_OFF), 0, False),
        (Signals(Finish.FILTERED), 0, False),
        (Signals(Finish.ERROR), 0, False),
        (Signals(Finish.CANCELLED), None, False),
        (Signals(Finish.UNKNOWN, note="gone"), None, False),
    ],
)
def test_rewards(signals: Signals, reward: int | None, checked: bool) -> None:
    assert (signals.reward, signals.checked) == (reward, checked)


def test_what_was_not_checked_says_nothing_beside_what_was() -> None:
    assert worst([Check.NOT_CHECKED, Check.PASSED]) is Check.PASSED
    assert worst([]) is Check.NONE


def test_an_answer_that_was_cut_off_is_not_checked_as_well() -> None:
    cut = Answered(fence("python", "x = ("), finish=Finish.CUT_OFF)
    assert judge(cut) == Signals(Finish.CUT_OFF)


def request_with(**fields: Any) -> Any:
    body = {"model": "ainfera-inference", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return DIALECTS[Dialect.OPENAI].parse_request(body)


def test_only_what_the_answer_can_be_held_to_is_kept_of_a_request() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    request = request_with(tools=[tool], response_format=wanted)

    assert asked_of(request, FinishReason.TOOL_CALLS) == Asked(tools={"f": SCHEMA})
    assert asked_of(request, FinishReason.STOP) == Asked(True, SCHEMA)
    assert asked_of(request_with(tools=[tool]), FinishReason.STOP) is None
    assert asked_of(request_with(), FinishReason.STOP) is None
    again = json.loads(json.dumps(Asked(True, SCHEMA).to_json()))
    assert Asked.from_json(again) == Asked(True, SCHEMA)


def test_a_strange_answer_raises_and_is_read_no_further() -> None:
    with pytest.raises((KeyError, TypeError)):
        from_body(Dialect.OPENAI, {"choices": [{}]})
    with pytest.raises(StopIteration):
        from_frames(Dialect.NATIVE, [("delta", {"text": "x"})])
