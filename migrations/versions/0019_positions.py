"""Where in an agent's chain of events a moment lies, found without an index by time.

Who ends a call that nobody finished looks for its routing event between two moments, and not
through all that the agent did since. And letters that are long over may be deleted.
"""

from migrations.scripts import run

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0019_positions")


def downgrade() -> None:
    run("0019_drop")
