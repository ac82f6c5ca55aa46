"""Calls that could not be finished, what operators did, and the switch that stops spending.

`inferences` gets a state that is not final, `dead`; the functions that open and end calls know it.
"""

from migrations.scripts import run

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UP = ("0005_tables", "0005_bury", "0005_open", "0005_settle")
# dropped, then made again as they were
DOWN = ("0005_drop", "0001_open", "0001_settle")


def upgrade() -> None:
    for script in UP:
        run(script)


def downgrade() -> None:
    for script in DOWN:
        run(script)
