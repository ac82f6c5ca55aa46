"""The routing policy as data: versions, their publications, the preference's gate.

A tenant changes its own policy.
"""

from migrations.scripts import run

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0011_policies")


def downgrade() -> None:
    run("0011_drop")
