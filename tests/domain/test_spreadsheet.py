"""CSV that a reader of CSV reads back, and that no spreadsheet takes for a formula."""

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.spreadsheet import csv_line

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(TEXT, min_size=2, max_size=4))
def test_what_is_written_is_read_back(cells: list[str]) -> None:
    (read,) = csv.reader(io.StringIO(csv_line(cells), newline=""))
    assert [cell.removeprefix("'") for cell in read] == [cell.removeprefix("'") for cell in cells]


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", '=HYPERLINK("http://x")', "-"],
)
def test_text_that_begins_like_a_formula_does_not_any_more(cell: str) -> None:
    (read,) = csv.reader(io.StringIO(csv_line([cell]), newline=""))
    assert read == [f"'{cell}"]


def test_numbers_stay_numbers() -> None:
    line = csv_line([Decimal("-0.000000001"), Decimal("1E+3"), -7, None, "a,b", 'say "x"'])
    assert line == '-0.000000001,1000,-7,,"a,b","say ""x"""\r\n'
