"""A quote is one call's even where its idempotency key is over, and of those that are held only the
unused count.

Going back makes `take_quote` again as it was.
"""

from migrations.scripts import run

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0017_quotes")


def downgrade() -> None:
    run("0017_drop")
