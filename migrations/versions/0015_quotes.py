"""Quotes that are held until they expire, and how far the guard of captures has looked."""

from migrations.scripts import run

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0015_quotes")
    run("0015_guard")


def downgrade() -> None:
    run("0015_drop")
