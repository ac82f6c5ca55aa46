"""What a client or an operator was told of survives a crash; a wallet's entries have one order.

`keep_call` and every act of an operator commit durably, as money does. Entries of one settlement
are a microsecond apart, and other transfers bear the time at which they were made.
"""

from migrations.scripts import run

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for script in ("0020_kept", "0020_durable", "0020_settle"):
        run(script)


def downgrade() -> None:
    run("0020_drop")
    run("0006_settle")
