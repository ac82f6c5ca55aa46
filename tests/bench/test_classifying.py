"""What the classifier's judge makes of prompts: that a wrong answer or a leak would be noticed."""

import json
import sys
from pathlib import Path

import pytest

from shared.domain.task_type import TOLD_BY_WORDS, classify_text
from shared.domain.task_words import WEIGHTS
from tests.bench import classifying
from tests.bench.fitting import fitted, hand_set, known_to, labelled, verdict, written

START = hand_set()
PROMPTS = [
    labelled(f"{words} number{n}", task, START)
    for task, words in {
        "code": "refactor the lighthouse",
        "reasoning": "calculate the lighthouse",
        "general": "history of the lighthouse",
        "chat": "imagine you are a lighthouse",
    }.items()
    for n in "abcdefg"
]


def test_every_type_is_dealt_evenly_and_every_prompt_once() -> None:
    hands = classifying.dealt(PROMPTS, 3)
    assert sorted(each.prompt for hand in hands for each in hand) == sorted(
        each.prompt for each in PROMPTS
    )
    for task in range(4):
        held = [sum(each.task == task for each in hand) for hand in hands]
        assert sorted(held) == [2, 2, 3]
    assert classifying.dealt(PROMPTS[::-1], 3) == hands


def test_balanced_accuracy_counts_types_alike_and_not_extraction() -> None:
    matrix = [[90, 0, 10, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 3, 0], [5, 0, 0, 0, 0]]
    assert classifying.balanced(matrix) == pytest.approx((0.9 + 0.5 + 1) / 3)
    assert "90.0%" in classifying.matrix_table("told", matrix)


def test_a_fold_gains_nothing_from_terms_it_has_not_learned() -> None:
    others = [each for each in PROMPTS if each.task]
    code = [each for each in PROMPTS if not each.task]
    assert {verdict(each, START) for each in code} == {0}
    assert 0 not in {verdict(each, known_to(others, START)) for each in code}


def test_weights_follow_the_labels_as_far_as_there_is_reason() -> None:
    swapped = [labelled(each.prompt, TOLD_BY_WORDS[(each.task + 1) % 4], START) for each in PROMPTS]
    before = sum(verdict(each, START) == each.task for each in swapped)
    weights = fitted(swapped, START)
    assert before == 0 < sum(verdict(each, weights) == each.task for each in swapped)
    unseen = next(term for term in START if term == "eigenvalue")
    assert weights[unseen] == START[unseen]


def test_the_shipped_table_is_judged_as_routing_judges() -> None:
    for each in PROMPTS:
        seen = labelled(each.prompt, "code", WEIGHTS)
        assert TOLD_BY_WORDS[verdict(seen, WEIGHTS)] == classify_text(each.prompt)


def test_the_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "words.py"
    written(WEIGHTS, path)
    assert path.read_text() == classifying.WORDS_FILE.read_text()


def test_the_command_tells_a_bad_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hi", "task_type": "chat"}\n{"prompt": "no label"}\n')
    monkeypatch.setattr(sys, "argv", ["classifying", str(path)])
    assert classifying.main() == 1
    assert f"{path}, line 2" in capsys.readouterr().err


def test_the_command_tells_folds_flips_and_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": p.prompt, "task_type": TOLD_BY_WORDS[p.task]} for p in PROMPTS]
    rows.append({"prompt": "nobody asks", "task_type": "embed"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["classifying", str(path), "--folds", "2", "--runs", "1"])
    assert classifying.main() == 0
    told = capsys.readouterr().out
    assert told.count("balanced accuracy") == 4
    assert f"of {len(PROMPTS)}" in told
    for words in ("fold 2 of 2", "cross-validated", "as shipped", "hyphen to space", "Chinese"):
        assert words in told
