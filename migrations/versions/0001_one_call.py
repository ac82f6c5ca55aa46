"""Everything that one call needs: tenants, money, captures, receipts, chains, the catalogue.

The statements are in `migrations/sql/0001_*.sql`, as SQL that can be read and run by itself.
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).parent.parent / "sql"
PARTS = ("tables", "append_only", "audit", "open", "settle", "funds", "roles")


def run(part: str) -> None:
    """Run one file as a script; asyncpg's simple protocol takes many statements at once."""
    script = (SQL / f"0001_{part}.sql").read_text(encoding="utf-8")
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None
    driver.run_async(lambda connection: connection.execute(script))


def upgrade() -> None:
    for part in PARTS:
        run(part)


def downgrade() -> None:
    run("drop")
