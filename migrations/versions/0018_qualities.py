"""The source and the date of each model's prior quality, and floors that tenants set for agents."""

from migrations.scripts import run

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0018_qualities")


def downgrade() -> None:
    run("0018_drop")
