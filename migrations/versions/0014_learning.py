"""What can be told of answers without a judge, and the estimates that are made of it.

Calls that ended before have no reward: their answers are gone.
"""

from migrations.scripts import run

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0014_tables")


def downgrade() -> None:
    run("0014_drop")
