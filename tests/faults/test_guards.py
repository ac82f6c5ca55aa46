"""The guards that the suite takes out are where its list says: a list that rots tests nothing."""

import pytest

from tests.faults.guard import ROOT, Guard
from tests.faults.guards import GUARDS


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_it_is_there_to_be_taken_out(guard: Guard) -> None:
    text = (ROOT / guard.file).read_text("utf-8")
    for old, new in guard.swaps:
        assert text.count(old) == 1, f"{text.count(old)} places in {guard.file}: {old!r}"
        text = text.replace(old, new)
    if guard.file.endswith(".py"):
        compile(text, guard.file, "exec")


def test_no_two_have_a_name() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)
