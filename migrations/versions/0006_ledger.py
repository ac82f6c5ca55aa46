"""All accounts of the books, corrections, caps of whole tenants, leases, and attribution.

`usage` was the kind of the account that providers are paid from; it is `provider_cost` now, under
the same id. Receipts say by which rule they were billed.
"""

from migrations.scripts import run

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UP = ("0006_tables", "0006_open", "0006_extend", "0006_settle", "0006_funds", "0006_caps")
# dropped, then made again as they were
DOWN = ("0006_drop", "0001_open", "0005_open", "0005_settle", "0001_funds")


def upgrade() -> None:
    for script in UP:
        run(script)


def downgrade() -> None:
    for script in DOWN:
        run(script)
