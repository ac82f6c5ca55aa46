"""Keys that keep their id when their secret is replaced, with scopes and limits of their own.

Keys that exist have all scopes and the settings' limits.
"""

from migrations.scripts import run

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0009_tables")


def downgrade() -> None:
    run("0009_drop")
