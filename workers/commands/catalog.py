"""`fleet catalog`: compare the running catalogue with a file, check a file, apply one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shared.catalog import load_catalog, open_catalog
from shared.control import CATALOG
from shared.domain.candidate import Candidate, Catalog, decimal_text, price_text
from shared.domain.catalog_diff import CatalogDiff, Change
from shared.domain.catalog_file import CatalogError
from shared.domain.price_list import PRICE_FIELDS, PriceList
from shared.operators import this_operator
from workers.catalog import Compared, NotReadable, apply_catalog, compare, read_new
from workers.commands.terminal import (
    AsJson,
    Yes,
    announce,
    ask_first,
    fail,
    run,
    say_json,
    show_rows,
    stores,
)
from workers.development import say

catalog = typer.Typer(
    no_args_is_help=True,
    help="The catalogue of models: prices, windows, capabilities, quality. It is data: what runs is"
    " the table `models`, which a file changes.\n\n"
    "A file is checked (`check`), compared with what runs (`diff`), and then written (`apply`)."
    " Prices come from vendors; `diff` also takes the open price list `genai-prices`"
    " (its data.json) and says where ours differ. `show` says what runs.",
)

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)]
MOST_SHOWN = 12
HEADINGS = ("model", "provider", "verdict", "in", "out", "quality", "said by", "on")


@catalog.command("show")
def show_command(as_json: AsJson = False) -> None:
    """Show the running catalogue: prices, and each quality with who says so and since when.

    Example: fleet catalog show
    """
    found = run(running())
    if as_json:
        say_json({"hash": found.hash, "models": found.to_json()})
        return
    show_rows(HEADINGS, map(told_model, found.candidates))


@catalog.command("diff")
def diff_command(
    file: File,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if anything differs, for scripts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what FILE would change in the running catalogue; nothing is written.

    FILE is a catalogue (as shared/catalog.toml), or the price list of `genai-prices` (a .json file:
    an array of providers). Of a price list only prices are compared, as of today: old, new, and the
    change in per cent; models are found by their vendors' names. Where a vendor's price depends on
    the hour the dearer one counts, where it depends on the prompt's length the base one.

    Example: fleet catalog diff new-catalog.toml

    Example: fleet catalog diff data.json --json
    """
    compared = run(looked(readable(file)))
    if as_json:
        say_json(compared.to_json())
    else:
        show(compared)
    if exit_code and compared.diff.any:
        raise typer.Exit(1)


@catalog.command("check")
def check_command(file: File, as_json: AsJson = False) -> None:
    """Check a catalogue file without any database; exit 1 with all that is wrong in it, each with
    its line, model and field, and what to write.

    Example: fleet catalog check shared/catalog.toml
    """
    try:
        found = load_catalog(file)
    except CatalogError as error:
        if as_json:
            say_json({"valid": False, "error": str(error), "problems": error.problems})
            raise typer.Exit(1) from None
        fail(str(error))
    if as_json:
        say_json({"valid": True, "models": len(found.candidates), "hash": found.hash})
        return
    brands = len({each.brand for each in found.candidates})
    say(f"{file.name} is right: {len(found.candidates)} models of {brands} brands.")


@catalog.command("apply")
def apply_command(file: File, yes: Yes = False, as_json: AsJson = False) -> None:
    """Write a catalogue file into the running catalogue; it is written down who did.

    What the file says of a model wins over the table, except whether it is switched off. Models
    that the file does not have stay. Running processes have it within a second; calls under way
    and held quotes keep their prices. A provider that no model had before needs a restart of the
    workers.

    Example: fleet catalog apply new-catalog.toml
    """
    new = readable(file)
    if isinstance(new, PriceList):
        fail("A price list cannot be applied: put its prices into the catalogue's file.")
    compared = run(looked(new))
    if not as_json:
        show(compared)
    changes = len(compared.diff.changes) + len(compared.diff.only_new)
    if changes:
        ask_first(f"Apply {changes} changes to the running catalogue?", yes)
        run(applied(new, compared.diff))
    if as_json:
        say_json({**compared.to_json(), "applied": bool(changes), "hash": new.hash})
    else:
        say(f"{file.name} was applied." if changes else "There is nothing to apply.")


async def running() -> Catalog:
    async with stores() as opened:
        return await open_catalog(opened.db)


def told_model(model: Candidate) -> tuple[str, ...]:
    told = (
        model.slug,
        model.provider,
        model.verdict,
        price_text(model.price_in),
        price_text(model.price_out),
        decimal_text(model.q_prior),
        model.q_prior_source,
        model.q_prior_date,
    )
    return tuple(each or "-" for each in told)


def readable(file: Path) -> Catalog | PriceList:
    """The file's content; exits with what is wrong, and where."""
    try:
        return read_new(file)
    except (CatalogError, NotReadable) as error:
        fail(str(error))


async def looked(new: Catalog | PriceList) -> Compared:
    async with stores() as opened:
        return await compare(opened.db, new)


async def applied(new: Catalog, diff: CatalogDiff) -> None:
    async with stores() as opened:
        await apply_catalog(opened.db, new, diff, this_operator())
        await announce(opened, CATALOG, hash=new.hash)


def show(compared: Compared) -> None:
    """The differences as a person reads them."""
    diff, console = compared.diff, Console()
    if diff.changes:
        table = Table("model", "field", "old", "new", "%", box=None, pad_edge=False)
        for change in diff.changes:
            table.add_row(*row_of(change))
        console.print(table)
    for line in told(compared):
        console.print(line, markup=False, highlight=False)


def row_of(change: Change) -> tuple[str, ...]:
    def text(value: object) -> str:
        return "-" if value is None else str(value)

    return (change.slug, change.field, text(change.old), text(change.new), change.percent or "")


def told(compared: Compared) -> Iterator[str]:
    """What there is to say besides single fields."""
    diff = compared.diff
    prices = sum(change.field in PRICE_FIELDS for change in diff.changes)
    yield f"{prices} prices and {len(diff.changes) - prices} other fields differ."
    if diff.only_running:
        yield f"Not in the file, and stay: {shortened(diff.only_running)}."
    if diff.only_new:
        yield f"In the file alone: {shortened(diff.only_new)}."
    if compared.off:
        yield f"Switched off here: {shortened(compared.off)}."


def shortened(names: tuple[str, ...]) -> str:
    """The first names; `--json` has all of them."""
    rest = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
