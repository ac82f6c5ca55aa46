"""Tables as CSV (RFC 4180) that a spreadsheet opens without running what somebody wrote in it.

Text that a spreadsheet would take for a formula gets an apostrophe before it, which spreadsheets
show as text and programs can take off again; see OWASP, "CSV Injection". Numbers stay numbers.
"""

from collections.abc import Iterable
from decimal import Decimal

Cell = str | int | Decimal | None

# tab and carriage return too: spreadsheets skip them and then see what follows
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n")
# and what splits cells elsewhere: behind it a formula could begin
_QUOTED = frozenset(',;\t"\r\n')


def csv_line(cells: Iterable[Cell]) -> str:
    """One line with its end. None is an empty cell; a Decimal is written in plain digits."""
    return ",".join(_written(cell) for cell in cells) + "\r\n"


def _written(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Decimal):
        return f"{cell:f}"
    if isinstance(cell, int):
        return str(cell)
    harmless = f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA_BEGINS) else cell
    if _QUOTED.isdisjoint(harmless):
        return harmless
    return '"' + harmless.replace('"', '""') + '"'
