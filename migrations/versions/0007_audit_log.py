"""A log over all audit chains, as a Merkle tree whose heads are signed."""

from alembic import op

from migrations.scripts import run

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0007_log")


def downgrade() -> None:
    op.execute(
        "DROP TABLE audit_log_keys, audit_leaves, audit_nodes, audit_checkpoints, audit_logged"
    )
