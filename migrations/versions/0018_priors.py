"""The source and the date of each model's prior quality."""

from migrations.scripts import run

revision = "0018"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0018_priors")


def downgrade() -> None:
    run("0018_drop")
