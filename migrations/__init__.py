"""The schema and its history; see run.py for how a database is brought to a revision."""

from migrations.run import downgrade, upgrade

__all__ = ["downgrade", "upgrade"]
