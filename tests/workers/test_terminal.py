"""What operators see: rows that are never cut, questions that nobody can answer, a fleet that is
not running."""

from pathlib import Path
from uuid import UUID

import pytest
import typer
from typer.testing import CliRunner, Result

from shared.config import VERSION
from workers.cli import main
from workers.commands.keys import limits_in_words
from workers.commands.terminal import show_rows
from workers.development import write_env

IDS = (UUID(int=1), UUID(int=2))
LONG = "a label that is as long as labels are, which is longer than they ought to be"


def shown(**environment: str) -> str:
    app = typer.Typer()

    @app.command()
    def rows() -> None:
        show_rows(("id", "tenant", "label"), [(str(IDS[0]), str(IDS[1]), f"[red]{LONG}")])

    done = CliRunner().invoke(app, (), env={"NO_COLOR": "1", **environment})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("columns", ["20", "80", "120"])
def test_through_a_pipe_a_row_is_one_line_and_whole(columns: str) -> None:
    heading, row = shown(COLUMNS=columns).splitlines()
    assert heading.split() == ["id", "tenant", "label"]
    assert row.split() == [str(IDS[0]), str(IDS[1]), *f"[red]{LONG}".split()]


def test_on_a_narrow_screen_a_row_is_a_block_and_whole() -> None:
    lines = shown(COLUMNS="60", TTY_COMPATIBLE="1").splitlines()
    assert lines[0].split() == ["id", str(IDS[0])]
    assert lines[1].split() == ["tenant", str(IDS[1])]
    assert LONG in lines[2]


def test_on_a_wide_screen_it_is_a_table() -> None:
    assert len(shown(COLUMNS="200", TTY_COMPATIBLE="1").splitlines()) == 2


def test_limits_are_told_where_there_are_any() -> None:
    limits = {"requests_per_minute": 60, "tokens_per_minute": None, "concurrent_calls": 20}
    assert limits_in_words(limits) == "60 req/min, 20 at once"
    limits = {"requests_per_minute": 0, "tokens_per_minute": 5000, "concurrent_calls": None}
    assert limits_in_words(limits) == "unlimited req/min, 5000 tokens/min"
    assert limits_in_words(dict.fromkeys(limits)) == ""


def fleet(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(main, words, env={"NO_COLOR": "1", **environment})


def test_a_question_that_nobody_can_answer_names_the_option() -> None:
    done = fleet("drain", "all", REDIS_URL="redis://127.0.0.1:1")
    assert done.exit_code == 1
    assert "Nothing was done" in done.stderr
    assert "--yes" in done.stderr


def test_the_version_is_told() -> None:
    done = fleet("--version")
    assert (done.exit_code, done.stdout) == (0, f"{VERSION}\n")


@pytest.mark.parametrize("words", [("keys", "list"), ("ledger", "check"), ("status",)])
def test_where_no_fleet_is_known_it_says_what_names_one(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    nowhere = {"DATABASE_URL": "", "REDIS_URL": "", "FLEET_HOME": str(tmp_path)}
    unknown = fleet(*words, **nowhere)
    assert unknown.exit_code in (1, 2)
    assert "No fleet is known here" in unknown.stderr
    assert f"FLEET_HOME to the home of a fleet that runs on this machine (now {tmp_path})" in (
        unknown.stderr
    )
    write_env(tmp_path / "secrets.env", {"AINFERA_INTERNAL_KEY": "made once"})
    stopped = fleet(*words, **nowhere)
    assert stopped.exit_code in (1, 2)
    assert f"The fleet of {tmp_path} is not running; start it with `make up`" in stopped.stderr
