"""What brands ask of a request, and how long models take: both are inputs of the decision rule."""

from migrations.scripts import run

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0012_tables")


def downgrade() -> None:
    run("0012_drop")
