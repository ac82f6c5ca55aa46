"""A threshold is passed by nobody: what counts against it is looked at where money is held.

Holds, and larger ones, are refused while the killswitch is engaged, and the one that would pass a
threshold engages it, in the same transaction.
"""

from migrations.scripts import run

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for script in ("0021_tables", "0021_spending", "0021_gate", "0021_open", "0021_extend"):
        run(script)


def downgrade() -> None:
    for script in ("0021_drop", "0006_open", "0006_extend"):
        run(script)
