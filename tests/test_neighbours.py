"""Tests that share a fleet run in one process: the groups say what the tests ask for."""

from pathlib import Path

import pytest

from tests.neighbours import FLEETS_OF_THEIR_OWN, LONG, SIMULATED_STACK, group

FLEETS = {"stack", "simulated_stack"}
TESTS = Path(__file__).resolve().parent


def test_every_name_is_a_files() -> None:
    files = {path.name for path in TESTS.rglob("test_*.py")}
    assert files >= FLEETS_OF_THEIR_OWN | SIMULATED_STACK | LONG


def test_who_asks_for_a_shared_fleet_is_where_it_runs(request: pytest.FixtureRequest) -> None:
    """Of all that was collected in this run."""
    wrong = [
        item.nodeid
        for item in request.session.items
        if item.path.parent == TESTS / "e2e" and item.path.name not in FLEETS_OF_THEIR_OWN
        if not FLEETS.intersection(getattr(item, "fixturenames", ())) <= {group(item.nodeid)}
    ]
    assert wrong == []


def test_a_file_of_any_other_folder_is_a_group_of_its_own() -> None:
    assert group("tests/workers/test_queue.py::test_one[a/b::c]") == "tests/workers/test_queue.py"
    assert group("tests/e2e/test_books.py::test_one") == group("tests/e2e/test_faults.py::test_two")
