"""What kind of work a prompt asks for. The prompts here were written for these tests."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.inference import (
    Capability,
    Dialect,
    InferenceRequest,
    Message,
    RoutingHint,
    Tool,
    ToolChoice,
)
from shared.domain.task_type import TASK_TYPES, classify, classify_text
from tests.domain.routing_cases import steady

PROMPTS = {
    "code": [
        "Write a Python function that merges two sorted lists.",
        "def area(w, h):\n    # finish this",
        "Why does this SQL query return duplicates? SELECT * FROM a JOIN b ON a.id = b.id",
        "Refactor this class so that the database module can be mocked in a unit test.",
        "Fix the bug: TypeError: unsupported operand, traceback below.",
        "Implement an LRU cache in Rust with O(1) time complexity.",
    ],
    "reasoning": [
        "Nadia has 12 apples and buys 7 more each week. How many does she have after 5 weeks?",
        "Calculate the integral of x^2 from 0 to 3.",
        "A train leaves at 9:00 at 80 km/h. How long until it has gone 200 km?",
        "Is this argument valid? All cats are mammals. Tom is a cat. Prove the conclusion.",
        "What is the probability that two dice sum to 9?",
        "A circuit has a 12 V source and a resistance of 4 ohms. What is the current?",
    ],
    "chat": [
        "Hello!",
        "Thanks, that was nice of you.",
        "Imagine you are a lighthouse keeper. Tell me about your day.",
        "Write a short story about a fox who is afraid of the dark.",
        "Pretend to be a pirate and greet my friend.",
        "Draft a polite email to my landlord about the broken heating.",
    ],
    "general": [
        "What are the causes of the French Revolution?",
        "Explain the difference between a virus and a bacterium.",
        "Which countries border Switzerland?",
        "Who was the first president of Brazil?",
        "What is the role of the liver in the human body?",
        "Discuss the impact of tourism on small islands.",
    ],
    "extraction": [
        "Extract the names and dates from the following text as JSON: Ana came on 3 May.",
        "Extract all email addresses from the text below. Output in CSV format.",
    ],
}
CASES = [(prompt, task) for task, prompts in PROMPTS.items() for prompt in prompts]


def request(words: str = "hi", **other: Any) -> InferenceRequest:
    said = Message("user", ({"type": "text", "text": words},))
    return InferenceRequest(Dialect.NATIVE, "m", **({"messages": (said,)} | other))


@pytest.mark.parametrize(("prompt", "task"), CASES)
def test_words(prompt: str, task: str) -> None:
    assert classify(request(prompt)) == task


@pytest.mark.parametrize(("prompt", "task"), CASES)
def test_case_spacing_and_punctuation_do_not_matter(prompt: str, task: str) -> None:
    assert classify_text(prompt.upper()) == task
    assert classify_text("  " + prompt.replace(" ", " \n ") + "\t") == task
    assert classify_text(prompt.replace(" ", ", ") + "!?…") == task
    assert classify_text("".join(c for c in prompt if c.isalnum() or c.isspace())) == task


def test_a_question_with_choices_is_judged_by_its_stem() -> None:
    quiz = "Which organ makes insulin?\nA. Liver\nB. Pancreas\nC. Kidney\nD. Spleen\nAnswer:"
    assert classify_text(quiz) == "general"
    sums = "What is the mean of the vector (12, 14, 19)?\nA. 12\nB. 14\nC. 15\nD. 16\nAnswer:"
    assert classify_text("Calculate. " + sums) == "reasoning"


class TestStructure:
    def test_the_callers_word_wins(self) -> None:
        asked = request("def f(): pass", hint=RoutingHint(task_type="embed"), tools=(Tool("t"),))
        assert classify(asked) == "embed"

    def test_an_unknown_word_does_not(self) -> None:
        assert classify(request("Hello!", hint=RoutingHint(task_type="poetry"))) == "chat"

    def test_tools_offered(self) -> None:
        assert classify(request(tools=(Tool("t"),))) == "tool_use"
        none = ToolChoice("none")
        assert classify(request("Hello!", tools=(Tool("t"),), tool_choice=none)) == "chat"

    def test_a_tools_answer(self) -> None:
        answer = Message("user", ({"type": "tool_result", "tool_use_id": "i", "content": "4"},))
        assert classify(request(messages=(answer,))) == "tool_use"

    def test_embedding_fields(self) -> None:
        assert classify(request(body={"encoding_format": "float"})) == "embed"

    def test_a_wanted_schema_means_extraction_unless_it_is_about_code(self) -> None:
        schema = frozenset({Capability.JSON_SCHEMA})
        assert classify(request("Ana came on 3 May.", capabilities=schema)) == "extraction"
        code = "Write a Python function that sorts a list of strings."
        assert classify(request(code, capabilities=schema)) == "code"

    def test_only_the_last_user_message_counts(self) -> None:
        turns = (
            Message("user", ({"type": "text", "text": "Write a Python function."},)),
            Message("assistant", ({"type": "text", "text": "def f(): pass"},)),
            Message("user", ({"type": "text", "text": "Thanks, how are you?"},)),
        )
        assert classify(request(messages=turns)) == "chat"

    def test_nothing_to_read_is_general(self) -> None:
        assert classify(request(messages=())) == "general"
        assert classify(request("")) == "general"


def test_the_end_of_a_long_text_counts() -> None:
    long = "lorem ipsum dolor sit amet " * 500
    ask = " Write a Python function that returns the list of strings."
    assert classify_text(long + ask) == "code"
    assert classify_text(ask + long) == "code"


@steady
@given(st.text())
def test_any_text_has_one_type_whatever_its_case(text: str) -> None:
    found = classify_text(text)
    assert found in TASK_TYPES
    assert classify_text(f"  {text}  ") == found
    ascii_only = text.encode("ascii", "ignore").decode()
    assert classify_text(ascii_only.upper()) == classify_text(ascii_only.lower())
