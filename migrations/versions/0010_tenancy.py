"""A second wall between tenants: row-level security on every table that has rows of theirs.

What the ingress does for a caller runs as a role of its own, which sees the rows of one tenant.
"""

from migrations.scripts import run

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("0010_roles")
    run("0010_tenancy")


def downgrade() -> None:
    run("0010_drop")
