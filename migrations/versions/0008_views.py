"""What finance looks at, found quickly; thresholds of the killswitch and its closing statement."""

from migrations.scripts import run

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0008_views")


def downgrade() -> None:
    run("0008_drop")
