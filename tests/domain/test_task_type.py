"""What kind of work a prompt asks for. The prompts here were written for these tests."""

import os
import random
import subprocess
import sys
from itertools import cycle
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
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
from shared.domain.task_type import (
    HEAD_READ,
    TAIL_READ,
    TASK_TYPES,
    TOLD_BY_WORDS,
    classify,
    classify_text,
    letters,
)
from shared.domain.task_words import WEIGHTS
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


# Whatever may come between two letters; a fence's three backticks are structure, not punctuation.
BETWEEN = st.lists(
    st.sampled_from(
        [*" \t\n\r,.;:!?-_/()[]\"'*#", "\u00a0", "\u2014", "\u2026", "\u3000", "\u201d", "`"]
    ),
    max_size=3,
).map("".join)
CASINGS = st.sampled_from([str.upper, str.lower, str.title, str.swapcase, str.casefold])


@pytest.mark.parametrize(("prompt", "task"), CASES)
def test_case_spacing_and_punctuation_do_not_matter(prompt: str, task: str) -> None:
    assert classify_text(prompt.upper()) == task
    assert classify_text("  " + prompt.replace(" ", " \n ") + "\t") == task
    assert classify_text(prompt.replace(" ", ", ") + "!?…") == task
    assert classify_text("".join(c for c in prompt if c.isalnum() or c.isspace())) == task
    assert classify_text("".join(c if c.isalnum() else " " for c in prompt)) == task
    assert classify_text("".join(c for c in prompt if c.isalnum())) == task


@steady
@given(st.sampled_from(CASES), st.lists(CASINGS, min_size=1), st.lists(BETWEEN, min_size=1))
def test_no_rephrasing_in_case_spacing_or_punctuation_matters(
    case: tuple[str, str], casings: list[Any], between: list[str]
) -> None:
    """Anything at all between any two letters, and any case of each word."""
    words = "".join(c if c.isalnum() else " " for c in case[0]).split()
    cased = "".join(how(word) for how, word in zip(cycle(casings), words, strict=False))
    said = "".join(gap + c for gap, c in zip(cycle(between), cased, strict=False))
    assume("```" not in said)
    assert len(said) <= HEAD_READ + TAIL_READ
    assert classify_text(said) == case[1]


@steady
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), CASINGS)
def test_letters_of_every_script_are_folded(text: str, casing: Any) -> None:
    assert letters(casing(text)) == letters(text)


@pytest.mark.parametrize("letter", "\u00df\u0131\u0130\u017f\u212a\ufb01\u0149")
def test_a_letter_whose_other_case_is_ascii_is_folded(letter: str) -> None:
    cases = {letter.upper(), letter.lower(), letter.title(), letter.casefold(), letter.swapcase()}
    assert {letters(each) for each in cases} == {letters(letter)}


def test_a_long_prompt_keeps_its_answer_in_other_spacing() -> None:
    filler = "the old harbour lay quiet under a pale sky and nobody came by that day "
    for prompt, task in CASES:
        long = f"{prompt} {filler * 60}{prompt}"
        spaced = long.replace(" ", " \n ")
        assert classify_text(spaced) == classify_text(long) == classify_text(long.upper()), task


def test_the_answer_does_not_hang_on_the_processs_hash_seed() -> None:
    words = sorted(term for term in WEIGHTS if term.isalnum())
    dice = random.Random(7)
    prompts = [" ".join(dice.sample(words, 12)) for _ in range(150)]
    code = (
        "import sys, json; from shared.domain.task_type import classify_text, signs, letters\n"
        "for p in json.load(sys.stdin): print(classify_text(p), *signs(letters(p)))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=orjson.dumps(prompts),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(told) == 1


def test_weights_are_whole_and_for_every_type() -> None:
    for term, weights in WEIGHTS.items():
        assert len(weights) == len(TOLD_BY_WORDS), term
        assert all(type(weight) is int for weight in weights), term


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

    @pytest.mark.parametrize(
        ("prompt", "task"),
        [
            ("What is wrong here?\n```\nfoo = bar(1)\n```", "code"),
            ("make it shorter\n```js\nlet a = [1, 2].map(x => x + 1)\n```", "code"),
            ('Why?\n```rust\nfn main() { println!("hi"); }\n```', "code"),
            ("```\nputs 1.upto(3).to_a\n``` explain", "code"),
            ("Explain the history:\n```text\nThe treaty of 1648 ended it.\n```", "general"),
            ("Explain the history:\n```\nThe treaty ended it (late).\n```", "general"),
            ('Extract all names from the text below:\n```json\n{"a": "Ana"}\n```', "extraction"),
        ],
    )
    def test_a_code_fence(self, prompt: str, task: str) -> None:
        assert classify(request(prompt)) == task
        assert classify_text(prompt.upper()) == task
        assert classify_text(prompt.replace("\n", "  \n")) == task

    def test_an_image_is_asked_about(self) -> None:
        image = {"type": "image", "source": {}}
        said = {"type": "text", "text": "ok?"}
        assert classify(request(messages=(Message("user", (said,)),))) == "chat"
        assert classify(request(messages=(Message("user", (image, said)),))) == "general"

    def test_a_document_is_there_to_be_read(self) -> None:
        document = {"type": "document", "source": {}}
        said = {"type": "text", "text": "All of the entities, and their fields."}
        without = Message("user", ({"type": "text", "text": "The fields of the heart."},))
        assert classify(request(messages=(Message("user", (document, said)),))) == "extraction"
        assert classify(request(messages=(without,))) == "general"

    def test_a_few_letters_are_small_talk(self) -> None:
        assert classify(request("yo :)")) == "chat"
        assert classify(request("2 + 2 =")) != "chat"

    def test_of_a_great_many_blocks_the_ends_are_read(self) -> None:
        filler = tuple({"type": "text", "text": "lorem ipsum " * 300} for _ in range(500))
        ask = {"type": "text", "text": "Write a Python function that sorts strings."}
        assert classify(request(messages=(Message("user", (*filler, ask)),))) == "code"
        assert classify(request(messages=(Message("user", (ask, *filler)),))) == "code"

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
