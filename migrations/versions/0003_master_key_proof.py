"""A word sealed with the master key, by which a process knows whether its key is the right one.

The first process that starts writes it. The application may read and add it, never change it.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE master_key_proofs (
  id         integer PRIMARY KEY DEFAULT 1,
  sealed     bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT master_key_proofs_one_check CHECK (id = 1)
)
"""


def upgrade() -> None:
    op.execute(_TABLE)
    op.execute("GRANT SELECT, INSERT ON master_key_proofs TO ainfera_app")


def downgrade() -> None:
    op.execute("DROP TABLE master_key_proofs")
