"""What a client or an operator was told of survives a crash; a wallet's entries have one order.

`keep_call` and every act of an operator commit durably, as money does. Entries of one settlement
are a microsecond apart, and other transfers bear the time at which they were made.
"""

from migrations.scripts import run

revision = "0021"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for script in ("0021_kept", "0021_durable", "0021_settle"):
        run(script)


def downgrade() -> None:
    run("0021_drop")
    run("0006_settle")
