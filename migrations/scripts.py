"""The statements of a migration, kept as SQL that can be read and run by itself."""

from pathlib import Path

from alembic import op

SQL = Path(__file__).parent / "sql"


def run(name: str) -> None:
    """Run `sql/<name>.sql` as a script; asyncpg's simple protocol takes many statements at once."""
    script = (SQL / f"{name}.sql").read_text(encoding="utf-8")
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None
    driver.run_async(lambda connection: connection.execute(script))
