"""The five anchors bear the tag `routing_backend_v1_lock`, and no model the name it replaced.

Going back changes nothing: the version before seeds the same tag.
"""

from migrations.scripts import run

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0016_anchors")


def downgrade() -> None:
    pass
